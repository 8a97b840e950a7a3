"""The driver: turns messages and clocks into events for the round's core, and carries out the actions that follow.

One queue, one consumer. Whatever takes time (calls, the all-reduce, fetching, the disk) is a task that ends in one
event. Deadlines of decisions are the core's; those of bytes stay here.

    driver = Driver(place, talk, callbacks)
    await driver.start()
    await driver.finish_work(update, base)        # the trainer's side
    await driver.leave()
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from dataclasses import replace
from typing import Any

from peer.net import box_bytes, calls
from peer.net.bans import KnownBans
from peer.net.gossip import Gossip
from peer.net.heads import Heads
from peer.net.last_copy import Copies, LastCopy
from peer.net.lines import Lines
from peer.net.node import Node
from peer.net.opening import Opening
from peer.net.own_progress import OwnProgress
from peer.net.pace import Pace
from peer.net.place import Callbacks, Place
from peer.net.records import MAX_ADDRESSES
from peer.net.reducing import Reducing
from peer.net.roster import Roster
from peer.net.talk import Talk
from peer.round import actions as a
from peer.round import events as e
from peer.round import turns
from peer.round.core import Core
from peer.round.report import RoundReport
from peer.round.state import Config, Left
from peer.round.turns import Waiting
from peer.sync.own_work import OwnWork
from peer.sync.shelf import Head, Shelf
from peer.training.codecs.codec import CHUNK_VALUES
from peer.training.update import Update
from protocol import swarm_pb2
from protocol.errors import InputError, RoundAborted
from protocol.parts import Told

logger = logging.getLogger(__name__)

TELL_S = 3.0  # for the others to hear that this member leaves
LEAVE_S = 12.0  # for the core to be done


class Driver:
    """One member's side of all rounds, on an asyncio loop.

    Args:
        node: started.
        on_failure: told of tasks that fail by a mistake of ours; without the vital ones no round is made here any more.
    """

    def __init__(self, node: Node, place: Place, callbacks: Callbacks, on_failure: Told = lambda failure: None) -> None:
        card, identity = place.card, place.identity
        self._save_box, self._callbacks = place.save_box, callbacks
        self.me = identity.peer_id
        self.roster, self.opening = Roster(card.run, card.member_key), Opening(card.run, card.member_key)
        self.shelf = Shelf(place.head)
        if place.candidate is not None:
            self.shelf.propose(place.candidate)
        self.own = OwnWork(card, identity, self.shelf, place.shown)
        self.pace = Pace(place.config.patience)
        config = Config(
            self.me,
            card.run,
            card.spec,
            lambda statement: statement.sign(identity),
            values=place.head.state.parameters.numel(),
            chunk_values=CHUNK_VALUES,
            certificate=place.certificate,
            certificate_of=self.roster.certificate,
            reachable=place.config.can_reduce,
            reduce_only=place.config.reduce_only,
            timing=place.config.timing,
        )
        self.core = Core(config, place.head.last, place.box, time.monotonic())
        self.state = self.core.state
        self.lines = Lines(self.state, self.post)
        self.talk = Talk(node, card.run, self.roster, self.lines, place.certificate, on_failure)
        self.progress = OwnProgress(self.state, self.pace, place.certificate)
        self.bans = KnownBans(card, self.roster, self._expelled)
        self.gossip = Gossip(
            self.talk, self.progress.to, self._heard, lambda: self.state.gossip_s, self._known, self.bans, place.heads
        )
        self.heads = Heads(self.talk, card, self.shelf)
        self.reducing = Reducing(self.talk, card.spec, self.shelf, self.pace, self.stage, callbacks.on_candidate)
        self._last_copy = LastCopy(self.heads, self.talk, card, self.shelf, self.state)
        self._copies = Copies(0, False)
        self._queue: deque[e.Event] = deque()
        self._changed = asyncio.Event()
        self._advanced = asyncio.Event()
        self._gone = asyncio.Event()
        self._telling: asyncio.Task[None] | None = None
        self._began = ""  # digest of the state that the trainer began from

    @property
    def head(self) -> Head:
        return self.shelf.head

    @property
    def addresses(self) -> list[str]:
        """Where others reach this member."""
        return self.progress.addresses

    @addresses.setter
    def addresses(self, found: list[str]) -> None:
        self.progress.addresses = found

    @property
    def waiting_for(self) -> Waiting | None:
        """Why no round is being made; None when nothing is missing."""
        return turns.waiting_for(self.state, time.monotonic())

    def stage(self, name: str) -> None:
        """Say where in the round this member is: one of `peer.round.report.STAGES`."""
        self._callbacks.on_stage(self.state.round, name)

    # ---- starting and stopping ---------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Serve the other members, and begin to talk to them."""
        await calls.serve(self)
        await self.reducing.serve()
        await self.heads.start()
        await self.gossip.start()
        self.talk.keep("clock", self._consume, is_over=self._gone.is_set)

    async def leave(self, *, comes_back: bool = False) -> None:
        """Finish the group that is under way, hand the weight over, tell the others, and stop.

        Args:
            comes_back: at once, from what is on disk: its weight stays its own, and nobody is told.
        """
        if not comes_back:
            await self._leave(hands_over=True)
        self._gone.set()
        self._changed.set()
        await self.talk.close()
        self._advanced.set()

    async def begin_leaving(self) -> None:
        """Make no round any more, and tell the others; what is here they may still fetch, until `leave`."""
        await self._leave(hands_over=False)

    async def _leave(self, *, hands_over: bool) -> None:
        if self._gone.is_set():  # nothing is stepped any more
            return
        self._telling = None
        self.post(e.Leave(hands_over, self._copies.holders))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                while self._telling is None:
                    await asyncio.sleep(0.01)
                await asyncio.wait({self._telling}, timeout=TELL_S)
        self.own.close.set()
        self._advanced.set()

    async def copies(self) -> Copies:
        """Who else has the newest state."""
        self._copies = await self._last_copy.look()
        return self._copies

    # ---- the trainer's side ------------------------------------------------------------------------------------------

    def begin_work(self) -> Head:
        """The trainer starts from the head that this returns."""
        self._began = self.head.digest
        if self.state.leaving is None:
            self.own.close.clear()
        self.stage("work")
        return self.head

    def worked(self, tokens: int | None, step_s: float) -> None:
        """How far the trainer is; tokens None: as before, for what is done before a round has begun is not told."""
        if tokens is None or self._began != self.head.digest:
            tokens = self.state.own.tokens
        self.post(e.Worked(tokens, step_s))

    async def finish_work(self, update: Update, base: str) -> Head:
        """Hand over a finished update, which is used up; returns the next head, whether this update is in it or not.

        Raises:
            RoundAborted: this member is leaving.
        """
        claim = await self.own.hand_over(update, base)
        del update  # as large as the model: not to be held while waiting
        if claim is not None:
            self.post(e.Ready(claim))
        while base == self.head.digest and not self._is_leaving:
            self._advanced.clear()
            await self._advanced.wait()
        if base == self.head.digest:
            raise RoundAborted("this member is leaving")
        return self.head

    @property
    def _is_leaving(self) -> bool:
        leaving = self.state.leaving
        return (leaving is not None and leaving.told) or isinstance(self.state.phase, Left) or self._gone.is_set()

    # ---- the queue ---------------------------------------------------------------------------------------------------

    def post(self, event: e.Event) -> None:
        """Have an event stepped, soon."""
        self._queue.append(event)
        self._changed.set()

    async def _consume(self) -> None:
        """Step one event after the other, until this member has left."""
        while not self._gone.is_set():
            if not self._queue:
                await self._wait()
            await self._step(self._queue.popleft() if self._queue else e.Tick())

    async def _wait(self) -> None:
        """Until there is an event, or it is time to look."""
        self._changed.clear()
        left_s = self.state.wake_at - time.monotonic()
        if left_s > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s if left_s < 3600 else None):
                    await self._changed.wait()

    async def _step(self, event: e.Event) -> None:
        pending = deque([event])
        while pending:
            for action in self.core.step(pending.popleft(), time.monotonic()):
                if isinstance(action, a.SaveBox):  # its result comes before all others
                    pending.appendleft(await self._save(action))
                else:
                    self._do(action)

    async def _save(self, action: a.SaveBox) -> e.Event:
        data = box_bytes.to_bytes(action.box)
        try:
            await asyncio.get_running_loop().run_in_executor(None, self._save_box, data)
        except (OSError, InputError) as error:
            return e.BoxNotSaved(str(error))
        return e.BoxSaved()

    def _do(self, action: a.Action) -> None:
        match action:
            case a.Stage(round, name):
                self._callbacks.on_stage(round, name)
            case a.Aborted(round, attempt, why):
                logger.info("round %d, attempt %d came to nothing: %s; the work is kept", round, attempt, why)
                self._callbacks.on_aborted(round, attempt, why)
            case a.CloseWork():
                self.own.close_work()
            case a.AllReduce(group):
                ready = self.own.ready
                self.reducing.start(group, ready.encoded if ready is not None else None, self.post)
            case a.StopAllReduce(why):
                self.reducing.stop(why)
            case a.Fetch():
                self._spawn(self._fetch(action))
            case a.Commit():
                self._commit(action)
            case a.TellEveryone():
                self._telling = self.talk.spawn(self.gossip.tell_everyone())
            case a.Gone():
                self._gone.set()
            case a.Decline() | a.Join() | a.Accept() | a.ShowVotes():
                future: Any = action.call
                if not future.done():
                    future.set_result(action)
            case _:
                calls.make(self, action)

    async def _fetch(self, action: a.Fetch) -> e.Event:
        event = await self.heads.get(action)
        state = self.shelf.find(action.state)
        if not action.keeps or state is None:
            return event
        try:
            keep, average = self._callbacks.on_candidate, self.shelf.average(action.state)
            await asyncio.get_running_loop().run_in_executor(None, keep, state, average)
        except (OSError, InputError) as error:
            return e.NotFetched(action.state, f"cannot keep a state: {error}")
        return event

    def _spawn(self, coroutine: Any) -> None:
        """A task that ends in an event."""

        async def run() -> None:
            self.post(await coroutine)

        self.talk.spawn(run())

    # ---- a new head --------------------------------------------------------------------------------------------------

    def _commit(self, action: a.Commit) -> None:
        """Stand on a new head; the trainer goes on, while the head is written down."""
        agreement = action.agreement
        state = self.shelf.find(agreement.state)
        assert state is not None, "a state that is not here is not committed"
        head, weights = Head(state, agreement), agreement.weights
        waits = action.may_wait >= 1
        report = RoundReport(
            head.round,
            len(weights),
            sum(weights.values()),
            action.waited_s,
            action.attempts,
            action.counted,
            action.left_out,
            waits=waits,
        )
        self.shelf.advance(head)
        self.own.committed(action)
        self._advanced.set()
        self.talk.spawn(self._keep(head, report))

    async def _keep(self, head: Head, report: RoundReport) -> None:
        kept = e.Kept(head.round)
        try:
            await self._callbacks.on_commit(head, report)
        except (OSError, InputError) as error:
            kept = replace(kept, why=str(error))
        self.post(kept)

    # ---- gossip ------------------------------------------------------------------------------------------------------

    def _known(self) -> set[str]:
        return set(self.state.views)

    def _expelled(self, peers: frozenset[str]) -> None:
        self.post(e.Expelled(peers))
        self.talk.spawn(self.gossip.part(peers))

    def _heard(self, peer: str, message: swarm_pb2.Progress) -> None:
        self.roster.note_addresses(peer, tuple(message.addresses[:MAX_ADDRESSES]))
        self.post(calls.heard(self, peer, message))
