"""The group that a member is in: average, vote, and commit or abort. `Rounds` starts one at a time.

Whatever goes wrong is told to the others, with the member whose fault it is when that is known, so that nobody waits and
the next attempt is made without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import torch

from peer.swarm.allreduce import Reduction
from peer.swarm.averages import Average
from peer.swarm.catch_up import CatchUp
from peer.swarm.group import Group
from peer.swarm.head import Head, Position
from peer.swarm.node import short
from peer.swarm.pace import Pace
from peer.swarm.standing import Standing
from peer.swarm.talk import Talk
from peer.swarm.voting import Voting
from peer.training.aggregate import aggregator
from peer.training.codecs.codec import EncodedUpdate
from peer.training.outer import outer_step
from peer.training.state import SharedState
from protocol import swarm_pb2
from protocol.errors import FormatError, NetworkError, PotluckError
from protocol.run_spec import RunSpec

logger = logging.getLogger(__name__)

FIRST_PART_S = 30.0  # for a stream's first part to come


class RunningGroup:
    """One member's side of the groups that it is in, one after the other.

    Args:
        stage: told "group", "averaged", "vote" and "commit" as they come.
        agreed: takes the new head.
        ended: called when an attempt came to nothing, with the reason.
    """

    def __init__(
        self,
        talk: Talk,
        spec: RunSpec,
        position: Position,
        catch_up: CatchUp,
        standing: Standing,
        pace: Pace,
        voting: Voting,
        stage: Callable[[str], None],
        agreed: Callable[[Head], Awaitable[None]],
        ended: Callable[[str], None],
    ) -> None:
        self._talk, self._spec, self._position, self._catch_up = talk, spec, position, catch_up
        self._standing, self._pace, self._stage = standing, pace, stage
        self._agreed, self._ended = agreed, ended
        self.voting = voting  # of the round in hand
        self.reduction: Reduction | None = None
        self._reduced: Reduction | None = (
            None  # the one before, for others that only reduce and come late for its averages
        )
        self._newest: Group | None = None  # until it is agreed on
        self.since = 0.0  # when it began, time.monotonic()
        self._task: asyncio.Task[None] | None = None
        self._begun = asyncio.Event()

    @property
    def under_way(self) -> bool:
        return self._task is not None and not self._task.done()

    async def serve(self) -> None:
        """Answer the other members of a group."""
        await self._talk.serve("reduce", swarm_pb2.Part, self._answer_reduce, first_s=FIRST_PART_S)
        await self._talk.serve("vote", swarm_pb2.VoteMessage, self._answer_vote)
        await self._talk.serve("abort", swarm_pb2.Abort, self._answer_abort)

    def start(self, group: Group, update: EncodedUpdate | None) -> None:
        """Take part in a group that has been checked; returns at once.

        Args:
            update: this member's own; not needed where the group only completes an earlier one, nor by who only reduces.
        """
        for member in group.members:
            self._talk.book.admit(member.peer_id, member.certificate)
        for reducer in group.reducers:
            self._talk.book.admit(reducer.peer_id, reducer.certificate)
        if not group.complete:
            assert update is not None or self._talk.me not in group.by_peer
            self.reduction = self._reduction(group, update)
        self._position.make_room()
        self._newest, self.since = group, time.monotonic()
        self._task = self._talk.spawn(self._run(group))
        self._task.add_done_callback(functools.partial(self._broke, group))
        self._begun.set()
        self._stage("group")

    def _reduction(self, group: Group, update: EncodedUpdate | None) -> Reduction:
        talk = self._talk
        return Reduction(
            group,
            talk.me,
            update,
            talk.node,
            talk.stream_name("reduce"),
            talk.certificate(),
            self._pace,
            talk.book,
            aggregator(self._spec.sync.clip),
            self._stage,
        )

    def send(self, group: Group) -> None:
        """As its leader: give everyone their group; returns at once."""
        message = group.to_message(self._talk.certificate())
        for peer in self._others(group):
            self._talk.spawn(self._send(peer, message))

    async def finish(self, timeout_s: float) -> None:
        """Wait for the group that is under way, for so long."""
        if self._task is not None and self.under_way:
            await asyncio.wait({self._task}, timeout=timeout_s)

    async def cancel(self, timeout_s: float) -> None:
        """Drop out of it."""
        if self._task is not None and self.under_way:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=timeout_s)

    # ---- from the first part to the commit ---------------------------------------------------------------------------

    async def _run(self, group: Group) -> None:
        try:
            await self._agree(group, await self._candidate(group))
        except PotluckError as error:
            self._failed(group, error.message, error.message)
        except OSError as error:
            self._failed(group, f"cannot keep a vote or a state: {error}", "a full or broken disk")
        finally:
            self._reduced = None if self._talk.me in group.by_peer else self.reduction
            self.reduction = None
            self._begun.clear()

    async def _candidate(self, group: Group) -> SharedState:
        """The state that this member will vote for."""
        if group.complete:
            return await self._catch_up.held_or_fetched(group.complete, [member.peer_id for member in group.members])
        assert self.reduction is not None
        averaged = await self.reduction.run()
        self._stage("averaged")
        candidate = await asyncio.get_running_loop().run_in_executor(None, self._outer_step, averaged)
        results = self.reduction.results
        if results is not None:
            chunks = tuple(results[chunk] for chunk in sorted(results))
            self._position.keep_average(candidate.digest, Average(self._spec.sync.wire, averaged.numel(), chunks))
        return candidate

    def _outer_step(self, averaged: torch.Tensor) -> SharedState:
        candidate = outer_step(self._spec, self._position.head.state, averaged)
        _ = candidate.digest  # hashed here, off the loop
        return candidate

    async def _agree(self, group: Group, candidate: SharedState) -> None:
        voting = self.voting
        self._position.propose(candidate)
        if self._talk.me not in group.by_peer:
            return  # it only reduces: what the members agree on, it hears from them
        self._stage("vote")
        patience_s = 2 * self.reduction.seconds if self.reduction else 0.0
        state = await voting.cast(group, candidate.digest, patience_s)
        if state != candidate.digest:
            logger.warning(
                "round %d: expected state %s…, got %s…; fetching it from the others",
                group.round, state[:12], candidate.digest[:12],
            )  # fmt: skip
            candidate = await self._catch_up.held_or_fetched(state, sorted(voting.voters(group, state)))
        self._stage("commit")
        agreement = voting.agreement(group, state)
        self._standing.kept_their_word(group.leader, group.by_peer)
        self._newest = None
        await self._agreed(Head(candidate, agreement))

    # ---- what the others ask -----------------------------------------------------------------------------------------

    async def _answer_vote(self, message: swarm_pb2.VoteMessage, reader: Any, writer: Any, peer: str) -> None:
        await self.voting.answer(message, reader, writer, peer)

    async def _answer_reduce(self, first: swarm_pb2.Part, reader: Any, writer: Any, peer: str) -> None:
        reduction = self._reduced
        if not _is_of(first, reduction):
            with contextlib.suppress(TimeoutError):  # the sender may have heard of the group before this member
                async with asyncio.timeout(self._pace.most_s):
                    await self._begun.wait()
            reduction = self.reduction
        if reduction is None or not _is_of(first, reduction):
            await self._talk.reply(writer, swarm_pb2.Part(error="I am not in that group"))
        elif peer in reduction.group.everyone:
            await reduction.serve(peer, first, reader, writer)

    async def _answer_abort(self, message: swarm_pb2.Abort, reader: Any, writer: Any, peer: str) -> None:
        self.voting.gave_up(peer, message.group, message.attempt)
        group = self._newest  # it may be over here, for a reason that another member knows better
        if group and (message.group, message.attempt) == (group.digest, group.attempt) and peer in group.everyone:
            self._blame(message.culprit, f"{message.reason[:80]} (by {short(peer)})")
            if self.reduction is not None:
                self.reduction.fail(f"{short(peer)} gave up: {message.reason[:200]}")
        await self._talk.reply(writer, swarm_pb2.Ack())

    # ---- when an attempt comes to nothing ----------------------------------------------------------------------------

    def _broke(self, group: Group, task: asyncio.Task[None]) -> None:
        """It ended by a mistake of this program's, which was told: the others are to go on without this member."""
        if not task.cancelled() and task.exception() is not None:
            self._failed(group, "an error in this program", "an error in its program", self._talk.me)

    def _failed(self, group: Group, reason: str, told: str, culprit: str = "") -> None:
        self._ended(reason)
        culprit = culprit or (self.reduction.culprit if self.reduction else "")
        self._blame(culprit, told)
        message = swarm_pb2.Abort(
            certificate=self._talk.certificate(),
            group=group.digest,
            round=group.round,
            attempt=group.attempt,
            reason=told[:200],
            culprit=culprit,
        )
        for peer in self._others(group):
            self._talk.spawn(self._send_abort(peer, message))

    def _blame(self, culprit: str, reason: str) -> None:
        """Leave a member out of the next attempts; a wrong word costs it no more than that."""
        if culprit and culprit != self._talk.me and self._talk.book.get(culprit) is not None:
            self._standing.blame(culprit, reason)

    def _others(self, group: Group) -> list[str]:
        return [peer for peer in group.everyone if peer != self._talk.me]

    async def _send(self, peer: str, message: swarm_pb2.Group) -> None:
        try:
            reply = await self._talk.call(peer, "group", message, swarm_pb2.GroupReply, times=2.0)
            reason = "" if reply.accepted else f"{short(peer)}: {reply.reason[:200]}"
            culprit = peer if reason and self._standing.balked(peer) else ""
        except (NetworkError, FormatError) as error:
            reason = f"{short(peer)}: {error.message}"
            culprit = "" if self._talk.book.is_alive(peer) else peer
        if reason and self.reduction is not None and self.reduction.group.attempt == message.attempt:
            self.reduction.fail(reason, culprit)

    async def _send_abort(self, peer: str, message: swarm_pb2.Abort) -> None:
        with contextlib.suppress(NetworkError, FormatError):
            await self._talk.call(peer, "abort", message, swarm_pb2.Ack)


def _is_of(message: swarm_pb2.Part, reduction: Reduction | None) -> bool:
    """Whether a part is of this group, in this attempt."""
    return reduction is not None and (message.group, message.attempt) == (
        reduction.group.digest,
        reduction.group.attempt,
    )
