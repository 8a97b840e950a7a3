"""The world of a simulated run: its clock, and a plan from its first tick to its last.

    simulate(random_plan(7))      # raises Broken, or one of its kinds, with the plan's story, when a rule does not hold

Everything but the core is made up: a state's digest is that of a sentence, a signature is a name, time is counted in
ticks and goes from event to event. What `referee` says is checked all the time; and once the network is quiet, everyone
stands on one head within two rounds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Any

from peer.round import events as e
from peer.round import turns
from peer.round.state import NEVER
from protocol import canonical
from protocol.majority import acceptors_after
from protocol.succession import Last
from tests.sim import hostile
from tests.sim.carry import carry_out
from tests.sim.host import HOST, Host
from tests.sim.member import Disk, Member
from tests.sim.network import Network
from tests.sim.papers import Papers
from tests.sim.plans import Fault, Plan
from tests.sim.referee import Broken, Referee, Stuck
from tests.sim.spec import spec_of

HOSTED = ("die", "word")  # of which a host must know
UNREST = ("usurp", "restless", "shaky")  # what is done each tick
GOSSIP = 2  # ticks
LOOK = 2  # ticks: how often the host looks whether the run stands still
CALM_TICKS = 400
SOON = 3  # rounds: the one in hand, and two

Do = Callable[[Member, Any], None]


class World:
    """The members, the network between them, and who looks on.

    Attributes:
        queue: (tick, number, member, its life, what happens, to what); life 0: whether the member is up or not.
        papers: None where no certificate ends.
        host: None where nobody needs its word.
        joined: (group, attempt) -> who averages in it.
        tokens: what each member does in a round.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.now, self.spec = plan, 0.0, spec_of(plan.places)
        self.network, self.referee = Network(plan), Referee()
        self.queue: list[tuple[float, int, Member, int, Do, Any]] = []
        self.number = itertools.count()
        self.papers = Papers() if any(fault.kind == "ended" for fault in plan.faults) else None
        self.rounds_in_storm = 0
        self.joined: dict[tuple[str, int], set[str]] = {}
        self.tokens = {member.name: 2 * max(member.weight, 1) for member in plan.members}
        weights = {member.name: member.weight for member in plan.members if member.weight}
        content = "round 1"
        digest = canonical.sha256_hex(content.encode())
        first = Last(1, digest, weights, base=canonical.sha256_hex(b"genesis"))
        self.members = {m.name: Member(m.name, self, Disk(first, {digest: content})) for m in plan.members}
        self.order = list(self.members.values())
        self.host = Host(first, self.spec) if any(fault.kind in HOSTED for fault in plan.faults) else None

    @property
    def rounds(self) -> int:
        """How many rounds were committed."""
        return len(self.referee.states)

    def does(self, name: str, lie: str) -> bool:
        """Whether a member is hostile now; who speaks for half of the weight need not lie: it decides."""
        if not self.network.is_in(lie, name):
            return False
        state = self.members[name].core.state  # type: ignore[union-attr]
        successors = {peer: said.value.successor for peer, said in state.farewells_now().by_peer.items()}
        deciding = (turns.weights(state), acceptors_after(turns.weights(state), successors))
        return all(2 * weights.get(name, 0) < sum(weights.values()) for weights in deciding)

    # ---- time --------------------------------------------------------------------------------------------------------

    def after(self, ticks: float, me: Member, do: Do, what: Any) -> None:
        """Have something happen to a member, if it is not killed before."""
        heappush(self.queue, (self.now + ticks, next(self.number), me, me.starts, do, what))

    def tell(self, ticks: float, me: Member, event: Any) -> None:
        heappush(self.queue, (self.now + ticks, next(self.number), me, me.starts, self.step, event))

    def at(self, tick: float, me: Member, do: Do, what: Any = None) -> None:
        """Have something happen whether a member is up or not."""
        heappush(self.queue, (tick, next(self.number), me, 0, do, what))

    def step(self, me: Member, event: Any) -> None:
        """One event to one member, and all that comes of it at once."""
        core = me.core
        if core is None:
            return
        actions = core.step(hostile.bend(me, event) if self.network.bends else event, self.now)
        if actions:
            carry_out(me, actions)
        if core.state.wake_at < me.next_tick:
            self.wake(me)

    def wake(self, me: Member) -> None:
        """See to it that a member's core looks again when it wants to."""
        if me.core is not None and me.core.state.wake_at < me.next_tick:
            me.next_tick = max(me.core.state.wake_at, self.now)
            heappush(self.queue, (me.next_tick, next(self.number), me, me.starts, self._tick, me.next_tick))

    def _tick(self, me: Member, planned: float) -> None:
        if planned != me.next_tick:  # an earlier one was asked for since
            return
        me.next_tick = NEVER
        if self.now >= me.core.state.wake_at:  # type: ignore[union-attr]
            self.step(me, _TICK)
        else:
            self.wake(me)

    def run_until(self, end: float) -> None:
        queue, network = self.queue, self.network
        while queue and queue[0][0] < end:
            self.now, _, me, life, do, what = heappop(queue)
            if life:
                if me.core is None or life != me.starts:
                    continue
                if "freeze" in network.faults and network.is_frozen(me.name):
                    heappush(queue, (self.now + 1, next(self.number), me, life, do, what))
                    continue
            do(me, what)
        self.now = end

    # ---- what happens by itself --------------------------------------------------------------------------------------

    def _gossip(self, me: Member, _: None) -> None:
        """What a member tells all others of itself, now and then."""
        self.at(self.now + GOSSIP, me, self._gossip)
        network = self.network
        if me.core is None or network.is_frozen(me.name):
            return
        said, known = me.said(), me.core.state.farewells
        farewells = [item for round in known.values() for item in round.signed] if known else ()
        event = e.Heard(me.name, said, farewells)
        hidden = "split" in network.faults or "freeze" in network.faults
        for other in self.order:
            if other is me or other.core is None:
                continue
            if hidden and (network.is_cut(me.name, other.name) or network.is_frozen(other.name)):
                continue
            self.step(other, event)
        if self.host is not None and not network.is_cut(me.name, HOST):
            for said in self.host.announced(me, self.now):
                self.step(me, said)

    def _lead_out_of_turn(self, me: Member, asked: list[str]) -> None:
        if me.core is not None and not self.network.is_frozen(me.name):
            carry_out(me, hostile.lead_out_of_turn(me, asked))
            self.wake(me)

    def _unrest(self, first: Member, _: None) -> None:
        """What restless, usurping and shaky members do, each tick."""
        self.at(self.now + 1, first, self._unrest)
        network, draw = self.network, self.network.draw
        for kind in ("usurp", "restless"):
            for fault in network.of(kind):
                me = self.members[fault.who[0] if kind == "usurp" else draw.choice(fault.who)]
                others = [name for name in self.members if name != me.name]
                asked = draw.sample(others, draw.randint(1, len(others)))
                if draw.random() < 0.25:
                    self._lead_out_of_turn(me, asked)
        for fault in network.of("shaky"):
            me = self.members[draw.choice(fault.who)]
            if draw.random() < 0.1 and me.core is not None:
                self.restart(me)

    # ---- the host ----------------------------------------------------------------------------------------------------

    def _look(self, first: Member, host: Host) -> None:
        """The host's owner gives its word, if it is to be given."""
        self.at(self.now + LOOK, first, self._look, host)
        word = host.go_on(self.now) if host.owners else None
        if word and self.papers:
            self.papers.keep(word)
        for member in self.order if word else ():
            if not self.network.is_cut(member.name, HOST) and not self.network.is_frozen(member.name):
                self.step(member, e.CoordinatorSaid(host.tip.round, word))

    def _die(self, first: Member, names: tuple[str, ...]) -> None:
        """They are gone for good, once the host could let others go on from what they have made, or help to make."""
        assert self.host is not None
        tip = self.host.tip
        newest = max((member.last.epoch, member.last.round) for member in self.order)
        left = {member.name: member for member in self.order if member.name not in names and not member.is_dead}
        has_state = any(
            m.core is not None and m.disk.last.state == tip.state for m in left.values() if m.name in tip.weights
        )
        voted = [group for name in names if (group := self.members[name].disk.box.group) is not None]
        is_shared = all(group.by_peer.keys() & left.keys() for group in voted if group.round > tip.round)
        if (tip.epoch, tip.round) != newest or not has_state or not is_shared:
            self.at(self.now + 1, first, self._die, names)
            return
        self.bury(*names)

    def bury(self, *names: str) -> None:
        """They are gone for good."""
        for name in names:
            self.members[name].stop()
            self.members[name].is_dead = True

    # ---- a plan ------------------------------------------------------------------------------------------------------

    def storm(self) -> None:
        for planned in self.plan.members:
            self.at(planned.starts, self.members[planned.name], self._start)
        for index, member in enumerate(self.order):
            self.at(0.1 * index, member, self._gossip)
        for fault in self.plan.faults:
            first = self.members[fault.who[0]]
            self.at(fault.at, first, self._begin, fault)
            self.at(fault.until, first, self._end, fault)
        if any(fault.kind in UNREST for fault in self.plan.faults):
            self.at(0.5, self.order[0], self._unrest)
        if self.host is not None:
            self.at(LOOK, self.order[0], self._look, self.host)
        self.run_until(self.plan.ticks)
        self.rounds_in_storm = self.rounds

    def _start(self, me: Member, _: None = None) -> None:
        if me.core is None and not me.is_dead:
            me.start()
            self.wake(me)

    def restart(self, me: Member) -> None:
        me.stop()
        self._start(me)

    def _begin(self, me: Member, fault: Fault) -> None:
        if fault.kind in ("crash", "blackout"):
            for name in fault.who:
                self.members[name].stop()
        elif fault.kind == "die":
            self._die(me, fault.who)
        elif fault.kind == "ended":
            assert self.papers is not None
            self.papers.end(fault.who)
        elif fault.kind == "word":
            assert self.host is not None
            self.host.owners += 1
        elif fault.kind == "leave":
            if me.core is not None:
                self.step(me, e.Leave(hands_over=True))
        elif fault.kind == "rival":
            self._lead_out_of_turn(me, list(fault.who[1:]))
        else:
            self.network.begin(fault)

    def _end(self, me: Member, fault: Fault) -> None:
        if fault.kind == "leave" and me.core is not None:
            me.stop()
        if fault.kind in ("crash", "leave", "blackout"):
            for name in fault.who if fault.kind == "blackout" else fault.who[:1]:
                self._start(self.members[name])
        elif fault.kind == "word":
            assert self.host is not None
            self.host.owners -= 1
        elif fault.kind not in ("die", "ended"):
            self.network.end(fault)

    def calm(self) -> None:
        """Whoever is alive is back, nothing is lost; and the host lets them go on, if they are too few."""
        self.network.clear()
        planned = (self._begin, self._end, self._unrest, self._start, self._die)
        self.queue = [item for item in self.queue if item[4] not in planned]
        heapify(self.queue)
        for member in self.order:
            if member.core is not None and member.core.state.leaving is not None:
                member.stop()
            self._start(member)
        alive = [member for member in self.order if not member.is_dead]
        if self.host is not None:
            self.host.owners = len(alive) < len(self.order)
        newest, known = max(self._place(member) for member in alive), set(self.referee.states)
        stood = self.referee.stood
        stood.clear()
        for _ in range(CALM_TICKS):
            self.run_until(self.now + 1)
            together = [place for place, names in stood.items() if place > newest and len(names) == len(alive)]
            if together:
                epoch, round = min(together)
                if sum(place[0] == epoch and place[1] <= round for place in self.referee.states.keys() - known) > SOON:
                    raise Stuck(f"together only in {min(together)}; the network healed in {newest}")
                return
        where = ", ".join(f"{member.name} at {self._place(member)}" for member in alive)
        raise Stuck(f"{CALM_TICKS} ticks after the network healed in epoch and round {newest}: {where}")

    @staticmethod
    def _place(member: Member) -> tuple[int, int]:
        return member.last.epoch, member.last.round


_TICK = e.Tick()


def simulate(plan: Plan) -> World:
    """Play a plan; returns the world as it is afterwards.

    Raises:
        Broken: a rule does not hold; with the story of the plan.
    """
    world = World(plan)
    try:
        world.storm()
        world.calm()
        world.referee.check_work({name: member.in_hand() for name, member in world.members.items()})
    except Broken as error:
        raise type(error)(f"{error}\n{plan.story()}") from None
    return world
