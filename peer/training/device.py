"""What torch keeps different from device to device: names, clocks, and how memory running out is said.

>>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 281 bytes"))
True
>>> is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
False
"""

from __future__ import annotations

import ctypes
import gc
import sys
import time

import torch

_MMAP_THRESHOLD, _APART_BYTES = -3, 16 << 20  # of mallopt(3)
_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED")  # Apple, CPU, cuBLAS


def device_name(device: torch.device) -> str:
    """A card's own name, or the kind of device and torch's threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def why_unusable(device: str) -> str:
    """Why torch cannot use a device here, by its name; empty: it can."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        return str(error).partition("\n")[0].partition(". ")[0][:200]  # torch goes on for a page
    return ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch means that memory ran out, on whatever device."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def let_go_of_memory(device: torch.device) -> None:
    """Give back what a failed pass has left; to be called outside the `except` block, which holds on to its tensors."""
    gc.collect()
    give_back_freed()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def keep_large_blocks_apart() -> None:
    """Let main memory in large pieces go back when it is freed, for the life of the process.

    glibc by itself soon keeps pieces of up to 32 MiB among the small ones, where holes of the wrong size remain: a
    seventh of a LoRA member's memory. Below this size it costs time, a twentieth of a pass at 4 MiB. glibc only.
    """
    _glibc("mallopt", _MMAP_THRESHOLD, _APART_BYTES)


def give_back_freed() -> None:
    """Return main memory that was freed but is kept for the next allocation. glibc only."""
    _glibc("malloc_trim", 0)


def _glibc(name: str, *arguments: int) -> None:
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    if function is not None:  # musl has neither
        function(*arguments)


class Stopwatch:
    """How long something takes, waiting for the device at both ends; waits for nothing where nobody wants to know."""

    def __init__(self, device: torch.device, wanted: bool) -> None:
        self._device, self._wanted = device, wanted
        self._started = self._now()

    def seconds(self) -> float:
        """Since it was made."""
        return self._now() - self._started

    def _now(self) -> float:
        if self._wanted and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._wanted and self._device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()
