"""Reducing: this member's part in the all-reduce of its groups, one after the other, and the state that each gives."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import torch

from peer.net.allreduce import STREAM, Reduction
from peer.net.pace import Pace
from peer.net.talk import Talk
from peer.round.events import Averaged, Event, NotAveraged
from peer.round.group import Group
from peer.sync.averages import Average
from peer.sync.shelf import Shelf
from peer.training.codecs.codec import EncodedUpdate
from peer.training.outer import outer_step
from peer.training.robust import aggregator
from peer.training.state import SharedState
from protocol import swarm_pb2
from protocol.errors import PotluckError
from protocol.run_spec import RunSpec

FIRST_PART_S = 30.0  # for a stream's first part to come


class Reducing:
    """Runs the all-reduces, and serves the others' streams.

    Args:
        stage: told "send", "reduce" and "averaged" as they come.
        keep: in a thread: has what led to a state on disk when it returns. Raises InputError.
    """

    def __init__(
        self,
        talk: Talk,
        spec: RunSpec,
        shelf: Shelf,
        pace: Pace,
        stage: Callable[[str], None],
        keep: Callable[[SharedState, Average | None], None],
    ) -> None:
        self._talk, self._spec, self._shelf, self._pace = talk, spec, shelf, pace
        self._stage, self._keep = stage, keep
        self.reduction: Reduction | None = None
        self._before: Reduction | None = None  # for others that only reduce and come late for its averages
        self._begun = asyncio.Event()

    async def serve(self) -> None:
        """Answer the other members of a group."""
        await self._talk.serve(STREAM, swarm_pb2.Part, self._answer, first_s=FIRST_PART_S)

    def start(self, group: Group, update: EncodedUpdate | None, post: Callable[[Event], None]) -> None:
        """Average with a group; returns at once, and posts what came of it.

        Args:
            update: this member's own; not needed by who only reduces.
        """
        for member in group.members:
            self._talk.roster.check(member.peer, member.certificate)
        for reducer in group.reducers:
            self._talk.roster.check(reducer.peer, reducer.certificate)
        how = aggregator(self._spec.sync.clip, self._spec.sync.aggregate)
        mine = update if self._talk.me in group.by_peer else None
        self.reduction = Reduction(group, mine, self._talk, self._pace, how, self._stage)
        self._shelf.make_room()
        self._begun.set()
        self._talk.spawn(self._run(self.reduction, post))

    def stop(self, why: str) -> None:
        """Drop out of it."""
        if self.reduction is not None:
            self.reduction.fail(why)

    async def _run(self, reduction: Reduction, post: Callable[[Event], None]) -> None:
        group = reduction.group
        event: Event = NotAveraged(group.digest, group.attempt, "an error in this program", self._talk.me)
        try:
            state = await self._candidate(reduction)
            event = Averaged(group.digest, group.attempt, state.digest, reduction.seconds)
        except PotluckError as error:
            event = NotAveraged(group.digest, group.attempt, error.message, reduction.culprit)
        except OSError as error:
            event = NotAveraged(group.digest, group.attempt, f"cannot keep a state: {error}", self._talk.me)
        finally:
            if self.reduction is reduction:
                self._before = None if self._talk.me in group.by_peer else reduction
                self.reduction = None
                self._begun.clear()
            post(event)

    async def _candidate(self, reduction: Reduction) -> SharedState:
        """The state that the group's average leads to; on disk before anyone hears of it."""
        averaged = await reduction.run()
        self._stage("averaged")
        loop = asyncio.get_running_loop()
        candidate = await loop.run_in_executor(None, self._outer_step, averaged)
        results, average = reduction.results, None
        if results is not None:
            chunks = tuple(results[chunk] for chunk in sorted(results))
            average = Average(self._spec.sync.wire, averaged.numel(), chunks)
        await loop.run_in_executor(None, self._keep, candidate, average)
        if average is not None:
            self._shelf.keep_average(candidate.digest, average)
        self._shelf.propose(candidate)
        return candidate

    def _outer_step(self, averaged: torch.Tensor) -> SharedState:
        candidate = outer_step(self._spec, self._shelf.head.state, averaged)
        _ = candidate.digest  # hashed here, off the loop
        return candidate

    async def _answer(self, first: swarm_pb2.Part, reader: Any, writer: Any, peer: str) -> None:
        reduction = self._before
        if not _is_of(first, reduction):
            with contextlib.suppress(TimeoutError):  # the sender may have heard of the group before this member
                async with asyncio.timeout(self._pace.most_s):
                    await self._begun.wait()
            reduction = self.reduction
        if reduction is None or not _is_of(first, reduction):
            await self._talk.reply(writer, swarm_pb2.Part(error="I am not in that group"))
        elif peer in reduction.group.everyone:
            await reduction.serve(peer, first, reader, writer)


def _is_of(message: swarm_pb2.Part, reduction: Reduction | None) -> bool:
    """Whether a part is of this group, in this attempt."""
    return reduction is not None and (message.group, message.attempt) == (
        reduction.group.digest,
        reduction.group.attempt,
    )
