"""What a peer brings to a round, before it is encoded, and what stays with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from peer.training.codecs.codec import codec
from peer.training.own_state import OwnState
from peer.training.precision import Precision
from protocol.run_spec import RunSpec


@dataclass(frozen=True)
class StepResult:
    """What one micro-batch came to.

    Args:
        tokens: predicted, that is trained on; padding and masked tokens not counted.
        sequences: how many were drawn.
        loss: mean for each predicted token, a tensor on the device: `.item()` waits for it.
    """

    tokens: int
    sequences: int
    loss: torch.Tensor


@dataclass(frozen=True, eq=False)
class Update:
    """What a peer brings to a round.

    Args:
        vector: flat fp32 on the CPU: [N], or as many values as the round's fragment has.
        tokens: trained on in this round.
        first_batch: number of the first draw, in sequences.
        batches: how many sequences were drawn.
        flops: spent on it, by `TrainableModel.flops`.
        own: where work is audited: what this peer carries into its next round; what is left of the update, `left`, is
            the whole model's where a round averages a fragment of it, else not in it yet.
        precision: where work is audited: of the passes, the lowest.
        jump: how many of the sequences were drawn before the round's base was agreed (`LocalWork.carry_on`).
    """

    vector: torch.Tensor
    tokens: int
    first_batch: int
    batches: int
    flops: int
    own: OwnState | None = None
    precision: Precision = "fp32"
    jump: int = 0


def carries_left(spec: RunSpec) -> bool:
    """Whether what an update leaves out counts later: in this peer's model, or added to its next gradient."""
    return keeps_own(spec) or (spec.sync.method == "gradient" and codec(spec.sync.wire).feedback > 0)


def keeps_own(spec: RunSpec) -> bool:
    """Whether a peer of this run may have done more than the others have of it when it begins a round."""
    sync = spec.sync
    return sync.method == "diloco" and (sync.overlap or sync.fragments > 1 or codec(sync.wire).feedback > 0)
