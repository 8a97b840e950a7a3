"""From the card to the wire: the update's way to the CPU, with and without pinned memory, and the codecs on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from peer.training.codecs.codec import EncodedUpdate
from peer.training.state import SharedState
from scripts.gpu_check.gauges import against, seconds
from scripts.gpu_check.given import Given, NotHere, attempt, member
from scripts.gpu_check.tables import Row

CODECS = ("fp32", "fp16", "int8", "int4", "int2", "topk")
MOST_VALUES = 1 << 25  # encoded; speeds do not depend on more


def copies(given: Given) -> Iterator[Row]:
    """Everything that moves once a round, as large as a full fine-tune's."""
    work = member(given, precision="bf16" if given.on_gpu else "fp32")
    work.step()
    flat_N = work.model.flat_N.detach()
    state = SharedState(0, work.model.names_shapes, work.model.read())
    pageable = torch.zeros_like(flat_N, device="cpu")
    pinned: list[torch.Tensor] = []

    def pin() -> None:
        if not given.on_gpu:
            raise NotHere("not run: no GPU")
        pinned.append(torch.empty(flat_N.shape, dtype=flat_N.dtype, pin_memory=True))

    def copy(to: Callable[[], torch.Tensor], source: Callable[[], torch.Tensor]) -> None:
        to().copy_(source(), non_blocking=True)

    def pinned_N() -> torch.Tensor:
        if not pinned:
            raise NotHere("not run: no pinned memory")
        return pinned[0]

    ways: tuple[tuple[str, Callable[[], Any]], ...] = (
        ("`LocalWork.finish`: read, subtract, look for NaN", work.finish),
        ("`TrainableModel.read`, as it is", work.model.read),
        ("parameters into memory that is there, pageable", partial(copy, lambda: pageable, lambda: flat_N)),
        ("pinning as much memory", pin),
        ("parameters into pinned memory", partial(copy, pinned_N, lambda: flat_N)),
        ("`TrainableModel.write`, as it is", lambda: work.model.write(state.parameters)),
        ("parameters from pinned memory", partial(copy, lambda: flat_N, pinned_N)),
        ("digest of the state", lambda: SharedState(0, state.names_shapes, state.parameters).digest),
    )
    for name, way in ways:
        yield attempt(given, name, partial(_timed, given, way, 4 * flat_N.numel(), 1 if way is pin else 2))


def _timed(given: Given, way: Callable[[], Any], size_bytes: int, times: int) -> Mapping[str, Any]:
    """The faster of two: the first one makes what stays."""
    fastest = float("inf")
    for _ in range(times):
        with seconds(given) as taken:
            way()
        fastest = min(fastest, taken())
    return {"s": fastest, "GB/s": size_bytes / fastest / 1e9}


def codecs(given: Given) -> Iterator[Row]:
    """Of a real update, or of its first 32 M values, on the CPU."""
    work = member(given, precision="bf16" if given.on_gpu else "fp32")
    for _ in range(2):
        work.step()
    vector = work.finish().vector[:MOST_VALUES]
    for name in CODECS:
        yield attempt(given, name, partial(_codec, given, name, vector))


def _codec(given: Given, name: str, vector: torch.Tensor) -> Mapping[str, Any]:
    with seconds(given) as encoding:
        update = EncodedUpdate.encode(vector, name)
    with seconds(given) as decoding:
        decoded = update.decode()
    gigabytes = 4 * vector.numel() / 1e9
    return {
        "encode, GB/s": gigabytes / encoding(),
        "decode, GB/s": gigabytes / decoding(),
        "bytes a value": sum(map(len, update.chunks)) / vector.numel(),
        "relative L2": against(decoded, vector)["relative L2"],
    }
