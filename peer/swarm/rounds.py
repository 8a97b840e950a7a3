"""The rounds, as one member lives them: gather, average, agree, and start over from the new state.

    progress   members tell each other every fraction of a second what they have done; nobody waits for that
    propose    when the round's target is reached, the first in line asks all for their claims (and their promise)
    group      it sends the claims round; every member checks them and averages with the others
    vote       each signs the digest of the state it got; a majority commits it, anything else changes nothing

Who is first in line follows from a hash of round and peer id, the next ones step in when it is silent, and the rules in
`peer.round_rules` keep two of them from doing harm. All of this runs on one asyncio loop; the trainer's thread only hands
over its update and waits for the next head.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from peer.round_rules import BallotBox, Bound
from peer.swarm import leading
from peer.swarm.catch_up import CatchUp
from peer.swarm.company import Company
from peer.swarm.contribution import Contribution
from peer.swarm.group import Group, Member, Reducer, Rules
from peer.swarm.head import Head, Position
from peer.swarm.last_copy import Copies, LastCopy
from peer.swarm.members import CALL_S, MemberBook
from peer.swarm.node import Node
from peer.swarm.own_work import OwnWork
from peer.swarm.pace import Limits, Pace
from peer.swarm.progress import Gossip
from peer.swarm.round_length import RoundLength
from peer.swarm.running_group import RunningGroup
from peer.swarm.standing import Standing
from peer.swarm.talk import Talk
from peer.swarm.voting import Voting
from peer.training.work import Update
from protocol import swarm_pb2
from protocol.agreement import MAX_GROUP
from protocol.backoff import Backoff
from protocol.errors import (
    FormatError,
    InputError,
    PotluckError,
    RefusedError,
    RoundAborted,
    VerificationError,
)
from protocol.keys import PeerIdentity
from protocol.parts import Told
from protocol.run_card import RunCard
from protocol.signed import Signed
from protocol.statements import MAX_ATTEMPT, Farewell, Vote

logger = logging.getLogger(__name__)

TICK_S = 0.05
NEXT_IN_LINE_S = 1.5  # before the next in line proposes in place of a silent one
HOLD_MOST_S = 3.0  # that a round which is due is held back, for one who may be gone is given up soon, and all work on
PROPOSE_LEAST_S = 3.0  # members have this long, or three micro-batches, to answer a proposal
PROPOSE_MOST_S = 60.0
RETRY_MOST_S = 5.0  # between two attempts at one round
FREE_ATTEMPTS, ATTEMPTS_PER_S = 1000, 20  # how far attempts may count up in a round, whoever counts them
MISSED_MANY = 5  # rounds in a row: then the owner is told
LOOK_WHILE_BUSY_S = 3.0  # a group that takes longer is given up for a newer head that others stand on
LEAVE_S = 5.0  # to finish a group that is under way
TELL_S = 1.0  # for the others to hear that this member begins to leave

# where a member is in a round: `Rounds` says each as it comes, for displays and for tests that break things at one of them
STAGES = ("work", "propose", "promise", "group", "send", "reduce", "averaged", "vote", "voted", "commit", "kept")


@dataclass(frozen=True)
class RoundReport:
    """What became of a round, for people."""

    round: int
    members: int
    tokens: int
    waited_s: float  # from the end of one's own work to the new state
    attempts: int
    took_part: bool
    left_out: tuple[tuple[str, str], ...] = ()  # (peer id, why) of those that the round was made without


class Rounds:
    """One member's side of all rounds.

    Args:
        node: started.
        certificate: gives this member's certificate of the moment.
        box: its promises and votes, restored.
        head: where it stands.
        on_commit: called on the loop with each new head; whatever must be kept is kept when it returns.
        can_reduce: whether others can open streams to this member.
        reduce_only: it has no trainer, and its certificate says that it may reduce for all.
        on_stage: called on the loop with (round, one of `STAGES`); must return at once.
        on_failure: told of tasks that fail by a mistake of ours; without the vital ones no round is made here any more.
    """

    def __init__(
        self,
        node: Node,
        identity: PeerIdentity,
        card: RunCard,
        certificate: Callable[[], str],
        box: BallotBox,
        head: Head,
        on_commit: Callable[[Head, RoundReport], Awaitable[None]],
        *,
        can_reduce: bool = True,
        reduce_only: bool = False,
        limits: Limits | None = None,
        on_stage: Callable[[int, str], None] = lambda round, stage: None,
        on_failure: Told = lambda failure: None,
    ) -> None:
        self._on_stage = on_stage
        self._identity, self._card, self._box = identity, card, box
        self._on_commit, self._can_reduce, self._reduce_only = on_commit, can_reduce, reduce_only
        self.pace, self._standing = Pace(limits or Limits()), Standing()
        self.me = identity.peer_id
        self.book = MemberBook(card.run, card.member_key)
        self.position = Position(head)
        self.own = OwnWork(card, identity, self.position)
        self.addresses: list[str] = []
        self.company = Company(self.me, card.spec, self.book, self._standing, self.position)
        self._talk = Talk(node, card.run, self.book, certificate, on_failure)
        self.gossip = Gossip(self._talk, self._own_progress, lambda: self.position.round)
        self.catch_up = CatchUp(self._talk, card, self.position, lambda: self.company.named)
        self._last_copy = LastCopy(self.catch_up, self._talk, card, self.position, self.company)
        self._copies = Copies(0, False)
        self.group = RunningGroup(
            self._talk,
            card.spec,
            self.position,
            self.catch_up,
            self._standing,
            self.pace,
            self._new_voting(None),
            self.stage,
            self._advance,
            self._group_ended,
        )
        self._length = RoundLength(overlap=card.spec.sync.overlap, fragments=card.spec.sync.fragments)
        self._round_started = time.monotonic()
        self._due_since: float | None = None
        self._missed_rounds = 0  # in a row
        self._advancing = False  # a new head is being taken and written down
        self._left_out: tuple[tuple[str, str], ...] = ()  # by the leader's word, in the group of the round in hand
        self._advanced = asyncio.Event()
        self._leaving = False
        self._engaged_until = 0.0  # bound to a leader until then
        self._attempts = 0
        self._catching: tuple[str, asyncio.Task[Head | None]] | None = None  # from which head
        self._search_at, self._search_backoff = 0.0, Backoff(1.0, 30.0)
        self._retry_at = 0.0
        self._expecting = ""  # the leader that has this member's claim, until it sends the group

    @property
    def head(self) -> Head:
        return self.position.head

    @property
    def talk(self) -> Talk:
        return self._talk

    def stage(self, name: str) -> None:
        """Say where in the round this member is: one of `STAGES`."""
        self._on_stage(self.position.round, name)

    # ---- starting and stopping -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Serve the other members, and begin to talk to them."""
        self._tell_own_farewells()
        serve = self._talk.serve
        await serve("propose", swarm_pb2.Proposal, self._answer_proposal)
        await serve("group", swarm_pb2.Group, self._answer_group)
        await self.group.serve()
        await self.catch_up.start()
        await self.gossip.start()
        self._talk.keep("clock", self._clock, is_over=lambda: self._leaving)

    async def leave(self, *, comes_back: bool = False) -> None:
        """Finish the group that is under way, tell the others, and stop.

        Args:
            comes_back: at once, from what is on disk: its weight stays its own, and nobody is told.
        """
        await self._stop_working()
        if not self._reduce_only and not comes_back:  # nobody waits for the word of who only reduces
            await self._hand_over()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CALL_S):
                if not comes_back:
                    await self.gossip.tell_everyone()
        await self._talk.close()
        self._advanced.set()

    async def begin_leaving(self) -> None:
        """Make no round any more, and tell the others; what is here they may still fetch, until `leave`."""
        await self._stop_working()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TELL_S):
                await self.gossip.tell_everyone()

    async def _stop_working(self) -> None:
        await self.group.finish(LEAVE_S)
        self._leaving = True
        self.own.close.set()

    async def copies(self) -> Copies:
        """Who else has the newest state."""
        self._copies = await self._last_copy.look()
        return self._copies

    async def _hand_over(self) -> None:
        """Name who speaks for this member's weight from now on, so that the others need not wait for it."""
        here, weights, holders = self.head.digest, self.head.weights, self._copies.holders
        staying = [view for view in self.book.alive() if not view.leaving and not view.reduce_only]
        if self.head.round:  # a stranger that only says that it stands here would have this weight for good
            staying = [view for view in staying if view.peer_id in weights or view.peer_id in holders]
        if not staying:
            return
        successor = max(
            staying, key=lambda view: (view.base == here, weights.get(view.peer_id, 0), view.peer_id)
        ).peer_id
        for round in (self.position.round, self.position.round + 1):  # its claim may be in the agreement to come

            def sign(attempt: int, round: int = round) -> bytes:
                said = Farewell(run=self._card.run, round=round, successor=successor, attempt=attempt)
                return said.sign(self._identity).data

            with contextlib.suppress(Bound, OSError, InputError):  # it has voted; or its disk is full: it is waited for
                await asyncio.get_running_loop().run_in_executor(None, self._box.say_farewell, round, sign)
        self._tell_own_farewells()

    def _tell_own_farewells(self) -> None:
        """Those that this member has said, also before a restart."""
        own = [data for round, (_, data) in self._box.farewells.items() if round >= self.position.round]
        self.book.take_farewells(own, self.position.round)

    # ---- the trainer's side ----------------------------------------------------------------------------------------

    def begin_work(self) -> Head:
        """The trainer starts from the head that this returns."""
        self.own.progress.tokens = 0
        if not self._leaving:
            self.own.close.clear()
        self.stage("work")
        return self.head

    async def finish_work(self, update: Update, base: str) -> Head:
        """Hand over a finished update, which is used up; returns the next head, whether this update is part of it or not.

        Raises:
            RoundAborted: this member is leaving.
        """
        await self.own.hand_over(update, base)
        del update  # as large as the model: not to be held while waiting
        while base == self.head.digest and not self._leaving:
            self._advanced.clear()
            await self._advanced.wait()
        if base == self.head.digest:
            raise RoundAborted("this member is leaving")
        return self.head

    # ---- the clock: catching up, leading -----------------------------------------------------------------------------

    async def _clock(self) -> None:
        """Looks many times a second whether there is something to do, until this member leaves."""
        while not self._leaving:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            self._release(now)
            if self._leaving or self._advancing:
                continue
            busy = self._busy(now)
            try:
                # a group under way gets its time, but the others may have gone on without it
                if not busy or now - self.group.since > LOOK_WHILE_BUSY_S + 2 * self.pace.usual_s:
                    head = self._caught_up(now)
                    if head is not None:
                        await self._follow(head)
                        continue
                if not busy and now >= self._retry_at and self._my_turn(now):
                    await self._lead()
            except PotluckError as error:
                self._aborted(error.message)
            except OSError as error:  # what must be on disk is not: as if the attempt had failed
                self._aborted(f"cannot keep a promise or a state: {error}")

    def _caught_up(self, now: float) -> Head | None:
        """A better head that has been fetched. The search runs beside: whoever is slow to give it holds up nothing else."""
        if self._catching is None:
            if now < self._search_at:
                return None
            self._catching = (self.head.digest, self._talk.spawn(self.catch_up.better_head(now)))
        searched_from, task = self._catching
        if not task.done():
            return None
        self._catching = None
        if task.cancelled() or task.exception() is not None:  # which was told where it ended
            self._search_at = now + self._search_backoff.failed()
            return None
        self._search_backoff.worked()
        return task.result() if searched_from == self.head.digest else None

    def _busy(self, now: float) -> bool:
        """Whether this member is in a group, or bound to a leader that is still there."""
        if self.group.under_way:
            return True
        leader = self._box.leader
        return now < self._engaged_until and (leader == self.me or self.book.is_alive(leader))

    def _release(self, now: float) -> None:
        """Stop waiting for the group of a leader that has this member's claim."""
        if self._expecting and now >= self._engaged_until and not self._busy(now):
            self._strike(self._expecting)

    def _strike(self, leader: str) -> None:
        self._expecting = ""
        self._standing.strike(leader)

    async def _follow(self, head: Head) -> None:
        standing = self.head.digest
        await self.group.cancel(LEAVE_S)
        if self._advancing or self.head.digest != standing:
            return  # it committed at the last moment
        if self.own.ready is not None or self.own.progress.tokens:
            logger.info("round %d went on without this peer; going on from round %d", self.position.round, head.round)
        await self._advance(head)

    def _own_progress(self, to: str) -> swarm_pb2.Progress:
        """What to tell one member of this one."""
        box, round = self._box, self.position.round
        return swarm_pb2.Progress(
            certificate=self._talk.certificate(),
            round=round,
            base=self.head.digest,
            tokens=self.own.progress.tokens,
            leaving=self._leaving,
            attempt=max(box.attempt, 0) if box.round == round else 0,
            addresses=self.addresses[:16],
            step_s=self.own.progress.step_s,
            reduce_only=self._reduce_only,
            from_you_bytes_s=self.pace.arrived_from(to),
            up_bytes_s=self.company.up_bytes_s(),
            farewells=self.book.to_relay(),
            hears=len(self.book.alive()),
        )

    def _my_turn(self, now: float) -> bool:
        """Whether the round should be closed now and it is for this member to do it."""
        spec, company = self._card.spec, self.company
        sync, rounds = spec.sync, spec.run.rounds
        company.waiting_for = ""
        if self.own.progress.tokens == 0 or (rounds and self.position.round > rounds):
            return False
        tokens = self.own.progress.tokens + sum(view.tokens for view in company.others())
        reached = sync.round_tokens is not None and tokens >= sync.round_tokens
        seconds = self._length.seconds if sync.round_seconds == "auto" else sync.round_seconds
        timed_out = seconds is not None and now - self._round_started >= seconds
        if not (reached or timed_out) or not company.is_enough():
            self._due_since = None
            return False
        if self._due_since is None:
            self._due_since = now
        place, due_s = company.place_in_line(), now - self._due_since
        if place is None or due_s < place * NEXT_IN_LINE_S:
            return False
        return due_s >= HOLD_MOST_S or not company.falls_silent()

    # ---- leading -----------------------------------------------------------------------------------------------------

    async def _lead(self) -> None:
        """Ask everyone for claim and promise, and run the group that comes of it."""
        round, rules, others = self.position.round, self._rules(), self.company.to_ask()
        reducers = [Reducer(view.peer_id, self.book.certificate(view.peer_id), 1) for view in self.company.reducers()]
        heard = [view.attempt + 1 for view in others if 0 < view.attempt < self._last_attempt()]
        attempt = max([self._box.next_attempt(round), self.book.farewells(round).from_attempt, *heard])
        self._check_attempt(attempt)
        timeout_s = self._propose_timeout()
        await self._promise(round, attempt, self.me, timeout_s)
        self.stage("propose")
        proposal = swarm_pb2.Proposal(
            certificate=self._talk.certificate(),
            round=round,
            base=rules.base,
            attempt=attempt,
            timeout_s=timeout_s,
            asked=[self.me, *(view.peer_id for view in others), *(reducer.peer_id for reducer in reducers)],
        )
        deciding = self.company.acceptors()
        gathering = self._talk.spawn(leading.gather(self._talk, others, proposal, rules, deciding))
        try:
            own = await self.own.wait_ready(timeout_s)
            answers = await gathering
        finally:
            gathering.cancel()
        if not self._box.is_bound(round, attempt, self.me):
            raise RoundAborted("another attempt was joined meanwhile")
        self._standing.asked(answers.cast, answers.silent)
        answers.members[self.me] = self._own_member(own)
        answers.cast[self.me] = self.group.voting.own_ballots()
        answers.promises[self.me] = self.group.voting.promise(attempt, self.me).data
        self.book.take_farewells(answers.farewells.envelopes, round)
        answers.farewells = self.book.farewells(round).joined(answers.farewells)
        answers.left_out = self.company.unasked(others) | answers.left_out
        group = self._choose_group(rules, attempt, answers, reducers)
        self._start_group(group)
        self.group.send(group)

    def _choose_group(self, rules: Rules, attempt: int, answers: leading.Answers, reducers: list[Reducer]) -> Group:
        company = self.company
        return leading.choose_group(rules, attempt, self.me, answers, company.weights(), company.lines(), reducers)

    def _propose_timeout(self) -> float:
        """How long members may take to hand over: three micro-batches of the slowest of those whose votes decide."""
        deciding = self.company.acceptors()
        steps = (view.step_s for view in self.company.others() if view.peer_id in deciding)
        slowest = max([self.own.progress.step_s, *steps])
        return min(max(3 * slowest, PROPOSE_LEAST_S), PROPOSE_MOST_S)

    def _last_attempt(self) -> int:
        """The highest attempt to take seriously by now: one that jumps ahead would use up all numbers of the round."""
        return min(FREE_ATTEMPTS + int(ATTEMPTS_PER_S * (time.monotonic() - self._round_started)), MAX_ATTEMPT)

    def _check_attempt(self, attempt: int) -> None:
        if attempt > self._last_attempt():
            raise RoundAborted(f"attempt {attempt} so early in a round: expected {self._last_attempt()} at most")
        if self.group.voting.forgotten:
            raise RoundAborted("I voted in this round before a restart, and cannot show for what")

    async def _promise(self, round: int, attempt: int, leader: str, timeout_s: float) -> None:
        """Bind this member to an attempt, on disk, and have the trainer hand over."""
        await asyncio.get_running_loop().run_in_executor(None, self._box.promise, round, attempt, leader)
        self._engaged_until = time.monotonic() + timeout_s + 2 * self.book.patience_s(leader)
        self._attempts += 1
        self.own.close_work()

    # ---- following ---------------------------------------------------------------------------------------------------

    async def _answer_proposal(self, message: swarm_pb2.Proposal, reader: Any, writer: Any, peer: str) -> None:
        try:
            if self._reduce_only:
                raise RoundAborted("I only reduce")
            if (message.round, message.base) != (self.position.round, self.head.digest):
                raise RoundAborted(f"I am at round {self.position.round} from {self.head.digest[:8]}…")
            if self._leaving or self.group.under_way:
                raise RoundAborted("I am leaving" if self._leaving else "a group is under way")
            if self._standing.is_shunned(peer):
                raise RoundAborted("after your last proposal there came no group")
            if peer in self.company.to_avoid():
                raise RoundAborted("you spoilt a group a moment ago")
            if not self.company.may_lead(peer):
                raise RoundAborted("only members of the last agreement, or whom the coordinator named to begin, lead")
            self._check_attempt(message.attempt)
            timeout_s = min(max(message.timeout_s, 0.1), self._propose_timeout())
            if self._expecting == peer:
                self._strike(peer)
            await self._promise(message.round, message.attempt, peer, timeout_s)
            self.stage("promise")
            own = await self.own.wait_ready(timeout_s)
            if self._leaving:
                raise RoundAborted("I am leaving")
            self._expecting = peer
            reply = swarm_pb2.ProposalReply(
                accepted=True,
                certificate=self._talk.certificate(),
                claim=own.envelope.data,
                can_reduce=self._can_reduce,
                voted=self.group.voting.to_messages(),
                promise=self.group.voting.promise(message.attempt, peer).data,
                farewells=self.book.farewells(message.round).envelopes,
                unheard=[
                    other for other in message.asked[:MAX_GROUP] if other != self.me and not self.book.is_alive(other)
                ],
            )
        except RoundAborted as error:
            attempt = max(error.attempt, 0) if isinstance(error, Bound) else 0
            reply = swarm_pb2.ProposalReply(reason=error.message, attempt=attempt)
        await self._talk.reply(writer, reply)

    async def _answer_group(self, message: swarm_pb2.Group, reader: Any, writer: Any, peer: str) -> None:
        try:
            if not self._reduce_only and not self._box.is_bound(message.round, message.attempt, peer):
                raise RoundAborted("I am bound to another attempt")
            if self.group.under_way:
                raise RoundAborted("a group is under way")
            rules = self._rules()
            group = Group.from_message(message, peer, rules)
            self.company.named = self.company.named or group.beginners
            self._check_place(group)
            leading.check_shown(group, rules, self.company.weights())
            self._start_group(group)
            self._expecting = ""
            reply = swarm_pb2.GroupReply(accepted=True)
        except (RoundAborted, RefusedError, FormatError) as error:
            reply = swarm_pb2.GroupReply(reason=error.message)
        await self._talk.reply(writer, reply)

    def _check_place(self, group: Group) -> None:
        """Check that a group's leader has given this member its due place. Raises: VerificationError."""
        if self._reduce_only:
            if group.complete or self.me not in group.everyone:
                raise VerificationError("I only reduce, and there is nothing to reduce")
            return
        own, ready = group.by_peer.get(self.me), self.own.ready
        if own is None or (not group.complete and (ready is None or own.envelope != ready.envelope)):
            raise VerificationError("the group does not carry my claim")
        if group.round in self._box.farewells and self.me not in group.farewells.by_peer:
            raise VerificationError("the group does not carry my farewell")

    def _rules(self) -> Rules:
        return Rules(
            run=self._card.run,
            spec=self._card.spec,
            membership_key=self._card.member_key,
            values=self._card.spec.sync.fragment_values(self.position.round, self.head.state.parameters.numel()),
            last=self.head.last,
            named=self.company.named,
        )

    def _own_member(self, own: Contribution) -> Member:
        return Member(self.me, self._talk.certificate(), own.claim, own.envelope, self._can_reduce)

    def _start_group(self, group: Group) -> None:
        self._left_out = group.left_out
        self.group.start(group, self.own.ready.encoded if self.own.ready else None)

    # ---- a round's end ---------------------------------------------------------------------------------------------------

    async def _advance(self, head: Head) -> None:
        """Stand on a new head: everything of the round before is over."""
        took_part = self.me in head.weights
        waited_s = self.own.waited_s
        tokens = sum(head.weights.values())
        if took_part:
            self._length.waited(waited_s)
        self._missed_rounds = 0 if took_part or self._reduce_only else self._missed_rounds + 1
        if self._missed_rounds == MISSED_MANY:
            logger.warning(
                "%d rounds in a row were made without this peer: its line or its card is too slow for rounds this short",
                MISSED_MANY,
            )
        left_out = self._left_out if took_part else ()
        report = RoundReport(head.round, len(head.weights), tokens, waited_s, self._attempts, took_part, left_out)
        last = self.group.voting.own
        self.company.round_made(head.weights)
        self.position.advance(head)
        self.book.speakers = frozenset(head.weights)
        self.own.next_round()  # the trainer's work is closed
        self.group.voting = self._new_voting(last)
        self._attempts, self._due_since, self._expecting, self._left_out = 0, None, "", ()
        self._engaged_until = self._retry_at = 0.0
        self._round_started = time.monotonic()
        self._advanced.set()  # the trainer goes on; no group begins, and no promise is given, before this is on disk
        self._advancing = True
        try:
            await self._on_commit(head, report)
        finally:
            self._advancing = False
        self._on_stage(head.round, "kept")

    def _new_voting(self, last: Signed[Vote] | None) -> Voting:
        return Voting(
            self._talk,
            self._identity,
            self._box,
            self._card.run,
            self.position.round,
            self.head.digest,
            lambda group: group.farewells.acceptors(self.company.weights()),
            last,
            self._rules(),
            self.stage,
        )

    # ---- when an attempt comes to nothing --------------------------------------------------------------------------------

    def _group_ended(self, reason: str) -> None:
        self._aborted(reason)
        self._engaged_until = 0.0

    def _aborted(self, reason: str) -> None:
        logger.info(
            "round %d, attempt %d came to nothing: %s; the work is kept", self.position.round, self._box.attempt, reason
        )
        if self._box.leader == self.me:
            self._engaged_until = 0.0  # else it stays bound to whoever has its promise meanwhile
        self._due_since = None
        self._retry_at = time.monotonic() + min(0.1 * 2 ** min(self._attempts, 6), RETRY_MOST_S)
