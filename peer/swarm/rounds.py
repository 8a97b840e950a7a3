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
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from google.protobuf.message import Message

from peer.round_rules import Ballot, BallotBox, Bound, Branch, is_committed, must_complete, prefers
from peer.swarm import frames
from peer.swarm.allreduce import Limits, Reduction
from peer.swarm.exchange import StateFetch, serve_state
from peer.swarm.group import Group, Member, Rules
from peer.swarm.members import MemberBook, MemberView
from peer.swarm.node import Node, short
from peer.training.codec import EncodedUpdate
from peer.training.outer import outer_step
from peer.training.state import SharedState
from peer.training.work import Update
from protocol import canonical, claim, swarm_pb2
from protocol.claim import Agreement, Claim, Vote
from protocol.envelope import Envelope
from protocol.errors import FormatError, NetworkError, PotluckError, RefusedError, RoundAborted, VerificationError
from protocol.keys import PeerIdentity
from protocol.run_card import RunCard
from protocol.state import StateManifest

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)
R = TypeVar("R")


@dataclass(frozen=True)
class Timing:
    """How often and how long, in seconds."""

    progress_s: float = 0.3  # between two reports of progress
    call_s: float = 3.0  # a small message and its answer
    next_in_line_s: float = 1.5  # before the next in line proposes in place of a silent one
    propose_least_s: float = 3.0  # members have this long, or three micro-batches, to answer a proposal
    propose_most_s: float = 60.0
    vote_s: float = 15.0  # from one's own vote to the majority
    linger_s: float = 0.25  # for the votes that come after the majority
    behind_s: float = 0.6  # before fetching what the others have and this member has not
    avoid_s: float = 10.0  # that a leader leaves out a member that spoilt a group
    leave_s: float = 5.0  # to finish a group that is under way
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Head:
    """The newest committed state, and what committed it (nothing, for genesis)."""

    state: SharedState
    agreement: Agreement | None = None
    history_tokens: int = 0

    @property
    def round(self) -> int:
        return self.state.round

    @property
    def weights(self) -> dict[str, int]:
        return dict(self.agreement.weights) if self.agreement else {}


@dataclass(frozen=True)
class Ready:
    """This member's finished work of one round: kept until the round is committed, however many attempts it takes."""

    update: Update
    encoded: EncodedUpdate
    claim: Claim
    envelope: Envelope


@dataclass(frozen=True)
class RoundReport:
    """What became of a round, for people."""

    round: int
    members: int
    tokens: int
    waited_s: float  # from the end of one's own work to the new state
    attempts: int
    took_part: bool


