"""A swarm in memory, with the real rules of a round and a network that does its worst.

What a member of `peer.round.report` decides by the rules, a `SimPeer` decides by the same ones: whether to promise, what
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
from typing import Any

from peer.round_rules import Ballot

from protocol.majority import acceptors_after
from tests.sim_peer import Attempt, SimPeer
from tests.sim_rules import Broken, Diverged, Farewell, Rulebook, SimClaim, SimGroup, SimHead, Stuck
from tests.swarm_plans import Fault, Plan

CALM_TICKS = 400


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
        head = SimHead(1, "round 1", "round 1", group, frozenset(first))
        self.peers = {member.name: SimPeer(member.name, self, head) for member in plan.members}
        self.order = list(self.peers.values())

    # ---- the network -------------------------------------------------------------------------------------------------

    def _in_force(self, kind: str) -> list[Fault]:
        return self.faults.get(kind, [])

    def does(self, name: str, lie: str) -> bool:
        """Whether a member is hostile now; who speaks for half of the weight need not lie: it decides."""
        if not any(name in fault.who for fault in self._in_force(lie)):
            return False
        return all(2 * weights.get(name, 0) < sum(weights.values()) for weights in self.deciding(name))

    def deciding(self, name: str) -> list[dict[str, int]]:
        """Who speaks for how much, as that member knows."""
        peer = self.peers[name]
        return [dict(peer.head.group.weights), acceptors_after(peer.head.group.weights, peer.successors())]

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

    def shown_head(self, peer: SimPeer) -> SimHead:
        """Where a peer says that it stands."""
        if not self.does(peer.name, "boast"):
            return peer.head
        round, own = peer.head.round + 2, peer.head
        claim = SimClaim(peer.name, round, own.digest, 10**6)
        group = SimGroup(round, own.digest, f"lie of {peer.name}", {peer.name: claim}, {peer.name: 10**6})
        lie = f"made up by {peer.name} for round {round}"
        return SimHead(round, lie, lie, group, frozenset([peer.name]), before=own)

    def hand_over(self, source: str, to: str, digest: str) -> str:
        """What a peer gets when it asks another for a state."""
        peer = self.peers[source]
        if not peer.up or source == to or self.is_cut(source, to) or self.is_frozen(source):
            return ""
        shown = self.shown_head(peer)
        held = {peer.head.digest: peer.head.content, shown.digest: shown.content} | {
            content: content for content in peer.held
        }
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
        for fault in self._in_force("usurp"):
            peer = self.peers[fault.who[0]]
            if self.draw.random() < 0.25 and peer.up and not self.is_frozen(peer.name):
                others = [name for name in self.peers if name != peer.name]
                peer.lead(self.draw.sample(others, self.draw.randint(1, len(others))))
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
