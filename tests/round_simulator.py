"""A swarm in memory, with the real rules of a round and a network that does its worst.

What a member of `peer.swarm.rounds` decides by the rules, a `SimPeer` decides by the same ones: whether to promise, what
to propose, whether to vote, whether that commits, whom to follow. It lives through all rounds: it may lag behind, stand
still for several, die and come back with what is on its disk, leave and return. Everything else is made up: a state is a
string (its digest is the string itself), time is counted in ticks. The faults are a `swarm_plans.Plan`.

    simulate(random_plan(7))      # raises Broken, or one of its kinds, with the plan's story, when a rule does not hold

What is checked: no two peers stand on different states of one round; a group averages claims for its own round and base
only; no work is in two agreements, and work that is in none was dropped knowingly; once the network is quiet, everyone
stands on one head within two rounds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from swarm_plans import Fault, Plan

from peer.round_rules import Ballot, BallotBox, Bound, Branch, Undecided, is_committed, must_complete, prefers
from protocol import canonical
from protocol.claim import has_majority, weights

WORK, PROPOSE, AVERAGE, MAJORITY, ENGAGED, BEHIND, NEXT_IN_LINE = 3, 6, 2, 8, 12, 2, 4  # ticks
CALM_TICKS = 400


class Broken(AssertionError):
    """A rule of the run does not hold."""


class Diverged(Broken):
    """Two peers stand on different states of one round."""


class Stuck(Broken):
    """Everyone is there and the network is quiet, and still they do not come together."""


@dataclass(frozen=True)
class Farewell:
    """A leaver's word: in this round, from this attempt on, its weight among the acceptors is its successor's."""

    leaver: str
    round: int
    successor: str
    attempt: int


def acceptors_after(weights: Mapping[str, int], farewells: Mapping[str, str]) -> dict[str, int]:
    """Whose promises and votes count how much, when some acceptors have handed their weight to a successor.

    Chains of successors are followed; leavers that hand over in a circle speak for themselves. The numbers are twice the
    weights, and one more for the acceptor that decides an even split: so there are no ties, whoever speaks for that one.

    Args:
        weights: peer id -> weight in the agreement of the round before.
        farewells: leaver -> successor, those that the group's leader has sent along, and no others.
    """
    first = min(weights, key=_by_digest, default="")
    counted: dict[str, int] = {}
    for peer, weight in weights.items():
        voice, passed = peer, set()
        while voice in farewells and voice not in passed:
            passed.add(voice)
            voice = farewells[voice]
        counted[voice] = counted.get(voice, 0) + 2 * weight + (peer == first)
    return counted


@dataclass(frozen=True)
class Late:
    """Work that missed its own round."""

    round: int
    base: str
    tokens: int


@dataclass(frozen=True)
class SimClaim:
    peer: str
    round: int
    base: str
    tokens: int
    late: Late | None = None

    @property
    def worth(self) -> int:
        """What it counts for before it is capped: late work counts half."""
        return self.tokens + (self.late.tokens // 2 if self.late else 0)


@dataclass(frozen=True)
class SimGroup:
    round: int
    base: str
    name: str
    claims: Mapping[str, SimClaim]
    weights: Mapping[str, int]


@dataclass(frozen=True)
class SimHead:
    round: int
    digest: str  # what it is believed to be
    content: str  # what it is
    group: SimGroup  # whose agreement it is
    voters: frozenset[str]
    history_tokens: int
    successors: Mapping[str, str] = field(default_factory=dict)  # the farewells by which it was counted
    before: SimHead | None = field(default=None, repr=False, compare=False)

    def follows_on(self, mine: SimHead, counted_by: Callable[[SimHead, Mapping[str, str]], Mapping[str, int]]) -> bool:
        """Whether each round from `mine` to this one was committed by a majority of the one before."""
        head = self
        while head.round > mine.round and head.before is not None:
            if not has_majority(set(head.voters), counted_by(head.before, head.successors)):
                return False
            head = head.before
        return head.digest == mine.digest


def late_allowed(peer: str, late: Late, head: SimHead) -> bool:
    """Whether work that missed the round of `head` may be added to a claim on top of it."""
    return (late.round, late.base) == (head.round, head.group.base) and peer not in head.group.claims


@dataclass(frozen=True)
class Rulebook:
    """The rules in force; a test plants a bug by replacing one."""

    box: type[BallotBox] = BallotBox
    must_complete: Callable[..., Ballot | None] = must_complete
    is_committed: Callable[..., bool] = is_committed
    remembers: bool = True  # a member that comes back has what its box saved
    checks_digests: bool = True  # of a state that is fetched
    same_base: bool = True  # a group takes claims for its own round and base only
    keeps_work: bool = True  # when an attempt comes to nothing
    late_allowed: Callable[[str, Late, SimHead], bool] = late_allowed
    shows_chain: bool = True  # a head is handed over with the agreements since that of the one who asks
    leaving: str = (
        "farewell"  # or "dropped": by who has heard of it; "silent"; "heard": who knows the farewell counts by it
    )


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
        if any(other.head.round > self.head.round for other in others) and not self.world.is_blind(self.name):
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
        line = sorted(here, key=lambda peer: _by_digest(f"{self.round}/{peer}"))
        return now - self.due_since >= line.index(self.name) * NEXT_IN_LINE

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
        cast = {peer: ballots for peer, (_, ballots) in proposal.answers.items()}
        shown = [self.world.attempts[self.round, ballot] for ballots in cast.values() for ballot in ballots]
        for attempt in shown:
            self._learn(attempt.farewells.values())
        farewells = self._farewells()
        acceptors = self._acceptors(farewells)
        too_early = self.rules.leaving == "farewell" and any(f.attempt > proposal.attempt for f in farewells.values())
        bound = self.box.is_bound(self.round, proposal.attempt, self.name)
        if too_early or not bound or not has_majority(set(cast), acceptors):
            self._abort()
            return
        groups = {attempt.group.name: attempt.group for attempt in shown}
        carried = {leaver for attempt in shown for leaver in attempt.farewells}
        if self.rules.leaving == "farewell":  # who left before that vote, and was not in it since, did not cast one
            cast |= {leaver: [] for leaver in farewells if leaver not in carried and leaver not in cast}
        try:
            lock = self.rules.must_complete(cast, acceptors, {name: group.weights for name, group in groups.items()})
        except Undecided:
            self._abort()
            return
        group = groups[lock.group] if lock else self._new_group(proposal)
        self.world.led(self.round, proposal.attempt, group, farewells)
        complete = lock.state if lock else ""
        for peer in group.claims:
            if peer != self.name:
                self.world.send(self.name, peer, "group", proposal.attempt, group, complete, farewells)
        self._join(proposal.attempt, group, complete, farewells)

    def _new_group(self, proposal: Proposal) -> SimGroup:
        claims = {peer: claim for peer, (claim, _) in sorted(proposal.answers.items())}
        given = weights(claims, self.head.group.weights)  # type: ignore[arg-type]
        name = f"{self.round}.{proposal.attempt} by {self.name} of {''.join(claims)}"
        return SimGroup(self.round, self.head.digest, name, claims, given)

    # ---- the group ---------------------------------------------------------------------------------------------------

    def on_group(
        self, leader: str, attempt: int, group: SimGroup, complete: str, farewells: dict[str, Farewell]
    ) -> None:
        if self._is_in_group() or not self.box.is_bound(group.round, attempt, leader):
            return
        if self.rules.same_base and (group.round, group.base) != (self.round, self.head.digest):
            return
        if not complete and group.claims[self.name] != self.work:
            return
        if self.rules.leaving == "farewell" and group.round in self.said and self.name not in farewells:
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
        tokens = self.head.history_tokens + sum(group.weights.values())
        said = self.under_way.farewells if self.under_way else {}
        successors = {leaver: farewell.successor for leaver, farewell in said.items()}
        return SimHead(self.round, state, content, group, frozenset(voters), tokens, successors, self.head)

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
        mine = self._own_branch(others)
        branches = _branches(others)
        better = [b for b in branches if b.state != mine.state and b.round >= mine.round]
        better = [b for b in better if self._may_follow(b.round) or prefers(b, mine)]
        if not better:
            self.behind_since = -1
            return False
        if self.behind_since < 0:
            self.behind_since = now
        better.sort(key=lambda b: (b.supporters, b.history_tokens, b.state), reverse=True)
        if better[0].round <= mine.round + 1 and now - self.behind_since < BEHIND:
            return False
        for branch in better:
            sources = [other.name for other in others if other.head.digest == branch.state]
            head = self.world.peers[sources[0]].head
            shown = self.rules.shows_chain or head.round == self.round
            if (shown and head.follows_on(self.head, self._counted)) or prefers(branch, mine):
                content = self._fetch(head.digest, sources)
                if content:
                    self._advance(replace(head, content=content))
                    return True
        return False

    def _may_follow(self, round: int) -> bool:
        return round == self.round or (self.rules.shows_chain and round > self.round)

    def _own_branch(self, others: list[SimPeer]) -> Branch:
        followers = sum(other.head.digest == self.head.digest for other in others)
        supporters = followers + 1 if self._can_go_on(others) else 0
        return Branch(self.head.round, self.head.digest, self.head.history_tokens, supporters)

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


@cache
def _by_digest(text: str) -> str:
    return canonical.sha256_hex(text.encode())


def _branches(others: list[SimPeer]) -> list[Branch]:
    found: dict[str, Branch] = {}
    for other in others:
        known = found.get(other.head.digest)
        count = known.supporters + 1 if known else 1
        found[other.head.digest] = Branch(other.head.round, other.head.digest, other.head.history_tokens, count)
    return list(found.values())


class World:
    """The peers, the network between them, and who looks on and knows everything."""

    def __init__(self, plan: Plan, rules: Rulebook) -> None:
        self.plan, self.rules, self.now = plan, rules, 0
        self.draw = random.Random(plan.jitter)
        self.faults: dict[str, list[Fault]] = {}  # in force, by kind
        self.mail: dict[int, list[tuple[str, str, str, tuple[Any, ...]]]] = {}
        self.attempts: dict[tuple[int, Ballot], Attempt] = {}
        self._led: dict[tuple[int, str], Attempt] = {}
        self.states: dict[int, str] = {}  # round -> what all must stand on
        self.rounds_in_storm = 0
        self.stood: dict[int, set[str]] = {}  # round -> who stands or stood on it since the network healed
        self.agreed: dict[int, SimGroup] = {}
        self.works: dict[tuple[str, int], str] = {}  # (peer, round) -> what became of it
        first = {member.name: member.weight for member in plan.members if member.weight}
        self.tokens = {member.name: 2 * max(member.weight, 1) for member in plan.members}
        claims = {name: SimClaim(name, 1, "genesis", weight) for name, weight in first.items()}
        group = SimGroup(1, "genesis", "first", claims, first)
        head = SimHead(1, "round 1", "round 1", group, frozenset(first), sum(first.values()))
        self.peers = {member.name: SimPeer(member.name, self, head) for member in plan.members}
        self.order = list(self.peers.values())

    # ---- the network -------------------------------------------------------------------------------------------------

    def _in_force(self, kind: str) -> list[Fault]:
        return self.faults.get(kind, [])

    def is_frozen(self, name: str) -> bool:
        return any(fault.who[0] == name for fault in self._in_force("freeze"))

    def is_hasty(self, name: str) -> bool:
        return any(name in fault.who for fault in self._in_force("hasty"))

    def is_blind(self, name: str) -> bool:
        return any(name in fault.who for fault in self._in_force("blind"))

    def is_slow(self, name: str) -> bool:
        return any(name in fault.who for fault in self._in_force("slow"))

    def is_cut(self, one: str, other: str) -> bool:
        return any((one in fault.who) != (other in fault.who) for fault in self._in_force("split"))

    def seen_by(self, peer: SimPeer) -> list[SimPeer]:
        """Who is there, as gossip would tell."""
        return [
            other
            for other in self.order
            if other is not peer
            and other.up
            and not (self.faults and (self.is_cut(peer.name, other.name) or self.is_frozen(other.name)))
        ]

    def send(self, sender: str, to: str, what: str, *values: Any) -> None:
        delay = 1 + (self.draw.choice([0, 0, 0, 1, 2]) if self.plan.jitter else 0)
        copies = [delay]
        if self.faults:
            if self._in_force("lossy") and self.draw.random() < 0.3:
                return
            if self.is_cut(sender, to) or self._on_link("lose", sender, to, what):
                return
            if self._on_link("delay", sender, to, what):
                copies = [delay + 4]
            if self._on_link("twice", sender, to, what):
                copies.append(delay + 9)
        for after in copies:
            self.mail.setdefault(self.now + after, []).append((sender, to, what, values))

    def _on_link(self, kind: str, sender: str, to: str, what: str) -> bool:
        return any(f.who[:2] == (sender, to) and f.what in ("", what) for f in self._in_force(kind))

    def hand_over(self, source: str, to: str, digest: str) -> str:
        """What a peer gets when it asks another for a state."""
        peer = self.peers[source]
        if not peer.up or source == to or self.is_cut(source, to) or self.is_frozen(source):
            return ""
        held = {peer.head.digest: peer.head.content} | {content: content for content in peer.held}
        damaged = any(fault.who[0] == source for fault in self._in_force("corrupt"))
        return held[digest] + f", damaged by {source}" if damaged and digest in held else held.get(digest, "")

    def average(self, peer: SimPeer, group: SimGroup, attempt: int) -> str:
        """What one member gets from the all-reduce: nothing, the state, or (a reducer lied or failed) another one."""
        there = self._led[group.round, _key(attempt, group)].joined
        if any(peer.name in fault.who for fault in self._in_force("fail")) or there != set(group.claims):
            return ""
        if any(self.is_cut(peer.name, other) for other in group.claims):
            return ""
        wrong = any(peer.name in fault.who for fault in self._in_force("wrong"))
        base = "" if peer.head.digest == group.base else f" on {peer.head.digest}"
        return f"average {group.name}{base}{', wrong' if wrong else ''}"

    # ---- who looks on ------------------------------------------------------------------------------------------------

    def led(self, round: int, attempt: int, group: SimGroup, farewells: dict[str, Farewell]) -> None:
        self._led[round, _key(attempt, group)] = Attempt(group, dict(farewells))

    def joined(self, group: SimGroup, attempt: int, name: str) -> None:
        self._led[group.round, _key(attempt, group)].joined.add(name)

    def cast(self, round: int, ballot: Ballot, group: SimGroup) -> None:
        """A vote: whoever is told of it is shown the group with it."""
        self.attempts[round, ballot] = self._led[round, _key(ballot.attempt, group)]

    def worked(self, claim: SimClaim) -> None:
        self.works[claim.peer, claim.round] = "in hand"

    def let_go(self, name: str, rounds: set[int]) -> None:
        """Work that its author has no more: agreed, or too old, or lost with it in a crash."""
        for round in rounds:
            self.works[name, round] = "let go"

    def stands_on(self, peer: SimPeer, head: SimHead) -> None:
        """A peer commits a round or follows others: the place where nothing may differ."""
        known = self.states.setdefault(head.round, head.content)
        if known != head.content:
            raise Diverged(f"round {head.round}: {peer.name} stands on {head.content!r}, others on {known!r}")
        self.agreed.setdefault(head.round, head.group)
        self.stood.setdefault(head.round, set()).add(peer.name)
        for claim in head.group.claims.values():
            if (claim.round, claim.base) != (head.round, head.group.base):
                raise Broken(f"round {head.round} averages {claim}")

    def check_work(self) -> None:
        """No work is counted twice, and none is gone without a word."""
        counted: set[tuple[str, int]] = set()
        for round, group in self.agreed.items():
            for claim in group.claims.values():
                for work in [claim.round] + ([claim.late.round] if claim.late else []):
                    if (claim.peer, work) in counted:
                        raise Broken(f"round {round} counts the work of {claim.peer} for round {work} a second time")
                    counted.add((claim.peer, work))
        for (name, round), fate in self.works.items():
            if fate == "in hand" and round not in self.peers[name].in_hand() and (name, round) not in counted:
                raise Broken(f"the work of {name} for round {round} is nowhere")

    # ---- time --------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        for sender, to, what, values in self.mail.pop(self.now, []):
            peer = self.peers[to]
            if self.faults and self.is_frozen(to):
                self.mail.setdefault(self.now + 1, []).append((sender, to, what, values))
            elif peer.up:
                getattr(peer, "on_" + what)(sender, *values)
        for peer in self.order:
            if peer.up and not (self.faults and self.is_frozen(peer.name)):
                peer.tick()
        for fault in self._in_force("restless"):
            peer = self.peers[self.draw.choice(fault.who)]
            if self.draw.random() < 0.25 and peer.up and not self.is_frozen(peer.name):
                others = [name for name in self.peers if name != peer.name]
                peer.lead(self.draw.sample(others, self.draw.randint(1, len(others))))
        for fault in self._in_force("shaky"):
            peer = self.peers[self.draw.choice(fault.who)]
            if self.draw.random() < 0.1 and peer.up:
                peer.stop()
                peer.start()
        self.now += 1

    def storm(self) -> None:
        begins: dict[int, list[Fault]] = {}
        ends: dict[int, list[Fault]] = {}
        for fault in self.plan.faults:
            begins.setdefault(fault.at, []).append(fault)
            ends.setdefault(fault.until, []).append(fault)
        starts = {member.name: member.starts for member in self.plan.members}
        while self.now < self.plan.ticks:
            for fault in ends.get(self.now, []):
                self._end(fault)
            for peer in self.order:
                if starts[peer.name] == self.now and not peer.up:
                    peer.start()
            for fault in begins.get(self.now, []):
                self._begin(fault)
            self.step()

    def _begin(self, fault: Fault) -> None:
        peer = self.peers[fault.who[0]]
        if fault.kind == "crash" and peer.up:
            peer.stop()
        elif fault.kind == "leave" and peer.up:
            peer.leave()
        elif fault.kind == "rival" and peer.up:
            peer.lead(list(fault.who[1:]))
        elif fault.kind not in ("crash", "leave", "rival"):
            self.faults.setdefault(fault.kind, []).append(fault)

    def _end(self, fault: Fault) -> None:
        peer = self.peers[fault.who[0]]
        if fault.kind in ("crash", "leave") and not peer.up:
            peer.start()
        elif fault in self._in_force(fault.kind):
            self.faults[fault.kind].remove(fault)
            if not self.faults[fault.kind]:
                del self.faults[fault.kind]

    def calm(self) -> None:
        """Everyone is back, nothing is lost."""
        self.rounds_in_storm = len(self.states)
        self.faults.clear()
        for peer in self.order:
            if not peer.up:
                peer.start()
        newest = max(peer.head.round for peer in self.order)
        self.stood.clear()
        for _ in range(CALM_TICKS):
            self.step()
            together = [
                round for round, names in self.stood.items() if round > newest and len(names) == len(self.order)
            ]
            if together:
                if min(together) > newest + 3:  # the round in hand, and two
                    raise Stuck(f"together only in round {min(together)}; the network healed in round {newest}")
                return
        if not self._wait_for_a_lost_state():
            where = ", ".join(f"{peer.name} at round {peer.head.round}" for peer in self.order)
            raise Stuck(f"{CALM_TICKS} ticks after the network healed in round {newest}: {where}")

    def _wait_for_a_lost_state(self) -> bool:
        """Whether a state that may be committed died with all who held it: a voted state is in memory only."""
        held = {content for peer in self.order for content in peer.held}
        return any(peer.box.round == peer.round and {b.state for b in peer.box.ballots} - held for peer in self.order)

    @property
    def rounds(self) -> int:
        """How many rounds were committed."""
        return len(self.states)


def _key(attempt: int, group: SimGroup) -> str:
    return f"{attempt} {group.name}"


def simulate(plan: Plan, rules: Rulebook | None = None) -> World:
    """Play a plan; returns the world as it is afterwards.

    Raises:
        Broken: a rule does not hold; with the story of the plan.
    """
    world = World(plan, rules or Rulebook())
    try:
        world.storm()
        world.calm()
        world.check_work()
    except Broken as error:
        raise type(error)(f"{error}\n{plan.story()}") from None
    return world
