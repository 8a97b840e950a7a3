"""Many members of one run in memory, with the real rules of a round and a network that does its worst.

What a member of `peer.swarm.rounds` decides by the rules, a `SimMember` decides by the same ones: whether to promise, what
to propose, whether to vote, whether that commits. Everything else is made up: a group's average is a string, and the
network delivers messages in any order, twice, late, or never; members crash and come back from what their box saved.

    history = simulate(random.Random(1), rounds=10)      # raises Diverged when two members commit different states
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from peer.round_rules import Ballot, BallotBox, Bound, Undecided, is_committed, must_complete
from protocol.claim import GROWTH_CAP, has_majority


class Diverged(AssertionError):
    """Two members committed different states for one round."""


@dataclass(frozen=True)
class Rulebook:
    """The rules in force; a test plants a bug by replacing one."""

    box: type[BallotBox] = BallotBox
    must_complete: Callable[..., Ballot | None] = must_complete
    is_committed: Callable[..., bool] = is_committed
    remembers: bool = True  # a member that comes back has what its box saved


@dataclass
class Round:
    """What all members of one round know from the start."""

    number: int
    acceptors: Mapping[str, int]
    claims: Mapping[str, int]  # tokens that each member claims, capped
    groups: dict[str, dict[str, int]] = field(default_factory=dict)  # group digest -> weights


class SimMember:
    """One member in one round."""

    def __init__(self, name: str, rules: Rulebook, round_: Round, net: Network, disk: bytes | None) -> None:
        self.name, self.rules, self.round, self.net = name, rules, round_, net
        self.disk = disk
        self.committed: str | None = None
        self.wake()

    def wake(self) -> None:
        """Start, with nothing but what is on disk."""
        self.up = True
        self.box = self.rules.box(save=self._save)
        if self.disk is not None and self.rules.remembers:
            self.box.restore(self.disk)
        self.answers: dict[str, list[Ballot]] = {}
        self.leading = -1
        self.voting: tuple[int, str] | None = None
        self.averaging: tuple[int, str] | None = None
        self.votes: dict[str, Ballot] = {}

    def _save(self, data: bytes) -> None:
        self.disk = data

    def lead(self, attempt: int, asked: list[str]) -> None:
        try:
            self.box.promise(self.round.number, attempt, self.name)
        except Bound:
            return
        self.leading, self.answers, self.voting = attempt, {self.name: self._ballots()}, None
        for peer in asked:
            self.net.send(peer, "proposed", attempt, self.name)

    def _ballots(self) -> list[Ballot]:
        """The newest vote: that is all that a member tells."""
        return self.box.ballots[-1:] if self.box.round == self.round.number else []

    def proposed(self, attempt: int, leader: str) -> None:
        try:
            self.box.promise(self.round.number, attempt, leader)
        except Bound:
            return
        self.voting = None
        self.net.send(leader, "answered", attempt, self.name, self._ballots())

    def answered(self, attempt: int, peer: str, ballots: list[Ballot]) -> None:
        if attempt == self.leading:
            self.answers[peer] = ballots

    def close_proposal(self, attempt: int) -> None:
        """The leader has waited long enough."""
        if not self.box.is_bound(self.round.number, attempt, self.name):
            return
        if not has_majority(set(self.answers), self.round.acceptors):
            return
        self.leading = -1
        try:
            lock = self.rules.must_complete(self.answers, self.round.acceptors, self.round.groups)
        except Undecided:
            return
        if lock is not None:
            group, complete = lock.group, lock.state
        else:
            group, complete = f"group {attempt} {self.name}", ""
            self.round.groups[group] = {peer: self.round.claims[peer] for peer in self.answers}
        for peer in self.round.groups[group]:
            self.net.send(peer, "grouped", attempt, self.name, group, complete)

    def grouped(self, attempt: int, leader: str, group: str, complete: str) -> None:
        if self.box.is_bound(self.round.number, attempt, leader) and self.averaging != (attempt, group):
            self.averaging = (attempt, group)
            state = complete or self.net.average(group)
            if state:  # else the all-reduce failed here
                self.net.later(self.name, "averaged", attempt, group, state)

    def averaged(self, attempt: int, group: str, state: str) -> None:
        """The all-reduce took a while."""
        if self.averaging != (attempt, group):
            return  # there was a crash in between
        try:
            self.box.vote(self.round.number, Ballot(attempt, group, state))
        except Bound:
            return
        self.voting = (attempt, group)
        for peer in self.round.groups[group]:
            self.net.send(peer, "voted", self.name, Ballot(attempt, group, state))

    def voted(self, peer: str, ballot: Ballot) -> None:
        known = self.votes.get(peer)
        if known is None or known.attempt < ballot.attempt:
            self.votes[peer] = ballot
        if self.voting is None:
            return
        attempt, group = self.voting
        weights = self.round.groups[group]
        for state in {vote.state for vote in self.votes.values()}:
            voters = {peer for peer, vote in self.votes.items() if vote == Ballot(attempt, group, state)}
            if self.rules.is_committed(voters & set(weights), self.round.acceptors, weights):
                self.net.commit(self, state)


class Network:
    """Carries messages, or does not."""

    def __init__(self, draw: random.Random, loss: float, faulty: float) -> None:
        self.draw, self.loss, self.faulty = draw, loss, faulty
        self.members: dict[str, SimMember] = {}
        self.flying: list[tuple[str, str, tuple[Any, ...]]] = []
        self.state: str | None = None
        self.weights: dict[str, int] = {}

    def send(self, to: str, what: str, *values: Any) -> None:
        if self.draw.random() >= self.loss:
            self.flying.append((to, what, values))

    def later(self, to: str, what: str, *values: Any) -> None:
        """Something that a member does itself: it is not lost."""
        self.flying.append((to, what, values))

    def deliver(self) -> None:
        if self.flying:
            index = self.draw.randrange(len(self.flying))
            again = self.draw.random() < self.loss / 4
            to, what, values = self.flying[index] if again else self.flying.pop(index)
            member = self.members[to]
            if member.up and member.committed is None:
                getattr(member, what)(*values)

    def average(self, group: str) -> str:
        """What one member gets from the all-reduce: nothing, the state, or (a reducer lied or failed) another one."""
        chance = self.draw.random()
        if chance < self.faulty:
            return ""
        return f"{group} wrong" if chance < 2 * self.faulty else group

    def commit(self, member: SimMember, state: str) -> None:
        member.committed = state
        if self.state not in (None, state):
            raise Diverged(f"round {member.round.number}: {state!r} after {self.state!r}")
        self.state, (_, group) = state, member.voting or (0, "")
        self.weights = member.round.groups[group]


def simulate(draw: random.Random, rounds: int, rules: Rulebook | None = None, steps: int = 150) -> int:
    """Play `rounds` rounds; returns how many of them committed in the storm itself, before it calmed down.

    Raises:
        Diverged: the rules were broken.
    """
    rules = rules or Rulebook()
    count = draw.randint(2, 5)
    names = [f"peer{index}" for index in range(count)]
    weights = {name: draw.choice([1, 1, 2, 3, 10]) for name in names}
    disks: dict[str, bytes | None] = {}
    in_storm = 0
    for number in range(2, rounds + 2):
        net = Network(draw, loss=draw.choice([0.0, 0.1, 0.3]), faulty=draw.choice([0.0, 0.1, 0.25]))
        here = _change_membership(draw, names, weights, number)
        claims = {name: min(draw.randint(1, 40), _cap(name, weights)) for name in here}
        round_ = Round(number, dict(weights), claims)
        net.members = {name: SimMember(name, rules, round_, net, disks.get(name)) for name in here}
        _storm(draw, net, steps)
        in_storm += net.state is not None
        _calm(net, steps)
        if net.state is None:
            raise AssertionError(f"round {number} did not commit although everyone is there and the network is quiet")
        disks |= {name: member.disk for name, member in net.members.items()}
        weights, names = dict(net.weights), here
    return in_storm


def _cap(name: str, weights: Mapping[str, int]) -> int:
    return GROWTH_CAP * weights[name] if name in weights else max(weights.values())


def _change_membership(draw: random.Random, names: list[str], weights: Mapping[str, int], number: int) -> list[str]:
    """Who is there in this round: newcomers join, and some stay away as long as a majority of the last round is there."""
    here = [*names, *(f"new{number}.{index}" for index in range(draw.choice([0, 0, 0, 1, 2])))]
    for name in draw.sample(here, k=min(len(here), draw.choice([0, 1, 2]))):
        if has_majority(set(here) - {name}, weights) and len(here) > 1:
            here.remove(name)
    return here


def _storm(draw: random.Random, net: Network, steps: int) -> None:
    members = list(net.members.values())
    names = [member.name for member in members]
    crashes, leads = draw.choice([0.0, 0.01, 0.05]), draw.choice([0.02, 0.1])
    for _ in range(steps):
        chance, member = draw.random(), draw.choice(members)
        if not member.up:
            if chance < 0.3:
                member.wake()  # what it had committed, it still has
        elif chance < crashes:
            member.up = False
        elif member.committed is not None:
            net.deliver()
        elif chance < crashes + leads:
            asked = draw.sample([name for name in names if name != member.name], k=draw.randrange(len(members)))
            bump = draw.choice([0, 0, 0, 1, 2])
            member.lead(member.box.next_attempt(member.round.number) + bump, asked)
        elif chance < 0.3 and member.leading >= 0 and has_majority(set(member.answers), member.round.acceptors):
            member.close_proposal(member.leading)
        else:
            net.deliver()


def _calm(net: Network, steps: int) -> None:
    """Everyone is back, nothing is lost: as in life, one attempt after the other, until it is done."""
    net.loss = net.faulty = 0.0
    net.flying.clear()
    members = list(net.members.values())
    for member in members:
        if not member.up:
            member.wake()
    if any(member.committed is not None for member in members):
        return  # the others fetch it
    leader = members[0]
    for _ in range(10):
        attempt = max(member.box.next_attempt(member.round.number) for member in members)
        leader.lead(attempt, [member.name for member in members[1:]])
        _drain(net)
        leader.close_proposal(attempt)
        _drain(net)
        if net.state is not None:
            return


def _drain(net: Network) -> None:
    while net.flying:
        net.deliver()
