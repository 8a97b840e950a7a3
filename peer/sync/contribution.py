"""What a member brings to a round: its encoded update and its signed claim, and what it had ready for the round before.

An update that missed its round is not thrown away: it is part of its author's next one, with its tokens counted less
(`protocol.statements.Late`); after that it is over. One that waited, because there was no place in the groups for its
author, counts in full, however many rounds it waited. Where the trainer keeps in its model what the others do not have
(`peer.training.work.keeps_own`), it is in there already; else it is added.

What a lossy codec leaves out is not lost either. With local steps it stays in the trainer's model. With gradients it is
the contribution's `residual` (error feedback, Seide et al. 2014), of which `Codec.feedback` is added to the author's
next update, whether this one is part of its round or comes late.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch

from peer.training.codecs.codec import EncodedUpdate, codec
from peer.training.own_state import OwnState
from peer.training.update import Update, keeps_own
from protocol.errors import FormatError
from protocol.keys import PeerIdentity
from protocol.run_spec import RunSpec
from protocol.signed import Signed
from protocol.statements import LATE_DIVISOR, Claim, Late, Start, Trajectory


@dataclass(frozen=True)
class Leftover:
    """Work that was in no round yet. It is kept as it would have travelled: that is all that a second copy may cost."""

    since: int  # the first round that it was done for
    base: str  # state digest that it started from
    encoded: EncodedUpdate | None  # None: it is still in the trainer's model
    tokens: int
    first_batch: int
    batches: int
    flops: int
    waited: bool = False  # its author had no place in the groups: it counts in full

    @classmethod
    def of(cls, update: Update, round: int, base: str, encoded: EncodedUpdate | None) -> Leftover:
        return cls(round, base, encoded, update.tokens, update.first_batch, update.batches, update.flops)

    @property
    def weight(self) -> int:
        """Tokens that it counts for."""
        return self.tokens if self.waited else self.tokens // LATE_DIVISOR

    def statement(self, round: int) -> Late:
        """As a claim for this round has it."""
        waited = round - self.since if self.waited else None
        return Late(
            base=self.base, tokens=self.tokens, first_batch=self.first_batch, batches=self.batches, waited=waited
        )

    def add_to(self, vector: torch.Tensor, tokens: int) -> None:
        """Make `vector`, an update that stands for `tokens`, the mean of itself and this one, by what each counts for.

        Args:
            vector: flat fp32 [N], changed in place.
        """
        if self.encoded is None:
            return
        vector.mul_(tokens / (tokens + self.weight))
        for index, piece in enumerate(vector.split(self.encoded.chunk_values)):
            piece.add_(self.encoded.decode_chunk(index), alpha=self.weight / (tokens + self.weight))

    def with_later(self, later: Leftover) -> Leftover:
        """This work and what was done after it, as one; takes a while for large models."""
        encoded = later.encoded
        if encoded is not None:
            vector = encoded.decode()
            self.add_to(vector, later.tokens)
            encoded = EncodedUpdate.encode(vector, encoded.codec)
        return replace(
            self,
            encoded=encoded,
            tokens=self.tokens + later.tokens,
            batches=self.batches + later.batches,
            flops=self.flops + later.flops,
        )


@dataclass(frozen=True)
class Contribution:
    """This member's finished work of one round: kept until the round is committed, however many attempts it takes."""

    encoded: EncodedUpdate
    claim: Signed[Claim]
    since: float  # when the work was handed over, time.monotonic()
    fresh: Leftover  # the work of this round alone, in case that it misses it
    late: tuple[Leftover, ...]  # that was added to it
    residual: torch.Tensor | None  # [N]: the next `feedback`; None: there is none, or it is in the trainer's model
    own: OwnState | None = None  # where work is audited: what this member carries on from it

    @classmethod
    def make(
        cls,
        update: Update,
        spec: RunSpec,
        run: str,
        round: int,
        base: str,
        identity: PeerIdentity,
        left: tuple[Leftover, ...],
        since: float,
        feedback: torch.Tensor | None = None,
        start: Start | None = None,
    ) -> Contribution:
        """Encode, claim and sign; takes a while for large models.

        Args:
            update: its vector is used up: the residual is made in its memory.
            left: work that was in no round yet, the oldest first: added, or only named where the model has it still.
            feedback: the residual of this member's last update, flat fp32 [N]; not needed afterwards.
            start: where work is audited: where it began; None: with nothing.

        Raises:
            FormatError: the update stands for no tokens, or for more than a claim can name.
        """
        if update.tokens < 1:
            raise FormatError("an update without tokens is no update")
        alone, flops, keeps = None, update.flops, keeps_own(spec)
        late = functools.reduce(Leftover.with_later, left) if left else None
        if late is not None:
            if not keeps:  # encoded without what would be late for the second time
                alone = EncodedUpdate.encode(update.vector, spec.sync.wire)
            late.add_to(update.vector, update.tokens)
            flops += late.flops * late.weight // late.tokens
        encoded, residual = lossy(update.vector, spec, feedback)
        own = carried(update, encoded, residual, spec, round) if update.own is not None else None
        trajectory = Trajectory(precision=update.precision, start=start, end=own.digest) if own is not None else None
        fresh = Leftover.of(update, round, base, None if keeps else alone or encoded)
        made = Claim(
            run=run,
            round=round,
            base=base,
            tokens=update.tokens,
            flops=flops,
            first_batch=update.first_batch,
            batches=update.batches,
            update=encoded.digest,
            late=late.statement(round) if late else None,
            trajectory=trajectory,
        )
        return cls(encoded, made.sign(identity), since, fresh, (late,) if late else (), residual, own)


def lossy(
    vector: torch.Tensor, spec: RunSpec, feedback: torch.Tensor | None
) -> tuple[EncodedUpdate, torch.Tensor | None]:
    """An update with what the one before has left out, as it travels, and what it leaves out itself.

    Args:
        vector: of the update, used up.
    """
    coder = codec(spec.sync.wire)
    if feedback is not None:
        vector.add_(feedback, alpha=coder.feedback)
    encoded = EncodedUpdate.encode(vector, coder.name)
    return encoded, encoded.residual(vector) if coder.feedback and spec.sync.method == "gradient" else None


def carried(
    update: Update, encoded: EncodedUpdate, residual: torch.Tensor | None, spec: RunSpec, round: int
) -> OwnState:
    """What a member has after an update beside the others: what the optimizer remembers, and what was left out.

    Args:
        update: its vector is used up, where there was no `residual`.
    """
    own = update.own
    assert own is not None, "the run is audited"
    if not keeps_own(spec):
        return own.with_left(residual)
    left, fragment = own.left, encoded.residual(update.vector)
    if left is None:
        return own.with_left(fragment)
    left[spec.sync.fragment(round, len(left))] = fragment
    return own.with_left(left)
