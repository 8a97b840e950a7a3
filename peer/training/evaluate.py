"""The loss on the held-out split: what the coordinator publishes a checkpoint by."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from peer.training.data import Dataset
from peer.training.model import TrainableModel

BATCH_SEQUENCES = 16


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
    model: TrainableModel, dataset: Dataset, *, sequences: int | None = None, batch_sequences: int = BATCH_SEQUENCES
) -> HeldOutLoss:
    """Evaluate on the held-out split, or on its first `sequences`."""
    split = dataset.held_out
    count = len(split) if sequences is None else min(sequences, len(split))
    losses = [
        model.loss(*split.batch(range(start, min(start + batch_sequences, count)), model.device)).double()
        for start in range(0, count, batch_sequences)
    ]
    tokens = sum(split.loss_tokens[:count])
    return HeldOutLoss(loss=torch.stack(losses).sum().item() / tokens, sequences=count, tokens=tokens)
