"""What this member brings to the round in hand: how far it is, whether it is ready, and what missed the round before.

The trainer's thread writes how far it is; all else is called on the swarm's loop, by `Rounds`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from dataclasses import dataclass

import torch

from peer.swarm.contribution import Contribution, Leftover, lossy
from peer.swarm.head import Head, Position
from peer.training.codecs.codec import EncodedUpdate
from peer.training.work import Update, keeps_own
from protocol.errors import RoundAborted
from protocol.keys import PeerIdentity
from protocol.run_card import RunCard

logger = logging.getLogger(__name__)


@dataclass
class OwnProgress:
    """How far this member's work is; written by the trainer's thread."""

    tokens: int = 0
    step_s: float = 0.0


class OwnWork:
    """One member's work, from round to round."""

    def __init__(self, card: RunCard, identity: PeerIdentity, position: Position) -> None:
        self._card, self._identity, self._position = card, identity, position
        self.progress = OwnProgress()
        self.close = threading.Event()  # the trainer finishes its micro-batch and hands over
        self.ready: Contribution | None = None  # for the round in hand
        self.late: Leftover | None = None  # missed the round before
        self._is_ready = asyncio.Event()
        self._feedback: torch.Tensor | None = None  # [N], gradients: what encoding has left out so far
        self._part: tuple[str, EncodedUpdate] | None = None  # see `part_of`

    @property
    def waited_s(self) -> float:
        """Since this member has been ready for the round in hand; 0 when it is not."""
        return time.monotonic() - self.ready.since if self.ready is not None else 0.0

    def part_of(self, head: Head) -> EncodedUpdate | None:
        """What a head was made with of this member's work; None: nothing, or it is not known any more."""
        part = self._part
        return part[1] if part is not None and part[0] == head.digest else None

    def close_work(self) -> None:
        """The trainer is to finish its micro-batch and hand over an update, which is as large as the model."""
        self._position.make_room()
        self.close.set()

    async def hand_over(self, update: Update, base: str) -> None:
        """Take the trainer's update, which is used up: for the round in hand, or as late work when that has gone by."""
        if self.ready is None:
            await (self._make_ready if base == self._position.head.digest else self._keep_late)(update, base)

    async def _make_ready(self, update: Update, base: str) -> None:
        round, since = self._position.round, time.monotonic()
        run, spec, feedback = self._card.run, self._card.spec, self._feedback
        arguments = (update, spec, run, round, base, self._identity, self.late, since, feedback)
        del feedback  # as large as the model
        made = await asyncio.get_running_loop().run_in_executor(None, Contribution.make, *arguments)
        self._feedback = made.residual
        del arguments
        if base != self._position.head.digest:
            self._missed(made.fresh)  # the round went on meanwhile
            return
        self.progress.tokens = made.claim.tokens
        self.ready = made
        self._is_ready.set()

    async def _keep_late(self, update: Update, base: str) -> None:
        """The round went on without this work."""
        if not update.tokens:
            return
        spec, encoded = self._card.spec, None
        if not keeps_own(spec):
            arguments = (update.vector, spec, self._feedback)
            encoded, self._feedback = await asyncio.get_running_loop().run_in_executor(None, lossy, *arguments)
        self._missed(Leftover.of(update, self._position.head.round, base, encoded))

    def _missed(self, work: Leftover) -> None:
        """Work missed its round: keep it for the next one, unless it is too old by now or the round was made with other work."""
        agreement = self._position.head.agreement
        if agreement is not None and agreement.base == work.base and self._identity.peer_id not in agreement.weights:
            self.late = work
            logger.info(
                "round %d went on without %d tokens of this peer; they count less in the next", work.round, work.tokens
            )

    async def wait_ready(self, timeout_s: float) -> Contribution:
        """This member's contribution, once the trainer has handed over. Raises: RoundAborted: not in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._is_ready.wait()
        if self.ready is None:
            raise RoundAborted(f"own work was not finished within {timeout_s:.0f} s")
        return self.ready

    def next_round(self) -> None:
        """A new head has been taken: what was ready is part of it, or missed it."""
        ready, self.ready = self.ready, None
        self.late = self._part = None  # counted now, or too old
        head = self._position.head
        if ready is not None:
            self._missed(ready.fresh)
            is_next = head.agreement is not None and head.agreement.base == ready.claim.base
            if is_next and self._identity.peer_id in head.weights and keeps_own(self._card.spec):
                self._part = head.digest, ready.encoded
        self._is_ready.clear()
        self.progress.tokens = 0
        self.close.set()
