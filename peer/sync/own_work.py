"""This member's own work as it travels: what is ready for the round in hand, and what was in no round yet.

The core says what becomes of it with each head (`peer.round.actions.Commit`); the tensors stay here.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from dataclasses import replace
from typing import Any, Protocol

import torch

from peer.round.actions import Commit
from peer.sync.contribution import Contribution, Leftover, lossy
from peer.sync.shelf import Head, Shelf
from peer.training.codecs.codec import EncodedUpdate
from peer.training.own_state import OwnState
from peer.training.update import Update, keeps_own
from peer.training.work import LocalWork
from protocol.digests import Digest
from protocol.errors import InputError
from protocol.keys import PeerIdentity
from protocol.run_card import RunCard
from protocol.signed import Signed
from protocol.statements import Claim, Jump, Start

logger = logging.getLogger(__name__)


class Shown(Protocol):
    """Where work that may be replayed is kept: `peer.disk.shown_work`."""

    def keep(self, claim: Signed[Claim], own: OwnState, update: EncodedUpdate) -> None: ...

    def agreed(self, claim: Digest) -> None: ...

    def standing(self) -> Start | None: ...

    def load_own(self, digest: Digest) -> OwnState | None: ...


class OwnWork:
    """One member's work, from round to round. All but `close` is used on the swarm's loop.

    Args:
        shown: where work is audited. There work begins where the last that was agreed on ended, and what missed its
            round is dropped: what nobody can replay earns nothing.
    """

    def __init__(self, card: RunCard, identity: PeerIdentity, shelf: Shelf, shown: Shown | None = None) -> None:
        self._card, self._identity, self._shelf, self._shown = card, identity, shelf, shown
        self._stands = shown.standing() if shown is not None else None  # what work begins with
        self.is_carried = False  # what the trainer has finished last is what led to it
        self.close = threading.Event()  # the trainer finishes its micro-batch and hands over
        self.ready: Contribution | None = None  # for the round in hand
        self._is_left = False  # the trainer has begun anew since, and does not stand where that ended
        self._left: tuple[Leftover, ...] = ()  # in no round yet, the oldest first; made one when the next update comes
        self._last: Commit | None = None
        self._feedback: torch.Tensor | None = None  # [N], gradients: what encoding has left out so far
        self._part: tuple[str, EncodedUpdate] | None = None  # see `part_of`

    @property
    def waiting_tokens(self) -> int:
        """Of work that was in no round yet, and will be."""
        return sum(work.weight for work in self._left)

    def part_of(self, head: Head) -> EncodedUpdate | None:
        """What a head was made with of this member's work; None: nothing, or it is not known any more."""
        part = self._part
        return part[1] if part is not None and part[0] == head.digest else None

    def begin(self, work: LocalWork, head: Head) -> bool:
        """Have the trainer's work stand on a head; whether some of the work for it is done. The trainer's thread."""
        if work.stands_on(head.digest):
            return True  # this peer stood aside, and the others are where they were
        sent = self.part_of(head)
        follows = head.agreement is not None and head.agreement.base == work.base
        if self._shown is not None and not self._goes_on(work, follows and sent is not None):
            self._is_left = self.ready is not None
            work.go_on_from(head.state, self._stands_at(self._shown))
            return False
        if not follows or (sent is None and work.peer_id in head.weights):
            work.begin(head.state)  # its first work, or it missed more than a round, or does not know its part
            return False
        work.rebase(head.state, sent)
        return True

    def _goes_on(self, work: LocalWork, knows_part: bool) -> bool:
        """Whether the work is where the last that was agreed on ended, so that nothing need be loaded."""
        stands = work.is_carried_on or not work.is_under_way
        return self.is_carried and stands and (knows_part or not keeps_own(self._card.spec))

    def _stands_at(self, shown: Shown) -> OwnState | None:
        own = shown.load_own(self._stands.own) if self._stands is not None else None
        if own is None:
            self._stands = None
        if self._card.spec.sync.method == "gradient":
            self._feedback = own.left if own is not None else None
        return own

    def close_work(self) -> None:
        """The trainer is to finish its micro-batch and hand over an update, which is as large as the model."""
        self._shelf.make_room()
        self.close.set()

    async def hand_over(self, update: Update, base: str) -> Signed[Claim] | None:
        """Take the trainer's update, which is used up; returns the claim to it, where it is for the round in hand."""
        if self.ready is not None:
            return None
        self.is_carried = False
        if base != self._shelf.head.digest:
            await self._keep_late(update, base)
            return None
        round, since = self._shelf.head.round + 1, time.monotonic()
        run, spec, feedback = self._card.run, self._card.spec, self._feedback
        began = () if self._shown is None else (self._begun(update),)
        arguments = (update, spec, run, round, base, self._identity, self._left, since, feedback, *began)
        del feedback  # as large as the model
        made = await asyncio.get_running_loop().run_in_executor(None, self._make, *arguments)
        if made is None:
            return None
        self._feedback = made.residual
        del arguments
        if base != self._shelf.head.digest:
            self._keep(made.fresh)  # the round went on meanwhile
            return None
        self.ready, self._left, self._is_left = made, (), False
        return made.claim

    def _begun(self, update: Update) -> Start | None:
        """Where this work began."""
        if self._stands is None or not update.jump:
            return self._stands
        assert self._last is not None and self._part is not None, "work is carried on only where both are known"
        jump = Jump(after=update.jump, base=self._last.agreement.base, update=self._part[1].digest)
        return self._stands.model_copy(update={"jump": jump})

    def _make(self, *arguments: Any) -> Contribution | None:
        """In a thread; None: what a replay would need cannot be kept, so nothing is claimed."""
        made = Contribution.make(*arguments)
        if self._shown is not None and made.own is not None:
            try:
                self._shown.keep(made.claim, made.own, made.encoded)
            except (InputError, OSError) as error:
                logger.warning("round %d is left out: its work could not be shown: %s", made.claim.value.round, error)
                return None
        return made

    async def _keep_late(self, update: Update, base: str) -> None:
        """The round went on without this work."""
        if not update.tokens or self._shown is not None:
            return
        spec, encoded = self._card.spec, None
        if not keeps_own(spec):
            arguments = (update.vector, spec, self._feedback)
            encoded, self._feedback = await asyncio.get_running_loop().run_in_executor(None, lossy, *arguments)
        self._keep(Leftover.of(update, self._shelf.head.round, base, encoded))

    def _keep(self, work: Leftover) -> None:
        """Keep work for the next claim, unless it is too old or the round was made with other work of this member."""
        last = self._last
        if last is None or last.counted or self._shown is not None:
            return
        round = last.agreement.round
        if 0 < round - work.since + 1 <= last.may_wait:
            self._left = (*self._left, replace(work, waited=True))
            logger.info("round %d was made by others; %d tokens of this peer wait for its turn", round, work.tokens)
        elif last.is_late and work.since == round and work.base == last.agreement.base:
            self._left = (replace(work, waited=False),)
            logger.info(
                "round %d went on without %d tokens of this peer; they count less in the next", round, work.tokens
            )

    def committed(self, commit: Commit) -> None:
        """A new head has been taken: what was ready is part of it, or is kept if it may be."""
        ready, self.ready = self.ready, None
        if self._shown is not None:
            self._settle(ready, commit, self._shown)
        left, self._left, self._part, self._last = self._left, (), None, commit
        for work in (*ready.late, ready.fresh) if ready is not None else left:
            self._keep(work)
        if ready is not None and commit.counted and keeps_own(self._card.spec):
            is_next = commit.agreement.base == ready.claim.value.base
            self._part = (commit.agreement.state, ready.encoded) if is_next else None
        self.close.set()

    def _settle(self, ready: Contribution | None, commit: Commit, shown: Shown) -> None:
        """Whether work of this member is part of a round: its next work begins where that ended."""
        mine = next((made for made in commit.agreement.claims if made.by == self._identity.peer_id), None)
        if mine is None or mine.value.trajectory is None:
            return
        self._stands = Start(round=mine.value.round, own=mine.value.trajectory.end)
        self.is_carried = ready is not None and ready.claim.digest == mine.digest and not self._is_left

        def note() -> None:
            try:
                shown.agreed(mine.digest)
            except (InputError, OSError) as error:
                logger.warning("after a restart this peer begins with nothing of its own: %s", error)

        asyncio.get_running_loop().run_in_executor(None, note)
