"""How time, memory and the distance of two updates are measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from peer.training.device import let_go_of_memory
from scripts.gpu_check.given import Given

MIB = float(1 << 20)


class Memory:
    """The most that a device's allocator has held; on the CPU the most that this process has grown by.

    Args:
        given: says whether there is a GPU.
    """

    def __init__(self, given: Given) -> None:
        self._given = given
        self._before = _status("VmRSS")

    def begin(self) -> None:
        """Look from now on."""
        let_go_of_memory(self._given.device)
        if self._given.on_gpu:
            torch.cuda.synchronize(self._given.device)
            torch.cuda.reset_peak_memory_stats(self._given.device)
        else:
            forget_peak()

    def held(self) -> int:
        """Bytes now."""
        if self._given.on_gpu:
            return torch.cuda.memory_allocated(self._given.device)
        return _status("VmRSS") - self._before

    def most(self) -> int:
        """Bytes since `begin`."""
        if self._given.on_gpu:
            torch.cuda.synchronize(self._given.device)
            return torch.cuda.max_memory_allocated(self._given.device)
        return main_memory_most() - self._before


def main_memory_most() -> int:
    """Bytes that this process held at most since it began, or since `forget_peak`."""
    return _status("VmHWM")


def forget_peak() -> None:
    """Let the kernel count anew; where it does not, peaks are those of all that this process did."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    return 0


@contextmanager
def seconds(given: Given) -> Iterator[Callable[[], float]]:
    """How long the block takes, the GPU's work in it included; to be asked after it."""
    taken = [0.0]
    _wait(given)
    started = time.perf_counter()
    yield lambda: taken[0]
    _wait(given)
    taken[0] = time.perf_counter() - started


def _wait(given: Given) -> None:
    if given.on_gpu:
        torch.cuda.synchronize(given.device)


def against(vector: torch.Tensor, reference: torch.Tensor) -> dict[str, float]:
    """Cosine and relative L2 of two updates, flat [N], in float64 sums."""
    own, other = _dot(vector, vector), _dot(reference, reference)
    both = _dot(vector, reference)
    difference = max(own + other - 2 * both, 0.0) if other else 0.0
    if difference < 1e-6 * other:  # of sums that nearly cancel
        less = vector - reference
        difference = _dot(less, less)
    scale = (own * other) ** 0.5
    return {"cosine": both / scale if scale else 0.0, "relative L2": (difference / other) ** 0.5 if other else 0.0}


def _dot(one: torch.Tensor, other: torch.Tensor) -> float:
    lots = zip(one.split(1 << 22), other.split(1 << 22), strict=True)
    return sum(torch.dot(a.double(), b.double()).item() for a, b in lots)
