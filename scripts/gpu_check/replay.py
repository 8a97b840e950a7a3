"""A segment of a member's work replayed elsewhere: in other precisions, on the other device, once more on the same.

What an auditor sees of an honest member whose card is another than its own. The same draws, the same base; the update
of `steps` local steps against that in fp32 on this device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch

from scripts.gpu_check.given import Given, NotHere, Shape, against, attempt, member, seconds
from scripts.gpu_check.tables import Row

CPU = torch.device("cpu")


class Replay(NamedTuple):
    """Who does it."""

    device: torch.device
    precision: str
    kind: str = "full"

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.precision} on {self.device.type}"


def segments(given: Given) -> Iterator[Row]:
    for kind in ("full", "lora"):
        yield from _replayed(given, kind, given.replayed, (given.device, CPU))
    if given.shape != given.replayed:
        yield from _replayed(given, "full", given.shape, (given.device,))


def _replayed(given: Given, kind: str, shape: Shape, devices: tuple[torch.device, ...]) -> Iterator[Row]:
    first = Replay(given.device, "fp32", kind)
    known: dict[str, torch.Tensor] = {}
    yield attempt(given, f"{first.name}, the first, {shape.name}", partial(_replay, given, first, shape, known))
    if not known:
        return
    yield attempt(given, f"{first.name}, again, {shape.name}", partial(_replay, given, first, shape, known))
    others = [Replay(device, precision, kind) for device in devices for precision in ("bf16", "fp16", "fp32")]
    for replay in dict.fromkeys(others):
        if replay != first:
            yield attempt(given, f"{replay.name}, {shape.name}", partial(_replay, given, replay, shape, known))
    if not given.on_gpu and len(devices) > 1:
        yield attempt(given, f"{kind}, on a GPU", _no_gpu)


def _no_gpu() -> Mapping[str, Any]:
    raise NotHere("not run: no GPU")


def _replay(given: Given, replay: Replay, shape: Shape, known: dict[str, torch.Tensor]) -> Mapping[str, Any]:
    """The first one is what the others are held against."""
    inner = {"lr": 1e-3 if replay.kind == "lora" else 3e-4}
    work = member(given, replay.kind, precision=replay.precision, shape=shape, device=replay.device, inner=inner)
    with seconds(replay.device) as taken:
        for _ in range(shape.steps):
            work.step()
    vector = work.finish().vector
    reference = known.setdefault("vector", vector)
    same = torch.equal(vector.view(torch.int32), reference.view(torch.int32))
    return {**against(vector, reference), "same bits": same, "s": taken()}