class RoundEngine:
    """One member's side of all rounds.

    Args:
        node: started.
        certificate: gives this member's certificate of the moment.
        box: its promises and votes, restored.
        head: where it stands.
        on_commit: called on the loop with each new head; whatever must be kept is kept when it returns.
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
        timing: Timing | None = None,
    ) -> None:
        self._node, self._identity, self._card, self._certificate = node, identity, card, certificate
        self._box, self.head, self._on_commit = box, head, on_commit
        self._can_reduce, self._timing = can_reduce, timing or Timing()
        self.me = identity.peer_id
        self.book = MemberBook(card.run, card.member_key)
        self.contacts: set[str] = set()  # peer ids to talk to
        self.addresses: list[str] = []
        self.close_work = threading.Event()  # the trainer finishes its micro-batch and hands over
        self.waiting_for = ""  # why no round is being made, in words for the owner
        self.trained_tokens, self.tokens_per_s, self.step_s = 0, 0.0, 0.0
        self._round_started = time.monotonic()
        self._due_since: float | None = None
        self._behind_since: float | None = None
        self._ready: Ready | None = None
        self._ready_event = asyncio.Event()
        self._ready_at = 0.0
        self._advanced = asyncio.Event()
        self._leaving = False
        self._engaged_until = 0.0  # bound to a leader until then
        self._group_task: asyncio.Task[None] | None = None
        self._reduction: Reduction | None = None
        self._group_changed = asyncio.Event()
        self._previous: SharedState | None = None
        self._candidates: dict[str, SharedState] = {}
        self._voted: dict[str, tuple[Group, Envelope]] = {}  # group digest -> newest vote on it, this round
        self._votes: dict[str, tuple[Vote, Envelope]] = {}  # peer id -> its newest vote, this round
        self._vote_event = asyncio.Event()
        self._last_vote: Envelope | None = None  # of the round before: some may still be counting
        self._attempts = 0
        self._retry_at = 0.0
        self._avoid: dict[str, float] = {}  # peer id -> until when a leader leaves it out, for what it did to a group
        self._in_flight: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    # ---- starting and stopping -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Serve the other members, and begin to talk to them."""
        for name, kind, handler in (
            ("progress", swarm_pb2.Progress, self._serve_progress),
            ("propose", swarm_pb2.Proposal, self._serve_proposal),
            ("group", swarm_pb2.Group, self._serve_group),
            ("reduce", swarm_pb2.Part, self._serve_reduce),
            ("vote", swarm_pb2.VoteMessage, self._serve_vote),
            ("abort", swarm_pb2.Abort, self._serve_abort),
            ("head", swarm_pb2.HeadRequest, self._serve_head),
            ("state", swarm_pb2.StateRequest, self._serve_state),
        ):
            await self._node.serve(self._stream(name), self._admitting(kind, handler))
        self._spawn(self._progress_loop())
        self._spawn(self._clock())

    async def leave(self) -> None:
        """Finish the group that is under way, tell the others, and stop."""
        if self._group_task and not self._group_task.done():
            await asyncio.wait({self._group_task}, timeout=self._timing.leave_s)
        self._leaving = True
        self.close_work.set()
        await asyncio.wait_for(
            asyncio.gather(*(self._tell_progress(peer) for peer in self._everyone()), return_exceptions=True), 3.0
        )
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._advanced.set()

    def _spawn(self, coroutine: Coroutine[Any, Any, R]) -> asyncio.Task[R]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a task of the rounds failed; please report this", exc_info=task.exception())

    def _stream(self, name: str) -> str:
        return f"potluck/{self._card.run}/{name}"

    def _admitting(self, kind: type[M], handler: Callable[..., Awaitable[None]]):  # type: ignore[no-untyped-def]
        """A stream handler that reads the first message, checks who sent it, and only then does anything."""

        async def handle(peer: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            message = await frames.receive(reader, kind, timeout_s=self._timing.call_s)
            try:
                self.book.admit(peer, message.certificate)  # type: ignore[attr-defined]
            except (FormatError, RefusedError) as error:
                logger.debug("refused %s from %s: %s", kind.__name__, short(peer), error.message)
                return
            await handler(peer, message, reader, writer)

        return handle

    async def _reply(self, writer: asyncio.StreamWriter, message: Message) -> None:
        await frames.send(writer, message, timeout_s=self._timing.call_s)

    async def _call(self, peer: str, name: str, request: Message, reply: type[M], timeout_s: float | None = None) -> M:
        return await self._node.call(
            peer, self._stream(name), request, reply, timeout_s=timeout_s or self._timing.call_s
        )

    # ---- the trainer's side ----------------------------------------------------------------------------------------

    def begin_work(self) -> Head:
        """The trainer starts from the head that this returns."""
        self.trained_tokens = 0
        if not self._leaving:
            self.close_work.clear()
        return self.head

    async def finish_work(self, update: Update, base: str) -> Head:
        """Hand over a finished update; returns the next head, whether this update is part of it or not.

        Raises:
            RoundAborted: this member is leaving.
        """
        if base == self.head.state.digest and not self._leaving:
            if self._ready is None:
                await self._make_ready(update, base)
            while base == self.head.state.digest and not self._leaving:
                self._advanced.clear()
                await self._advanced.wait()
        if self._leaving and base == self.head.state.digest:
            raise RoundAborted("this member is leaving")
        return self.head

    async def _make_ready(self, update: Update, base: str) -> None:
        loop = asyncio.get_running_loop()
        encoded = await loop.run_in_executor(None, EncodedUpdate.encode, update.vector, self._card.spec.sync.wire)
        digest = await loop.run_in_executor(None, lambda: encoded.digest)
        made = Claim(
            run=self._card.run,
            round=self.head.round + 1,
            base=base,
            tokens=update.tokens,
            flops=update.flops,
            first_batch=update.first_batch,
            batches=update.batches,
            update=digest,
            segments=update.segments,
        )
        if base != self.head.state.digest:
            return
        self.trained_tokens = update.tokens
        self._ready = Ready(update, encoded, made, made.sign(self._identity))
        self._ready_at = time.monotonic()
        self._ready_event.set()

    # ---- the clock: progress, leading, catching up -------------------------------------------------------------------

    async def _progress_loop(self) -> None:
        while True:
            everyone = self._everyone()
            for peer in everyone:
                self._spawn(self._tell_progress(peer))
            await asyncio.sleep(self._timing.progress_s * max(1.0, len(everyone) / 16))

    async def _clock(self) -> None:
        """Never ends; looks several times a second whether there is something to do."""
        while True:
            await asyncio.sleep(0.05)
            now = time.monotonic()
            if self._busy(now) or self._leaving or now < self._retry_at:
                continue
            try:
                if not await self._catch_up_if_behind(now) and self._my_turn(now):
                    await self._lead()
            except PotluckError as error:
                self._aborted(error.message)

    def _everyone(self) -> set[str]:
        return (self.contacts | {view.peer_id for view in self.book.known()}) - {self.me}

    def _busy(self, now: float) -> bool:
        """Whether this member is in a group, or bound to a leader that is still there."""
        if self._group_task is not None and not self._group_task.done():
            return True
        leader = self._box.leader
        return now < self._engaged_until and (leader == self.me or self.book.is_alive(leader))

    def _progress(self) -> swarm_pb2.Progress:
        box = self._box
        return swarm_pb2.Progress(
            certificate=self._certificate(),
            round=self.head.round + 1,
            base=self.head.state.digest,
            tokens=self.trained_tokens,
            tokens_per_s=self.tokens_per_s,
            leaving=self._leaving,
            attempt=max(box.attempt, 0) if box.round == self.head.round + 1 else 0,
            addresses=self.addresses[:16],
            history_tokens=self.head.history_tokens,
            step_s=self.step_s,
            can_reduce=self._can_reduce,
        )

    async def _tell_progress(self, peer: str) -> None:
        if peer in self._in_flight:
            return
        self._in_flight.add(peer)
        try:
            answer = await self._call(peer, "progress", self._progress(), swarm_pb2.Progress)
            self.book.admit(peer, answer.certificate)
            self.book.note(peer, answer)
        except (NetworkError, FormatError, RefusedError) as error:
            logger.debug("progress to %s: %s", short(peer), error.message)
            self.book.lost(peer)
            if self.book.get(peer) is None:
                self.contacts.discard(peer)
        finally:
            self._in_flight.discard(peer)

    async def _serve_progress(self, peer: str, message: swarm_pb2.Progress, reader: Any, writer: Any) -> None:
        self.book.note(peer, message)
        await self._reply(writer, self._progress())

    def _acceptors(self) -> dict[str, int]:
        """Whose promises and votes count for the round in hand: the members of the last agreement that have not left."""
        left = self.book.left()
        return {peer: weight for peer, weight in self.head.weights.items() if peer not in left}

    def _my_turn(self, now: float) -> bool:
        """Whether the round should be closed now and it is for this member to do it."""
        sync, round = self._card.spec.sync, self.head.round + 1
        self.waiting_for = ""
        if self.trained_tokens == 0 or (self._card.spec.run.rounds and round > self._card.spec.run.rounds):
            return False
        others = self.book.together(round, self.head.state.digest)
        here = {view.peer_id for view in others} | {self.me}
        tokens = self.trained_tokens + sum(view.tokens for view in others)
        reached = sync.round_tokens is not None and tokens >= sync.round_tokens
        timed_out = sync.round_seconds is not None and now - self._round_started >= sync.round_seconds
        if not (reached or timed_out):
            self._due_since = None
            return False
        if len(here) < sync.min_peers:
            self.waiting_for = (
                f"waiting for {sync.min_peers - len(here)} more peers; the host asked for {sync.min_peers}"
            )
            return False
        if not claim.has_majority(here, self._acceptors()):
            self.waiting_for = (
                f"{len(here)} of the last round's {len(self._acceptors())} peers can be reached: too few to go on"
            )
            return False
        if self._due_since is None:
            self._due_since = now
        line = sorted(here, key=lambda peer: canonical.sha256_hex(f"{round}/{peer}".encode()))
        return now - self._due_since >= line.index(self.me) * self._timing.next_in_line_s

    # ---- leading -----------------------------------------------------------------------------------------------------

    async def _lead(self) -> None:
        """Ask everyone for claim and promise, and run the group that comes of it."""
        round, base = self.head.round + 1, self.head.state.digest
        others = self._invited(round, base)
        attempt = max([self._box.next_attempt(round), *(view.attempt + 1 for view in others if view.attempt)])
        timeout_s = self._propose_timeout([view.step_s for view in others])
        await self._promise(round, attempt, self.me, timeout_s)
        rules = self._rules()
        proposal = swarm_pb2.Proposal(
            certificate=self._certificate(), round=round, base=base, attempt=attempt, timeout_s=timeout_s
        )
        answers = await asyncio.gather(
            self._wait_ready(timeout_s), *(self._ask(view.peer_id, proposal, rules) for view in others)
        )
        if (self._box.round, self._box.attempt, self._box.leader) != (round, attempt, self.me):
            raise RoundAborted("another attempt was joined meanwhile")
        joined = [answer for answer in answers[1:] if answer is not None]
        members = [self._own_member(), *(member for member, _ in joined)]
        cast = {self.me: self._own_ballots(), **{member.peer_id: ballots for member, ballots in joined}}
        if len(members) < self._card.spec.sync.min_peers or not claim.has_majority(set(cast), self._acceptors()):
            raise RoundAborted(f"only {len(members)} of {len(others) + 1} peers answered")
        group = self._choose_group(rules, attempt, members, cast)
        message = group.to_message(self._certificate())
        self._start_group(group)
        for member in group.members:
            if member.peer_id != self.me:
                self._spawn(self._send_group(member.peer_id, message))

    def _invited(self, round: int, base: str) -> list[MemberView]:
        """Whom to ask: all that work from this base, without those that spoilt a group a moment ago, if it goes without."""
        now, most = time.monotonic(), self._card.spec.sync.max_group - 1
        others = self.book.together(round, base)
        trusted = [view for view in others if self._avoid.get(view.peer_id, 0.0) < now]
        enough = len(trusted) + 1 >= self._card.spec.sync.min_peers
        if enough and claim.has_majority({self.me, *(view.peer_id for view in trusted)}, self._acceptors()):
            others = trusted
        return others[:most]

    def _propose_timeout(self, steps: list[float]) -> float:
        timing = self._timing
        return min(max(3 * max([self.step_s, *steps]), timing.propose_least_s), timing.propose_most_s)

    async def _promise(self, round: int, attempt: int, leader: str, timeout_s: float) -> None:
        """Bind this member to an attempt, on disk, and have the trainer hand over."""
        await asyncio.get_running_loop().run_in_executor(None, self._box.promise, round, attempt, leader)
        self._engaged_until = time.monotonic() + timeout_s + self._timing.call_s
        self._attempts += 1
        self.close_work.set()

    async def _wait_ready(self, timeout_s: float) -> None:
        try:
            await asyncio.wait_for(self._ready_event.wait(), timeout_s)
        except TimeoutError as error:
            raise RoundAborted(f"own work was not finished within {timeout_s:.0f} s") from error

    async def _ask(
        self, peer: str, proposal: swarm_pb2.Proposal, rules: Rules
    ) -> tuple[Member, dict[Ballot, Group]] | None:
        """One member's claim and what it voted for, or None when it does not join."""
        try:
            reply = await self._call(
                peer, "propose", proposal, swarm_pb2.ProposalReply, proposal.timeout_s + self._timing.call_s
            )
            if not reply.accepted:
                logger.debug("%s does not join: %s", short(peer), reply.reason[:200])
                return None
            member = rules.check_member(reply.claim, reply.certificate, reply.can_reduce, expected_peer=peer)
            return member, {
                ballot: group for item in reply.voted for ballot, group in [self._open_voted(peer, item, rules)]
            }
        except (NetworkError, FormatError, RefusedError) as error:
            logger.debug("%s did not answer the proposal: %s", short(peer), error.message)
            return None

    def _open_voted(self, peer: str, item: swarm_pb2.Voted, rules: Rules) -> tuple[Ballot, Group]:
        voter, vote = claim.open_vote(item.vote)
        group = Group.from_message(item.group, peer, rules)
        if voter != peer or vote.group != group.digest or vote.round != rules.round:
            raise VerificationError("a vote that is another's, or for another group")
        return Ballot(vote.attempt, vote.group, vote.state), group

    def _choose_group(
        self, rules: Rules, attempt: int, members: list[Member], cast: dict[str, dict[Ballot, Group]]
    ) -> Group:
        """A new group, or an old one whose state may already be committed somewhere."""
        groups = {ballot.group: group for ballots in cast.values() for ballot, group in ballots.items()}
        weights = {digest: group.weights for digest, group in groups.items()}
        lock = must_complete(cast, self._acceptors(), weights)
        if lock is not None:
            return groups[lock.group].completing(attempt, self.me, lock.state)
        members.sort(key=lambda member: canonical.sha256_hex(f"{rules.round}/{attempt}/{member.peer_id}".encode()))
        return Group.build(rules, attempt, self.me, members)

    async def _send_group(self, peer: str, message: swarm_pb2.Group) -> None:
        try:
            reply = await self._call(peer, "group", message, swarm_pb2.GroupReply, timeout_s=2 * self._timing.call_s)
            reason = "" if reply.accepted else f"{short(peer)}: {reply.reason[:200]}"
        except (NetworkError, FormatError) as error:
            reason = f"{short(peer)}: {error.message}"
        if reason and self._reduction is not None and self._reduction.group.attempt == message.attempt:
            self._reduction.fail(reason)

    # ---- following ---------------------------------------------------------------------------------------------------

    async def _serve_proposal(self, peer: str, message: swarm_pb2.Proposal, reader: Any, writer: Any) -> None:
        try:
            await self._join(peer, message)
            reply = self._accepting_reply()
        except Bound as error:
            reply = swarm_pb2.ProposalReply(reason=error.message, attempt=max(error.attempt, 0))
        except RoundAborted as error:
            reply = swarm_pb2.ProposalReply(reason=error.message)
        await self._reply(writer, reply)

    async def _join(self, leader: str, message: swarm_pb2.Proposal) -> None:
        if (message.round, message.base) != (self.head.round + 1, self.head.state.digest):
            raise RoundAborted(f"I am at round {self.head.round + 1} from {self.head.state.digest[:8]}…")
        if self._leaving:
            raise RoundAborted("I am leaving")
        if self._group_task and not self._group_task.done():
            raise RoundAborted("a group is under way")
        timeout_s = min(max(message.timeout_s, 0.1), self._timing.propose_most_s)
        await self._promise(message.round, message.attempt, leader, timeout_s)
        await self._wait_ready(timeout_s)

    def _accepting_reply(self) -> swarm_pb2.ProposalReply:
        if self._ready is None:
            raise RoundAborted("the round went on meanwhile")
        return swarm_pb2.ProposalReply(
            accepted=True,
            certificate=self._certificate(),
            claim=self._ready.envelope.to_bytes(),
            can_reduce=self._can_reduce,
            voted=[
                swarm_pb2.Voted(vote=envelope.to_bytes(), group=group.to_message(""), holds=bool(self._candidates))
                for group, envelope in self._voted.values()
            ],
        )

    async def _serve_group(self, leader: str, message: swarm_pb2.Group, reader: Any, writer: Any) -> None:
        try:
            if (self._box.round, self._box.attempt, self._box.leader) != (message.round, message.attempt, leader):
                raise RoundAborted("I am bound to another attempt")
            if self._group_task and not self._group_task.done():
                raise RoundAborted("a group is under way")
            group = Group.from_message(message, leader, self._rules())
            own = group.by_peer.get(self.me)
            if own is None or (not group.complete and (self._ready is None or own.envelope != self._ready.envelope)):
                raise VerificationError("the group does not carry my claim")
            self._start_group(group)
            reply = swarm_pb2.GroupReply(accepted=True)
        except (RoundAborted, RefusedError, FormatError) as error:
            reply = swarm_pb2.GroupReply(reason=error.message)
        await self._reply(writer, reply)

    def _rules(self) -> Rules:
        return Rules(
            run=self._card.run,
            spec=self._card.spec,
            membership_key=self._card.member_key,
            values=self.head.state.parameters.numel(),
            round=self.head.round + 1,
            base=self.head.state.digest,
            previous=self.head.weights,
        )

    def _own_member(self) -> Member:
        assert self._ready is not None
        return Member(self.me, self._certificate(), self._ready.claim, self._ready.envelope, self._can_reduce)

    def _own_ballots(self) -> dict[Ballot, Group]:
        known = {digest: group for digest, (group, _) in self._voted.items()}
        return {ballot: known[ballot.group] for ballot in self._box.ballots if ballot.group in known}

    # ---- the group: average, vote, commit ------------------------------------------------------------------------------

    def _start_group(self, group: Group) -> None:
        if not group.complete and self._ready is not None:
            self._reduction = Reduction(
                group,
                self.me,
                self._ready.encoded,
                self._node,
                self._stream("reduce"),
                self._certificate(),
                self._timing.limits,
            )
        self._previous = None  # make room for the new state
        self._group_task = self._spawn(self._run_group(group))
        self._group_changed.set()

    async def _run_group(self, group: Group) -> None:
        try:
            if group.complete:
                candidate = await self._held_or_fetched(group.complete, [m.peer_id for m in group.members])
            else:
                assert self._reduction is not None
                averaged = await self._reduction.run()
                candidate = await asyncio.get_running_loop().run_in_executor(None, self._outer_step, averaged)
            await self._agree(group, candidate)
        except (NetworkError, RefusedError, FormatError, RoundAborted) as error:
            self._aborted(error.message)
            self._tell_abort(group, error.message)
        finally:
            self._engaged_until = 0.0
            self._reduction = None
            self._group_changed.clear()

    def _outer_step(self, averaged: torch.Tensor) -> SharedState:
        candidate = outer_step(self._card.spec, self.head.state, averaged)
        _ = candidate.digest  # hashed here, off the loop
        return candidate

    async def _held_or_fetched(self, state: str, sources: list[str]) -> SharedState:
        held = self._state(state)
        if held is not None:
            return held
        for source in sources:
            if source == self.me:
                continue
            request = swarm_pb2.HeadRequest(certificate=self._certificate(), state=state)
            with contextlib.suppress(NetworkError, FormatError):
                reply = await self._call(source, "head", request, swarm_pb2.HeadReply)
                if reply.manifest:
                    return await self._fetch(self._check_manifest(reply.manifest, state), sources)
        raise NetworkError(f"nobody could give state {state[:12]}…")

    def _check_manifest(self, data: bytes, state: str) -> StateManifest:
        manifest = StateManifest.from_bytes(data)
        if manifest.digest != state or manifest.tensors != self.head.state.manifest().tensors:
            raise VerificationError(f"expected the manifest of state {state[:12]}…, of this run's model, got another")
        return manifest

    async def _fetch(self, manifest: StateManifest, sources: list[str]) -> SharedState:
        fetch = StateFetch(self._node, self._stream("state"), self._certificate(), manifest)
        return await fetch.run([source for source in sources if source != self.me])

    async def _agree(self, group: Group, candidate: SharedState) -> None:
        """Vote for the state, gather the others' votes, and commit what the majority has."""
        vote = Vote(
            run=self._card.run,
            round=group.round,
            attempt=group.attempt,
            group=group.digest,
            base=group.base,
            state=candidate.digest,
        )
        ballot = Ballot(vote.attempt, vote.group, vote.state)
        await asyncio.get_running_loop().run_in_executor(None, self._box.vote, group.round, ballot)
        envelope = vote.sign(self._identity)
        self._candidates = {candidate.digest: candidate}
        self._voted[group.digest] = (group, envelope)
        self._votes[self.me] = (vote, envelope)
        message = swarm_pb2.VoteMessage(certificate=self._certificate(), vote=envelope.to_bytes())
        for member in group.members:
            if member.peer_id != self.me:
                self._spawn(self._send_vote(member.peer_id, message))
        state = await self._majority(group, vote)
        if state != candidate.digest:
            logger.warning(
                "round %d: expected state %s…, got %s…; fetching it from the others",
                group.round,
                state[:12],
                candidate.digest[:12],
            )
            voters = [peer for peer, (other, _) in self._votes.items() if other.state == state]
            candidate = await self._held_or_fetched(state, voters)
        await self._linger(group, state)
        await self._commit(group, candidate)

    async def _send_vote(self, peer: str, message: swarm_pb2.VoteMessage) -> None:
        with contextlib.suppress(NetworkError, FormatError, RefusedError):
            reply = await self._call(peer, "vote", message, swarm_pb2.VoteReply)
            if reply.vote:
                self._take_vote(peer, reply.vote)

    async def _serve_vote(self, peer: str, message: swarm_pb2.VoteMessage, reader: Any, writer: Any) -> None:
        with contextlib.suppress(FormatError, RefusedError):
            self._take_vote(peer, message.vote)
        mine = self._votes.get(self.me)
        envelope = mine[1] if mine else self._last_vote
        await self._reply(writer, swarm_pb2.VoteReply(vote=envelope.to_bytes() if envelope else b""))

    def _take_vote(self, peer: str, data: bytes) -> None:
        voter, vote = claim.open_vote(data)
        if voter != peer or (vote.run, vote.round, vote.base) != (
            self._card.run,
            self.head.round + 1,
            self.head.state.digest,
        ):
            return
        known = self._votes.get(peer)
        if known is None or known[0].attempt < vote.attempt:
            self._votes[peer] = (vote, Envelope.from_bytes(data))
            self._vote_event.set()

    def _voters(self, group: Group, vote: Vote, state: str) -> set[str]:
        wanted = vote.model_copy(update={"state": state})
        return {peer for peer, (other, _) in self._votes.items() if other == wanted and peer in group.by_peer}

    async def _majority(self, group: Group, vote: Vote) -> str:
        """The state that a majority voted for. Raises: RoundAborted: there was none in time."""
        deadline = time.monotonic() + self._timing.vote_s
        while True:
            self._vote_event.clear()
            for state in {other.state for other, _ in self._votes.values()}:
                if is_committed(self._voters(group, vote, state), self._acceptors(), group.weights):
                    return state
            left = deadline - time.monotonic()
            if left <= 0:
                raise RoundAborted(f"no majority for one state within {self._timing.vote_s:.0f} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._vote_event.wait(), left)

    async def _linger(self, group: Group, state: str) -> None:
        """Wait a moment for the votes of the rest: an agreement that all have signed says more."""
        mine = self._votes[self.me][0]
        deadline = time.monotonic() + self._timing.linger_s
        while len(self._voters(group, mine, state)) < len(group.members) and time.monotonic() < deadline:
            self._vote_event.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._vote_event.wait(), max(deadline - time.monotonic(), 0.01))

    async def _commit(self, group: Group, state: SharedState) -> None:
        mine = self._votes[self.me][0]
        voters = self._voters(group, mine, state.digest)
        agreement = Agreement(
            run=self._card.run,
            round=group.round,
            base=group.base,
            state=state.digest,
            weights=dict(group.weights),
            claims={member.peer_id: member.claim for member in group.members},
            claim_envelopes=tuple(member.envelope for member in group.members),
            vote_envelopes=tuple(
                self._votes[member.peer_id][1] for member in group.members if member.peer_id in voters
            ),
            certificates={member.peer_id: member.certificate for member in group.members},
        )
        await self._advance(Head(state, agreement, self.head.history_tokens + sum(group.weights.values())))

    async def _advance(self, head: Head) -> None:
        """Stand on a new head: everything of the round before is over."""
        took_part = head.agreement is not None and self.me in head.agreement.weights
        waited = time.monotonic() - self._ready_at if self._ready is not None else 0.0
        weights = head.weights
        report = RoundReport(head.round, len(weights), sum(weights.values()), waited, self._attempts, took_part)
        mine = self._votes.get(self.me)
        self._last_vote = mine[1] if mine else None
        self._previous, self.head = self.head.state, head
        self._ready, self._attempts, self._due_since, self._behind_since = None, 0, None, None
        self._ready_event.clear()
        self._candidates, self._voted, self._votes = {}, {}, {}
        self.trained_tokens = 0
        self._engaged_until = 0.0
        self._round_started = time.monotonic()
        self.close_work.set()
        await self._on_commit(head, report)
        self._advanced.set()

    def _aborted(self, reason: str) -> None:
        logger.info(
            "round %d, attempt %d came to nothing: %s; the work is kept", self.head.round + 1, self._box.attempt, reason
        )
        self._engaged_until = 0.0
        self._due_since = None
        self._retry_at = time.monotonic() + min(0.1 * 2 ** min(self._attempts, 6), 5.0)

    def _tell_abort(self, group: Group, reason: str) -> None:
        culprit = self._reduction.culprit if self._reduction else ""
        self._blame(culprit)
        message = swarm_pb2.Abort(
            certificate=self._certificate(),
            group=group.digest,
            round=group.round,
            attempt=group.attempt,
            reason=reason[:200],
            culprit=culprit,
        )
        for member in group.members:
            if member.peer_id != self.me:
                self._spawn(self._send_abort(member.peer_id, message))

    def _blame(self, culprit: str) -> None:
        """Leave a member out of the next attempts; a wrong word costs it no more than that."""
        if culprit and culprit != self.me and self.book.get(culprit) is not None:
            self._avoid[culprit] = time.monotonic() + self._timing.avoid_s

    async def _send_abort(self, peer: str, message: swarm_pb2.Abort) -> None:
        with contextlib.suppress(NetworkError, FormatError):
            await self._call(peer, "abort", message, swarm_pb2.Ack)

    async def _serve_abort(self, peer: str, message: swarm_pb2.Abort, reader: Any, writer: Any) -> None:
        reduction = self._reduction
        of_mine = reduction and (message.group, message.attempt) == (reduction.group.digest, reduction.group.attempt)
        if reduction and of_mine and peer in reduction.group.by_peer:
            self._blame(message.culprit)
            reduction.fail(f"{short(peer)} gave up: {message.reason[:200]}")
        await self._reply(writer, swarm_pb2.Ack())

    async def _serve_reduce(self, peer: str, first: swarm_pb2.Part, reader: Any, writer: Any) -> None:
        with contextlib.suppress(TimeoutError):  # the sender may have heard of the group before this member
            await asyncio.wait_for(self._group_changed.wait(), self._timing.call_s)
        reduction = self._reduction
        if reduction is None or (first.group, first.attempt) != (reduction.group.digest, reduction.group.attempt):
            await self._reply(writer, swarm_pb2.Part(error="I am not in that group"))
        elif peer in reduction.group.by_peer:
            await reduction.serve(peer, first, reader, writer)

    # ---- state: serving it, and catching up ------------------------------------------------------------------------------

    def _state(self, digest: str) -> SharedState | None:
        if digest == self.head.state.digest:
            return self.head.state
        if self._previous is not None and digest == self._previous.digest:
            return self._previous
        return self._candidates.get(digest)

    async def _serve_head(self, peer: str, request: swarm_pb2.HeadRequest, reader: Any, writer: Any) -> None:
        if request.state:
            held = self._state(request.state)
            reply = swarm_pb2.HeadReply(manifest=held.manifest().to_bytes() if held else b"")
        else:
            head = self.head
            reply = swarm_pb2.HeadReply(
                certificate=self._certificate(),
                round=head.round,
                state=head.state.digest,
                agreement=head.agreement.to_bytes() if head.agreement else b"",
                manifest=head.state.manifest().to_bytes(),
                history_tokens=head.history_tokens,
            )
        await self._reply(writer, reply)

    async def _serve_state(self, peer: str, request: swarm_pb2.StateRequest, reader: Any, writer: Any) -> None:
        await serve_state(self._state(request.state), request, writer)

    async def _catch_up_if_behind(self, now: float) -> bool:
        """Fetch the head of a better branch, if live members stand on one; True when this member now stands on it."""
        mine = Branch(self.head.round, self.head.state.digest, self.head.history_tokens, 1)
        branches = self.book.branches()
        for branch in branches:
            if branch.state == mine.state:
                mine = Branch(mine.round, mine.state, mine.history_tokens, branch.supporters + 1)
        better = [b for b in branches if b.round >= mine.round and b.state != mine.state]
        better = [b for b in better if b.round == mine.round + 1 or prefers(b, mine)]
        if not better:
            self._behind_since = None
            return False
        if self._behind_since is None:
            self._behind_since = now
        if now - self._behind_since < self._timing.behind_s:
            return False
        best = max(better, key=lambda b: (b.supporters, b.history_tokens, b.state))
        sources = [view.peer_id for view in self.book.alive() if view.base == best.state]
        try:
            await self._advance(await self._fetch_head(best, mine, sources))
        except (NetworkError, FormatError, RefusedError) as error:
            logger.info("could not fetch round %d from the others: %s; trying again", best.round, error.message)
            self._behind_since = now + 1.0
            return False
        return True

    async def _fetch_head(self, wanted: Branch, mine: Branch, sources: list[str]) -> Head:
        reply = await self._call(
            sources[0],
            "head",
            swarm_pb2.HeadRequest(certificate=self._certificate()),
            swarm_pb2.HeadReply,
            timeout_s=20,
        )
        manifest = self._check_manifest(reply.manifest, reply.state)
        agreement = Agreement.from_bytes(reply.agreement, run=self._card.run, membership_key=self._card.member_key)
        if (agreement.round, agreement.state) != (reply.round, reply.state) or manifest.round != reply.round:
            raise VerificationError("the agreement is for another state than the one offered")
        follows = agreement.base == self.head.state.digest and agreement.round == self.head.round + 1
        voters = {claim.open_vote(item.to_bytes())[0] for item in agreement.vote_envelopes}
        if follows and not claim.has_majority(voters, self.head.weights) and not prefers(wanted, mine):
            raise VerificationError("the next round was agreed on by a minority of the last one's members")
        if not follows and not prefers(wanted, mine):
            raise VerificationError("the others' branch is not the heavier one")
        sources = [source for source in sources if source != self.me]
        state = self._state(reply.state) or await self._fetch(manifest, sources)
        if self._ready is not None or self.trained_tokens:
            logger.info(
                "round %d went on without this peer; taking part again from round %d",
                self.head.round + 1,
                state.round + 1,
            )
        return Head(state, agreement, reply.history_tokens)
