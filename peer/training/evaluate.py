"""The loss on the held-out split: what the coordinator publishes a checkpoint by. The host measures it, or a member."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from peer.training.data import Dataset
from peer.training.model import TrainableModel
from peer.training.state import SharedState

BATCH_SEQUENCES = 16  # on a card, which wants many
_CPU_TOKENS = 256  # at once: more take memory, and are no faster there


@dataclass(frozen=True)
class HeldOutLoss:
    """How well a model predicts the held-out split.

    Args:
        loss: mean for each predicted token, nats.
        sequences: how many were read.
        tokens: how many were predicted.
    """

    loss: float
    sequences: int
    tokens: int


@torch.no_grad()
def held_out_loss(
    model: TrainableModel,
    dataset: Dataset,
    *,
    sequences: int | None = None,
    batch_sequences: int | None = None,
    go_on: Callable[[], None] = lambda: None,
) -> HeldOutLoss:
    """Evaluate on the held-out split, or on its first `sequences`.

    Args:
        batch_sequences: at once; None: what suits the device. The loss is the same to rounding.
        go_on: called before each batch; what it raises ends this.
    """
    split = dataset.held_out
    count = len(split) if sequences is None else min(sequences, len(split))
    if batch_sequences is None:
        few = model.device.type == "cpu"
        batch_sequences = min(max(_CPU_TOKENS // split.longest, 1), BATCH_SEQUENCES) if few else BATCH_SEQUENCES
    losses = []
    for start in range(0, count, batch_sequences):
        go_on()
        rows = range(start, min(start + batch_sequences, count))
        losses.append(model.loss(*split.batch(rows, model.device)).cpu().double())  # an Apple GPU has no fp64
    tokens = sum(split.loss_tokens[:count])
    return HeldOutLoss(loss=torch.stack(losses).sum().item() / tokens, sequences=count, tokens=tokens)


@contextmanager
def standing_in(model: TrainableModel, state: SharedState) -> Iterator[None]:
    """Inside the block a model that is being trained has a state's parameters; after it its own again.

    These wait in main memory: a card has no room for both.
    """
    own_N = model.flat_N.to("cpu", copy=True)
    try:
        model.write(state.parameters)
        yield
    finally:
        model.flat_N.copy_(own_N)
