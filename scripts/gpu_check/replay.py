"""A segment of a member's work replayed elsewhere: in other precisions, on the other device, once more on the same.

What an auditor sees of an honest member whose card is another than its own. The same draws, the same base; the update
of `steps` local steps against that in fp32 on this device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch

from scripts.gpu_check.gauges import against, seconds
from scripts.gpu_check.given import Given, Shape, attempt, member
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
    known: dict[str, torch.Tensor] = {}

    def row(who: Replay, note: str = "") -> Row:
        return attempt(given, f"{who.name}{note}, {shape.name}", partial(_replay, given, who, shape, known))

    first = Replay(given.device, "fp32", kind)
    yield row(first, ", the first")
    if not known:
        return
    yield row(first, ", again")
    for precision in ("bf16", "fp16"):
        yield row(Replay(given.device, precision, kind))
    if CPU in devices and given.on_gpu:
        for precision in ("fp32", "bf16"):  # a CPU's fp16 is slow, and nobody trains in it
            yield row(Replay(CPU, precision, kind))
    elif CPU in devices:
        yield Row(f"{kind}, on a GPU", {}, "not run: no GPU")


def _replay(given: Given, replay: Replay, shape: Shape, known: dict[str, torch.Tensor]) -> Mapping[str, Any]:
    """The first one is what the others are held against."""
    inner = {"lr": 1e-3 if replay.kind == "lora" else 3e-4}
    work = member(given, replay.kind, precision=replay.precision, shape=shape, device=replay.device, inner=inner)
    with seconds(given) as taken:
        for _ in range(shape.steps):
            work.step()
    vector = work.finish().vector
    reference = known.setdefault("vector", vector)
    same = torch.equal(vector.view(torch.int32), reference.view(torch.int32))
    return {**against(vector, reference), "same bits": same, "s": taken()}
