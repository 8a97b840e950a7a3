"""Steps of our loop, of a bare loop and of transformers' Trainer: tokens a second, memory, loss.

All arms start from the same weights in the same files, take the same number of sequences a step with the same fused
AdamW, and do as many steps; the loss is the mean of all of them. Batches are drawn in each arm's own order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from transformers import TrainerCallback

from scripts import stock_arms
from scripts.gpu_check.gauges import MIB, Memory, seconds
from scripts.gpu_check.given import KERNELS, PRECISIONS, Given, attempt, member, missing, need, packages, sequences
from scripts.gpu_check.tables import Row

WARM = 2  # steps
LR = 3e-4


def steps(given: Given, kind: str, base: str) -> Iterator[Row]:
    """Every precision; ours with every kernel of the loss.

    By hand a base in bf16 computes in bf16, so that is compared; with one in 4 bits too, to save time.

    Args:
        kind: full or lora.
        base: how the base is held: fp32, bf16, nf4.
    """
    if (row := missing("all", *packages(kind, base))) is not None:
        yield row
        return
    memory = Memory(given)
    for precision in PRECISIONS:
        for kernel in KERNELS:
            label = f"ours, {precision}, loss {kernel}"
            yield attempt(given, label, partial(_ours, given, memory, kind, base, precision, kernel))
        by_hand = (("bare loop", _bare), ("Trainer", _trainer)) if base == "fp32" or precision == "bf16" else ()
        for name, measure in by_hand:
            yield attempt(given, f"{name}, {precision}", partial(measure, given, memory, kind, base, precision))


def _result(given: Given, memory: Memory, taken_s: float, loss: float) -> Mapping[str, Any]:
    tokens = given.shape.steps * given.shape.batch * (given.shape.sequence - 1)
    return {"tokens/s": tokens / taken_s, "peak memory, MiB": memory.most() / MIB, "loss": loss}


def _ours(given: Given, memory: Memory, kind: str, base: str, precision: str, kernel: str) -> Mapping[str, Any]:
    memory.begin()
    work = member(given, kind, base, precision, inner={"lr": LR})
    KERNELS[kernel](work.model)
    losses = [work.step().loss for _ in range(WARM)]
    with seconds(given) as taken:
        losses += [work.step().loss for _ in range(given.shape.steps)]
    return _result(given, memory, taken(), torch.stack(losses).mean().item())


def _stock(given: Given, kind: str, base: str, precision: str) -> Any:
    return stock_arms.stock_model(str(given.model_folder()), kind, base, given.device.type, precision)


def _bare(given: Given, memory: Memory, kind: str, base: str, precision: str) -> Mapping[str, Any]:
    memory.begin()
    model, device = _stock(given, kind, base, precision), given.device.type
    source = stock_arms.batches(sequences(given.shape), given.shape.batch, device)
    arm = stock_arms.bare_steps(model, source, device, precision, lr=LR)
    losses = [next(arm) for _ in range(WARM)]
    with seconds(given) as taken:
        losses += [next(arm) for _ in range(given.shape.steps)]
    return _result(given, memory, taken(), torch.stack(losses).mean().item())


class _Clock(TrainerCallback):
    """Seconds from the end of the warming up to the end."""

    def __init__(self, given: Given) -> None:
        self._watch = seconds(given)
        self.seconds = lambda: 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == WARM:
            self.seconds = self._watch.__enter__()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._watch.__exit__(None, None, None)


def _trainer(given: Given, memory: Memory, kind: str, base: str, precision: str) -> Mapping[str, Any]:
    need("accelerate")
    memory.begin()
    clock = _Clock(given)
    arm = stock_arms.trainer(
        _stock(given, kind, base, precision),
        sequences(given.shape),
        given.folder / "trainer",
        given.device.type,
        batch=given.shape.batch,
        precision=precision,
        callbacks=[clock],
        steps=WARM + given.shape.steps,
        lr=LR,
    )
    loss = arm.train().training_loss
    return _result(given, memory, clock.seconds(), loss)
