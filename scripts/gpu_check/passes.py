"""What a member does where memory is short: fewer sequences at a time, then activations recomputed, then a clear end.

On a GPU torch's allocator is told to give no more than so much to this process, so what runs out is real. On the CPU,
where a system kills rather than refuses, running out is planted: more sequences than would fit raise torch's own error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from peer.training.device import let_go_of_memory
from peer.training.model import TrainableModel
from peer.training.work import LocalWork
from protocol.errors import InputError
from scripts.gpu_check.gauges import MIB, Memory, against, seconds
from scripts.gpu_check.given import Given, attempt, member
from scripts.gpu_check.tables import Row

L2 = "relative L2 of the update"


def back_off(given: Given) -> Iterator[Row]:
    """Three cards, each too small for what it is asked: for some sequences, for one, for none."""
    precision = "bf16" if given.on_gpu else "fp32"
    asked = 4 * given.shape.batch
    reference, one = _reference(given, precision, asked)
    kinds: tuple[tuple[str, float], ...] = (("five and a half sequences", 5.5), ("most of a sequence", 0.85))
    for name, sequences in kinds:
        yield attempt(given, name, partial(_short, given, precision, asked, sequences, one, reference))
    yield attempt(given, "a hundredth of a sequence", partial(_too_short, given, precision, asked, one))


def _reference(given: Given, precision: str, asked: int) -> tuple[torch.Tensor, int]:
    """The update of one step, a sequence at a time; and what one takes, in bytes."""
    work = member(given, precision=precision, inner={"micro_batch": 1, "batch": asked})
    memory = Memory(given)
    work.step()
    memory.begin()
    held = memory.held()
    while work.sequences < asked:
        work.step()
    return work.finish().vector, memory.most() - held


def _short(
    given: Given, precision: str, asked: int, sequences: float, one: int, reference: torch.Tensor
) -> Mapping[str, Any]:
    work = member(given, precision=precision, inner={"micro_batch": asked, "batch": asked})
    with _room_for(given, work.model, sequences, one):
        while work.sequences < asked:
            work.step()
        vector = work.finish().vector
    found = {"asked, sequences": asked, "taken": work.passes.most, "recomputing": work.model.recomputing}
    return found | {L2: against(vector, reference)["relative L2"]}


def _too_short(given: Given, precision: str, asked: int, one: int) -> Mapping[str, Any]:
    work = member(given, precision=precision, inner={"micro_batch": asked, "batch": asked})
    try:
        with _room_for(given, work.model, 0.01, one):
            work.step()
    except InputError as error:
        return {"asked, sequences": asked, "taken": f"refused: {error.message[:60]}…", "recomputing": True}
    raise RuntimeError(f"{work.passes.most} sequences fitted all the same")


@contextmanager
def _room_for(given: Given, model: TrainableModel, sequences: float, one: int) -> Iterator[None]:
    """Inside the block there is memory for so many sequences beside what is held."""
    if not given.on_gpu:
        model.loss = _planted(model, model.loss, sequences)  # type: ignore[method-assign]
        yield
        return
    let_go_of_memory(given.device)
    free = sequences * one + 16 * MIB  # the allocator rounds
    whole = torch.cuda.get_device_properties(given.device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(given.device) + free) / whole, given.device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, given.device)


def _planted(model: TrainableModel, loss: Callable[..., torch.Tensor], sequences: float) -> Callable[..., torch.Tensor]:
    def short(tokens_BT: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
        if len(tokens_BT) * (0.5 if model.recomputing else 1.0) > sequences:
            raise torch.OutOfMemoryError("planted: out of memory")
        return loss(tokens_BT, labels_BT)

    return short


def recompute(given: Given) -> Iterator[Row]:
    """The same steps with activations kept and recomputed."""
    precision = "bf16" if given.on_gpu else "fp32"
    updates: list[torch.Tensor] = []
    for recomputing in (False, True):
        label = f"{'recomputed' if recomputing else 'kept'}, {precision}"
        yield attempt(given, label, partial(_steps, given, precision, recomputing, updates))


def _steps(given: Given, precision: str, recomputing: bool, updates: list[torch.Tensor]) -> Mapping[str, Any]:
    memory = Memory(given)
    memory.begin()
    work = member(given, precision=precision)
    if recomputing and not work.model.recompute():
        raise RuntimeError("this model cannot recompute")
    _steps_of(work, 2)
    with seconds(given) as taken:
        tokens = _steps_of(work, given.shape.steps)
    most = memory.most()
    updates.append(work.finish().vector)
    found = {"tokens/s": tokens / taken(), "peak memory, MiB": most / MIB}
    return found | {L2: against(updates[-1], updates[0])["relative L2"]}


def _steps_of(work: LocalWork, count: int) -> int:
    return sum(work.step().tokens for _ in range(count))
