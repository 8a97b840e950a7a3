"""One member of a simulated swarm, through all its rounds; `round_simulator.World` is all that it sees.

It decides as a member of `peer.round.report` does, by the rules of `peer.round_rules`; time is counted in ticks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from peer.round_rules import Ballot, Bound, locked

from protocol.counting import counted_worths as counted
from protocol.errors import RoundAborted
from protocol.majority import acceptors_after, has_majority
from tests.sim_rules import Farewell, Late, SimClaim, SimGroup, SimHead, by_digest

if TYPE_CHECKING:
    from tests.round_simulator import World

WORK, PROPOSE, AVERAGE, MAJORITY, ENGAGED, BEHIND, NEXT_IN_LINE = 3, 6, 2, 8, 12, 2, 4  # ticks


@dataclass
class Attempt:
    """What the leader of an attempt has sent around."""

    group: SimGroup
    farewells: dict[str, Farewell]
    joined: set[str] = field(default_factory=set)


@dataclass
class Proposal:
    attempt: int
    asked: set[str]
    deadline: int
    answers: dict[str, tuple[SimClaim, list[Ballot]]]


@dataclass
class UnderWay:
    """The group that a peer is in."""

    attempt: int
    group: SimGroup
    farewells: dict[str, Farewell]
    complete: str
    ready_at: int
    deadline: int = 0
    content: str = ""


class SimPeer:
    """One member, through all rounds."""

    def __init__(self, name: str, world: World, head: SimHead) -> None:
        self.name, self.world, self.rules, self.head = name, world, world.rules, head
        self.disk: bytes | None = None
        self.said: dict[int, Farewell] = {}  # round -> its own farewell, on disk
        self.up = False

    # ---- starting, leaving -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin with nothing but what is on disk: the head, the box, the farewells."""
        self.up = True
        self.box = self.rules.box(save=self._save)
        if self.disk is not None and self.rules.remembers:
            self.box.restore(self.disk)
        self.known: dict[tuple[int, str], Farewell] = {(said.round, self.name): said for said in self.said.values()}
        self.left: dict[str, tuple[int, str, bool]] = {}
        self.held = {self.head.content}
        self.late: Late | None = None
        self.last_vote: tuple[int, Ballot] | None = None
        self._begin()

    def _begin(self) -> None:
        """Work on the next round, from the head."""
        self.work: SimClaim | None = None
        self.proposal: Proposal | None = None
        self.under_way: UnderWay | None = None
        self.votes: dict[str, Ballot] = {}
        self.work_at = self.world.now + WORK
        self.due_since = self.behind_since = -1
        self.engaged_until = self.retry_at = self.failures = 0

    def _save(self, data: bytes) -> None:
        self.disk = data

    def in_hand(self) -> set[int]:
        """The rounds whose work it holds, done and not agreed."""
        return {w.round for w in (self.work, self.late, self.work and self.work.late) if w}

    def stop(self) -> None:
        self.up = False
        self.world.let_go(self.name, self.in_hand())

    def leave(self) -> None:
        """Say farewell for the round in hand, if there is no vote in it, and for the next; then stop."""
        others = self.world.seen_by(self)
        voted = self.box.round == self.round and bool(self.box.ballots)
        if self.rules.leaving == "dropped":
            for other in others:
                self.world.send(self.name, other.name, "left", self.round, self.head.digest, voted)
        elif self.rules.leaving != "silent" and others:
            heaviest = max(others, key=lambda other: (self.head.group.weights.get(other.name, 0), other.name))
            for round in [self.round + 1] if voted else [self.round, self.round + 1]:
                self.said.setdefault(round, Farewell(self.name, round, heaviest.name, self.box.next_attempt(round)))
            for other in others:
                self.world.send(self.name, other.name, "farewell", dict(self.said))
        self.stop()

    def on_left(self, peer: str, round: int, base: str, voted: bool) -> None:
        self.left[peer] = (round, base, voted)

    def on_farewell(self, peer: str, said: dict[int, Farewell]) -> None:
        self._learn(said.values())

    def _learn(self, farewells: Any) -> None:
        for farewell in farewells:
            self.known[farewell.round, farewell.leaver] = farewell

    # ---- what it knows -----------------------------------------------------------------------------------------------

    @property
    def round(self) -> int:
        return self.head.round + 1

    def _farewells(self) -> dict[str, Farewell]:
        return {leaver: farewell for (round, leaver), farewell in self.known.items() if round == self.round}

    def successors(self) -> dict[str, str]:
        return {leaver: farewell.successor for leaver, farewell in self._farewells().items()}

    def _acceptors(self, farewells: Mapping[str, Farewell]) -> dict[str, int]:
        """Whose promises and votes count in an attempt whose group carries these farewells."""
        if self.rules.leaving == "heard":
            farewells = self._farewells()
        return self._counted(self.head, {leaver: farewell.successor for leaver, farewell in farewells.items()})

    def _counted(self, head: SimHead, successors: Mapping[str, str]) -> dict[str, int]:
        weights = head.group.weights
        if self.rules.leaving == "dropped":
            here = (head.round + 1, head.digest)
            gone = {p for p, (r, b, voted) in self.left.items() if r < here[0] or ((r, b) == here and not voted)}
            return {peer: weight for peer, weight in weights.items() if peer not in gone}
        return acceptors_after(weights, successors)

    def _may_lead(self, peer: str) -> bool:
        return peer in self.head.group.weights or peer in self._acceptors(self._farewells())

    def _may_take_part(self) -> bool:
        return not (self.rules.leaving == "heard" and self.round in self.said)

    def _is_in_group(self) -> bool:
        """Whether that keeps it from joining another: no rule of safety, so some do it all the same."""
        return self.under_way is not None and not self.world.is_hasty(self.name)

    def _can_go_on(self, others: list[SimPeer]) -> bool:
        here = {self.name, *(other.name for other in others if other.head.digest == self.head.digest)}
        return self.box.round <= self.round and has_majority(here, self._acceptors(self._farewells()))

    # ---- the clock ---------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        now, others = self.world.now, self.world.seen_by(self)
        for other in others:
            self.left.pop(other.name, None)
        ahead = any(self.world.shown_head(other).round > self.head.round for other in others)
        if ahead and not self.world.is_blind(self.name):
            if self._catch_up(others, now):  # also from within a group: its round may be over
                return
        else:
            self.behind_since = -1
        if self.under_way is not None:
            self._go_on_with_group(self.under_way, now)
        elif self.proposal is not None:
            if now >= self.proposal.deadline or self.proposal.asked < set(self.proposal.answers):
                self._close_proposal(self.proposal)
        elif now >= max(self.engaged_until, self.retry_at):
            if self.work is None and now >= self.work_at:
                self._finish_work()
            if self.work is not None and self._my_turn(others, now):
                self.lead([other.name for other in others if other.head.digest == self.head.digest])

    def _finish_work(self) -> SimClaim:
        if self.work is None:
            late, self.late = self.late, None
            self.work = SimClaim(self.name, self.round, self.head.digest, self.world.tokens[self.name], late)
            self.world.worked(self.work)
        return self.work

    def _my_turn(self, others: list[SimPeer], now: int) -> bool:
        if not self._may_take_part() or not self._can_go_on(others):
            self.due_since = -1
            return False
        if self.due_since < 0:
            self.due_since = now
        here = [self.name, *(other.name for other in others if other.head.digest == self.head.digest)]
        leads = {peer for peer in here if self._may_lead(peer)}
        line = sorted(leads, key=lambda peer: by_digest(f"{self.round}/{peer}"))
        return self.name in line and now - self.due_since >= line.index(self.name) * NEXT_IN_LINE

    def _abort(self) -> None:
        if not self.rules.keeps_work:
            self.work = None
        self.under_way = self.proposal = None
        self.failures += 1
        self.engaged_until, self.due_since = 0, -1
        self.retry_at = self.world.now + min(self.failures, 6)

    # ---- leading -----------------------------------------------------------------------------------------------------

    def lead(self, asked: list[str], bump: int = 0) -> None:
        """Ask for promises and claims."""
        heard = [self.world.peers[name].box.next_attempt(self.round) for name in asked if self.world.peers[name].up]
        least = (
            [farewell.attempt for farewell in self._farewells().values()] if self.rules.leaving == "farewell" else []
        )
        attempt = max([self.box.next_attempt(self.round) + bump, *heard, *least])
        try:
            self.box.promise(self.round, attempt, self.name)
        except Bound:
            return
        answers = {self.name: (self._finish_work(), self._ballots())}
        self.proposal = Proposal(attempt, set(asked), self.world.now + PROPOSE, answers)
        for peer in asked:
            self.world.send(self.name, peer, "propose", self.round, self.head.digest, attempt)

    def _ballots(self) -> list[Ballot]:
        """The newest vote: that is all that a member tells."""
        return self.box.ballots[-1:] if self.box.round == self.round else []

    def on_propose(self, leader: str, round: int, base: str, attempt: int) -> None:
        if self.rules.same_base and (round, base) != (self.round, self.head.digest):
            return
        if self._is_in_group() or not self._may_take_part():
            return
        if not self._may_lead(leader):
            return
        try:
            self.box.promise(round, attempt, leader)
        except Bound:
            return
        self.proposal, self.engaged_until = None, self.world.now + ENGAGED
        told = self._farewells() if self.rules.leaving == "farewell" else {}
        self.world.send(self.name, leader, "answer", attempt, self._finish_work(), self._ballots(), told)

    def on_answer(
        self, peer: str, attempt: int, claim: SimClaim, ballots: list[Ballot], farewells: dict[str, Farewell]
    ) -> None:
        self._learn(farewells.values())
        if self.proposal is None or self.proposal.attempt != attempt or not self._good_claim(claim):
            return
        self.proposal.answers[peer] = (claim, ballots)

    def _good_claim(self, claim: SimClaim) -> bool:
        if self.rules.same_base and (claim.round, claim.base) != (self.round, self.head.digest):
            return False
        return claim.late is None or self.rules.late_allowed(claim.peer, claim.late, self.head)

    def _close_proposal(self, proposal: Proposal) -> None:
        """The leader has waited long enough."""
        self.proposal = None
        cast = {peer: tuple(ballots) for peer, (_, ballots) in proposal.answers.items()}
        usurps = self.world.does(self.name, "usurp")
        if usurps and self.world.draw.random() < 0.5:  # it cannot change what others have signed: only leave it out
            cast = {peer: ballots for peer, ballots in cast.items() if not ballots or peer == self.name}
        shown = [self.world.attempts[self.round, ballot] for ballots in cast.values() for ballot in ballots]
        for attempt in shown:
            self._learn(attempt.farewells.values())
        farewells = self._farewells()
        too_early = self.rules.leaving == "farewell" and any(f.attempt > proposal.attempt for f in farewells.values())
        bound = self.box.is_bound(self.round, proposal.attempt, self.name)
        try:
            if too_early or not bound:
                raise RoundAborted("another attempt, or a later one")
            lock = None if usurps else self._locked(cast, farewells)
        except RoundAborted:
            self._abort()
            return
        groups = {attempt.group.name: attempt.group for attempt in shown}
        group = groups[lock.group] if lock else self._new_group(proposal)
        self.world.led(self.round, proposal.attempt, group, farewells)
        complete = lock.state if lock else ""
        for peer in group.claims:
            if peer != self.name:
                self.world.send(self.name, peer, "group", proposal.attempt, group, complete, farewells, cast)
        self._join(proposal.attempt, group, complete, farewells)

    def _locked(self, cast: Mapping[str, tuple[Ballot, ...]], farewells: Mapping[str, Farewell]) -> Ballot | None:
        """What promises say must be completed. Raises: RoundAborted."""
        shown = [self.world.attempts[self.round, ballot] for ballots in cast.values() for ballot in ballots]
        counts = self.rules.leaving == "farewell"
        return locked(
            cast,
            self._acceptors(farewells),
            {attempt.group.name: attempt.group.weights for attempt in shown},
            left=farewells if counts else (),
            carried={leaver for attempt in shown for leaver in attempt.farewells},
            complete=self.rules.must_complete,
        )

    def _is_shown(
        self,
        attempt: int,
        group: SimGroup,
        complete: str,
        farewells: Mapping[str, Farewell],
        cast: Mapping[str, tuple[Ballot, ...]],
    ) -> bool:
        """Whether a leader's promises say that this group may be: as `peer.swarm.leading.check_shown`."""
        if not self.rules.checks_leader:
            return True
        if not attempt:
            return not complete
        shown = [self.world.attempts[self.round, ballot] for ballots in cast.values() for ballot in ballots]
        if any(leaver not in farewells for item in shown for leaver in item.farewells):
            return False
        try:
            lock = self._locked(cast, farewells)
        except RoundAborted:
            return False
        return (group.name, complete) == ((lock.group, lock.state) if lock else (group.name, ""))

    def _new_group(self, proposal: Proposal) -> SimGroup:
        claims = {peer: claim for peer, (claim, _) in sorted(proposal.answers.items())}
        last = self.head.last
        counts = counted({peer: claim.worth for peer, claim in claims.items()}, last)
        name = f"{self.round}.{proposal.attempt} by {self.name} of {''.join(claims)}"
        return SimGroup(self.round, self.head.digest, name, claims, counts.weights, counts.newcomers)

    # ---- the group ---------------------------------------------------------------------------------------------------

    def on_group(
        self,
        leader: str,
        attempt: int,
        group: SimGroup,
        complete: str,
        farewells: dict[str, Farewell],
        cast: dict[str, tuple[Ballot, ...]],
    ) -> None:
        if self._is_in_group() or not self.box.is_bound(group.round, attempt, leader):
            return
        if self.rules.same_base and (group.round, group.base) != (self.round, self.head.digest):
            return
        if not complete and group.claims[self.name] != self.work:
            return
        if self.rules.leaving == "farewell" and group.round in self.said and self.name not in farewells:
            return
        if not self._is_shown(attempt, group, complete, farewells, cast):
            return
        if all(self._good_claim(claim) for claim in group.claims.values()):
            self._join(attempt, group, complete, farewells)

    def _join(self, attempt: int, group: SimGroup, complete: str, farewells: dict[str, Farewell]) -> None:
        self._learn(farewells.values())
        self.world.joined(group, attempt, self.name)
        self.engaged_until = 0
        ready_at = self.world.now + AVERAGE + (6 if self.world.is_slow(self.name) else 0)
        self.under_way = UnderWay(attempt, group, farewells, complete, ready_at)

    def _go_on_with_group(self, mine: UnderWay, now: int) -> None:
        if mine.deadline:
            if now >= mine.deadline:
                self._abort()
            else:
                self._count(mine)
            return
        if now < mine.ready_at:
            return
        if mine.complete:
            mine.content = self._fetch(mine.complete, list(mine.group.claims))
        else:
            mine.content = self.world.average(self, mine.group, mine.attempt)
        if not mine.content:
            self._abort()
            return
        if self.world.does(self.name, "mislead"):
            mine.complete, mine.content = "", f"{mine.content}, says {self.name}"
        ballot = Ballot(mine.attempt, mine.group.name, mine.complete or mine.content)
        try:
            self.box.vote(mine.group.round, ballot)
        except Bound:
            self._abort()
            return
        self.world.cast(mine.group.round, ballot, mine.group)
        self.held.add(mine.content)
        mine.deadline = now + MAJORITY
        self.last_vote, self.votes[self.name] = (mine.group.round, ballot), ballot
        for peer in mine.group.claims:
            if peer != self.name:
                self.world.send(self.name, peer, "vote", mine.group.round, ballot, True)
        self._count(mine)

    def on_vote(self, peer: str, round: int, ballot: Ballot, asks: bool) -> None:
        if round == self.round:
            known = self.votes.get(peer)
            if known is None or known.attempt < ballot.attempt:
                self.votes[peer] = ballot
        if asks and self.last_vote is not None:
            self.world.send(self.name, peer, "vote", *self.last_vote, False)

    def _count(self, mine: UnderWay) -> None:
        acceptors = self._acceptors(mine.farewells)
        for state in sorted({vote.state for vote in self.votes.values()}):
            ballot = Ballot(mine.attempt, mine.group.name, state)
            voters = {peer for peer, vote in self.votes.items() if vote == ballot} & set(mine.group.claims)
            if self.rules.is_committed(voters, acceptors, mine.group.weights):
                own = mine.complete or mine.content
                content = mine.content if state == own else self._fetch(state, sorted(voters))
                if content:
                    self._advance(self._head_after(mine.group, state, content, voters))
                else:
                    self._abort()
                return

    def _head_after(self, group: SimGroup, state: str, content: str, voters: set[str]) -> SimHead:
        said = self.under_way.farewells if self.under_way else {}
        successors = {leaver: farewell.successor for leaver, farewell in said.items()}
        return SimHead(self.round, state, content, group, frozenset(voters), successors, self.head)

    # ---- catching up -------------------------------------------------------------------------------------------------

    def _fetch(self, digest: str, sources: list[str]) -> str:
        """A state by its digest, from here or from others; empty when nobody can give it."""
        if digest in self.held:
            return digest
        for source in sources:
            content = self.world.hand_over(source, self.name, digest)
            if content and (content == digest or not self.rules.checks_digests):
                return content
        return ""

    def _catch_up(self, others: list[SimPeer], now: int) -> bool:
        """Take a later head, if it follows from this one's."""
        heads = sorted(
            ((self.world.shown_head(other), other.name) for other in others), key=lambda item: -item[0].round
        )
        ahead = [(head, name) for head, name in heads if head.round > self.head.round]
        if not ahead:
            self.behind_since = -1
            return False
        if self.behind_since < 0:
            self.behind_since = now
        if ahead[0][0].round <= self.head.round + 1 and now - self.behind_since < BEHIND:
            return False
        for head, source in ahead:
            if not self.rules.checks_heads or head.follows_on(self.head, self._counted):
                content = self._fetch(head.digest, [source, *(name for other, name in ahead if other == head)])
                if content:
                    self._advance(replace(head, content=content))
                    return True
        return False

    def _advance(self, head: SimHead) -> None:
        """Stand on a new head: everything of the round before is over."""
        before, work, self.late = self.in_hand(), self.work, None
        if work is not None:
            late = Late(work.round, work.base, work.tokens)
            self.late = late if self.rules.late_allowed(self.name, late, head) else None
        self.world.let_go(self.name, before - ({work.round} if work and self.late else set()))
        self.world.stands_on(self, head)
        self.held = {self.head.content, head.content}
        self.head = head
        self._begin()
