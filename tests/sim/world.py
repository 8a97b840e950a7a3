"""The world of a simulated run: its clock, its network that does its worst, and who looks on and knows everything.

    simulate(random_plan(7))      # raises Broken, or one of its kinds, with the plan's story, when a rule does not hold

Everything but the core is made up: a state's digest is that of a sentence, a signature is a name, time is counted in ticks
and goes from event to event. What is checked: no two members stand on different states of one round; a group averages
claims for its own round and base only; no work is in two agreements, and work that is in none was dropped knowingly; once
the network is quiet, everyone stands on one head within two rounds.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Iterable
from heapq import heappop, heappush
from typing import Any

from peer.round import actions as a
from peer.round import events as e
from peer.round.box import Box
from peer.round.group import Member as Grouped
from protocol import canonical
from protocol.agreement import Agreement, group_digest
from protocol.majority import acceptors_after
from protocol.statements import Claim, Vote
from protocol.succession import Last, counted
from tests.sim.member import Member, _Kept
from tests.sim.plans import Fault, Plan
from tests.sim.spec import CHUNK_VALUES, RUN, SPEC, VALUES

AVERAGE, AVERAGE_SLOW, AVERAGE_MOST = 2, 8, 12  # ticks
GOSSIP = 1.5
CALM_TICKS = 400
NAMES = {a.Propose: "propose", a.Join: "answer", a.SendGroup: "group", a.SendVote: "vote", a.ShowVotes: "vote"}


class Broken(AssertionError):
    """A rule of the run does not hold."""


class Diverged(Broken):
    """Two members stand on different states of one round."""


class Stuck(Broken):
    """Everyone is there and the network is quiet, and still they do not come together."""


class World:
    """The members, the network between them, and who looks on."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.now, self.spec, self.values, self.chunk_values = plan, 0.0, SPEC, VALUES, CHUNK_VALUES
        self.draw = random.Random(plan.jitter)
        self.faults: dict[str, list[Fault]] = {}  # in force, by kind
        self.queue: list[tuple[float, int, Member, Any, int]] = []
        self.number = itertools.count()
        self.contents: dict[str, str] = {}  # digest -> the state, a sentence
        self.states: dict[int, str] = {}  # round -> what all must stand on
        self.rounds_in_storm = 0
        self.stood: dict[int, set[str]] = {}  # round -> who stands or stood on it since the network healed
        self.agreed: dict[int, Agreement] = {}
        self.joined: dict[tuple[str, int], set[str]] = {}  # (group, attempt) -> who averages in it
        self.works = itertools.count()
        self.worth: dict[int, int] = {}  # work -> tokens
        self.fates: dict[int, str] = {}  # work -> what became of it
        self.authors: dict[int, str] = {}
        self.claims: dict[str, tuple[int, ...]] = {}  # digest of a claim -> works in it
        weights = {member.name: member.weight for member in plan.members if member.weight}
        self.tokens = {member.name: 2 * max(member.weight, 1) for member in plan.members}
        first = Last(1, self.content("round 1"), weights, base=self.content("genesis"))
        self.members = {member.name: Member(member.name, self, first) for member in plan.members}
        self.order = list(self.members.values())

    def content(self, text: str) -> str:
        """The digest of a state."""
        digest = canonical.sha256_hex(text.encode())
        self.contents[digest] = text
        return digest

    def bugs_box(self, box: Box) -> Box:
        """What a start finds of the box; a test may have it find less."""
        return box

    # ---- what is wrong now -----------------------------------------------------------------------------------------------

    def _in_force(self, kind: str) -> list[Fault]:
        return self.faults.get(kind, [])

    def is_in(self, kind: str, name: str) -> bool:
        return any(name in fault.who for fault in self._in_force(kind))

    def does(self, name: str, lie: str) -> bool:
        """Whether a member is hostile now; who speaks for half of the weight need not lie: it decides."""
        if not self.is_in(lie, name):
            return False
        state = self.members[name].core.state  # type: ignore[union-attr]
        successors = {peer: said.value.successor for peer, said in state.farewells_now().by_peer.items()}
        deciding = (dict(state.last.weights), acceptors_after(state.last.weights, successors))
        return all(2 * weights.get(name, 0) < sum(weights.values()) for weights in deciding)

    def is_frozen(self, name: str) -> bool:
        return any(fault.who[0] == name for fault in self._in_force("freeze"))

    def is_cut(self, one: str, other: str) -> bool:
        return any((one in fault.who) != (other in fault.who) for fault in self._in_force("split"))

    def _on_link(self, kind: str, sender: str, to: str, what: str) -> bool:
        return any(f.who[:2] == (sender, to) and f.what in ("", what) for f in self._in_force(kind))

    # ---- the network -----------------------------------------------------------------------------------------------------

    def after(self, ticks: float, member: Member, event: Any) -> None:
        heappush(self.queue, (self.now + ticks, next(self.number), member, event, member.starts))

    def send(self, sender: str, to: str, what: str, event: Any) -> bool:
        """Put a message on its way; whether it is."""
        member = self.members[to]
        delay = 1 + (self.draw.choice([0, 0, 0, 1, 2]) if self.plan.jitter else 0)
        copies = [delay]
        if self.faults:
            lossy = self._in_force("lossy") and self.draw.random() < 0.3
            if lossy or self.is_cut(sender, to) or self._on_link("lose", sender, to, what):
                return False
            if self._on_link("delay", sender, to, what):
                copies = [delay + 4]
            if self._on_link("twice", sender, to, what):
                copies.append(delay + 9)
        if not member.up:
            return False
        for ticks in copies:
            self.after(ticks, member, event)
        return True

    def _answer(self, me: Member, call: Any, event: Any, what: str) -> None:
        if call is not None and not self.send(me.name, call, what, event):
            self._unanswered(me, call, event)

    def _unanswered(self, me: Member, to: str, event: Any) -> None:
        if isinstance(event, e.Joined):  # the call fails at the leader's, after a while
            self.after(6, self.members[to], e.Declined(me.name, event.attempt, "no answer"))

    # ---- carrying out ------------------------------------------------------------------------------------------------------

    def carry_out(self, me: Member, action: Any) -> list[Any]:
        """Do what a core says; returns what is to be stepped before all else."""
        match action:
            case a.SaveBox(box):
                return self._save(me, box)
            case a.Stage() | a.Aborted() | a.TellEveryone() | a.StopAllReduce():
                pass
            case a.CloseWork():
                me.hand_over()
            case a.Commit():
                me.commit(action)
            case a.AllReduce(group):
                self.joined.setdefault((group.digest, group.attempt), set()).add(me.name)
                ticks = AVERAGE_SLOW if self.is_in("slow", me.name) else AVERAGE
                self.after(ticks, me, _Average(group, self.now + AVERAGE_MOST))
            case a.Fetch(state, sources):
                self.after(0.5 if state in me.held | me.disk.averaged else 1, me, _Fetch(state, tuple(sources)))
            case a.Gone():
                me.stop()
            case _:
                self._speak(me, action)
        return []

    def _speak(self, me: Member, action: Any) -> None:
        name, what = me.name, NAMES.get(type(action), "")
        match action:
            case a.Decline(call, why):
                if isinstance(call, tuple):
                    kind, leader, attempt = call
                    made = e.Declined if kind == "propose" else e.GroupTaken
                    self.send(name, leader, "answer", made(name, attempt, why))
            case a.Accept((_, leader, attempt)):
                self.send(name, leader, "answer", e.GroupTaken(name, attempt))
            case a.Join((_, leader, attempt), promise, vote, group, farewells, unheard):
                claim = me.core.state.own.claim  # type: ignore[union-attr]
                shown = ((vote, group),) if vote and group else ()
                joins = e.Joined(name, attempt, Grouped(name, claim, "", True), promise, shown, farewells, unheard)
                self._answer(me, leader, joins, what)
            case a.ShowVotes((_, asker, _), own, others):
                self.send(name, asker, what, e.Votes(name, own, others))
            case a.Propose(to, round, base, attempt, timeout_s, asked):
                for peer in to:
                    event = e.Proposed(("propose", name, attempt), name, round, base, attempt, timeout_s, asked)
                    if not self.send(name, peer, what, event):
                        self.after(1, me, e.Declined(peer, attempt, "not reached"))
            case a.SendGroup(to, group):
                for peer in to:
                    if not self.send(name, peer, what, e.Grouped(("group", name, group.attempt), name, group)):
                        self.after(1, me, e.GroupTaken(peer, group.attempt, "not reached", reached=False))
            case a.SendVote(to, vote):
                for peer in to:
                    self.send(name, peer, what, e.Votes(name, vote, (), ("vote", name, 0)))
            case a.SendAbort(to, group, _, attempt, why, culprit):
                for peer in to:
                    self.send(name, peer, "", e.GaveUp(name, group, attempt, why, culprit))
            case a.AskHead(to, since):
                self.after(1, me, _Ask(to, since))
            case _:
                raise AssertionError(f"nobody does {action}")

    def _save(self, me: Member, box: Box) -> list[Any]:
        """A box comes to the disk; its member may be killed right before or after."""
        killed = bool(self.faults) and self.is_in("shaky", me.name) and self.draw.random() < 0.05
        if killed and self.draw.random() < 0.5:
            self._restart(me)
            return []
        me.disk.box = box
        if killed:
            self._restart(me)
            return []
        return [e.BoxSaved()]

    def _restart(self, me: Member) -> None:
        me.stop()
        me.start()
        self._look_again(me)

    # ---- what takes a while ------------------------------------------------------------------------------------------------

    def _come_true(self, me: Member, event: Any) -> Any | None:
        """What became of something that this world does for a member."""
        match event:
            case _Kept(action):
                return me.kept(action)
            case _Average(group, until):
                return self._averaged(me, group, until)
            case _Fetch(state, sources):
                found = state in me.held or state in me.disk.averaged
                found = found or any(self._hands_over(source, me.name, state) for source in sources)
                if found:
                    me.held.add(state)
                return e.Fetched(state) if found else e.NotFetched(state, "nobody could give it")
            case _Ask(to, since):
                other = self.members[to]
                if not other.up or self.is_cut(me.name, to) or self.is_frozen(to):
                    return e.HeadNotShown(to, "not reached")
                return e.HeadShown(to, since, other.chain_since(since))
        return event

    def _averaged(self, me: Member, group: Any, until: float) -> Any | None:
        """What one member gets from the all-reduce: nothing, the state, or (a reducer lied or failed) another one."""
        names = set(group.by_peer)
        cut = any(self.is_cut(me.name, other) for other in names) or self.is_in("fail", me.name)
        if cut or self.now >= until:
            return e.NotAveraged(group.digest, group.attempt, "the all-reduce failed")
        if self.joined[group.digest, group.attempt] != names:
            self.after(1, me, _Average(group, until))
            return None
        wrong = ", wrong" if self.is_in("wrong", me.name) else ""
        state = me.core.state  # type: ignore[union-attr]
        base = "" if state.last.state == group.base else f" on {state.last.state}"
        digest = self.content(f"average {group.digest}{base}{wrong}")
        me.held.add(digest)
        me.disk.averaged = {digest}
        return e.Averaged(group.digest, group.attempt, digest, 1.0)

    def _hands_over(self, source: str, to: str, digest: str) -> bool:
        """Whether a member gives a state that another asks it for; a damaged one is as good as none."""
        peer = self.members[source]
        if not peer.up or source == to or self.is_cut(source, to) or self.is_frozen(source):
            return False
        if any(fault.who[0] == source for fault in self._in_force("corrupt")):
            return False
        return digest in peer.held | peer.disk.averaged | {peer.last.state}

    def lie(self, liar: Member) -> list[Agreement]:
        """Two rounds that a member has made up, and signed alone."""
        last: Last = liar.last
        found: list[Agreement] = []
        for _ in range(2):
            found.append(_made_up(liar, last, self.content(f"made up by {liar.name} for round {last.round + 1}")))
            last = Last.of(found[-1])
        return found

    # ---- who looks on ------------------------------------------------------------------------------------------------------

    def is_late(self, action: a.Commit) -> bool:
        return action.is_late

    def worked(self, name: str) -> int:
        number = next(self.works)
        self.worth[number], self.fates[number], self.authors[number] = self.tokens[name], "in hand", name
        return number

    def let_go(self, works: Iterable[int]) -> None:
        """Work that its author has no more: agreed, or too old, or lost with it in a crash."""
        for number in works:
            self.fates[number] = "let go"

    def stands_on(self, member: Member, agreement: Agreement) -> None:
        """A member commits a round or follows others: the place where nothing may differ."""
        round, state = agreement.round, agreement.state
        known = self.states.setdefault(round, state)
        if known != state:
            one, other = self.contents[state], self.contents[known]
            raise Diverged(f"round {round}: {member.name} stands on {one!r}, others on {other!r}")
        self.agreed.setdefault(round, agreement)
        self.stood.setdefault(round, set()).add(member.name)
        for claim in agreement.claims:
            if (claim.value.round, claim.value.base) != (round, agreement.base):
                raise Broken(f"round {round} averages {claim.value}")

    def check_work(self) -> None:
        """No work is counted twice, and none is gone without a word."""
        seen: set[int] = set()
        for round, agreement in self.agreed.items():
            for claim in agreement.claims:
                for number in self.claims.get(claim.digest, ()):
                    if number in seen:
                        raise Broken(f"round {round} counts work {number} of {claim.by} a second time")
                    seen.add(number)
        for number, fate in self.fates.items():
            if fate == "in hand" and number not in seen and number not in self.members[self.authors[number]].in_hand():
                raise Broken(f"work {number} of {self.authors[number]} is nowhere")

    # ---- time --------------------------------------------------------------------------------------------------------------

    def step(self, me: Member, event: Any) -> None:
        """One event to one member, and all that comes of it at once."""
        pending: deque[Any] = deque([event])
        while pending and me.core is not None:
            item = me.bend(pending.popleft())
            if item is None:
                continue
            self.act(me, me.core.step(item, self.now), pending)
        self._look_again(me)

    def act(self, me: Member, actions: list[Any], pending: deque[Any]) -> None:
        for action in actions:
            if me.core is None:
                return
            done = me.bent(action) if self.faults else action
            pending.extendleft(reversed(self.carry_out(me, done)))

    def _look_again(self, me: Member) -> None:
        if me.core is not None and me.core.state.wake_at < me.next_tick:
            me.next_tick = max(me.core.state.wake_at, self.now)
            heappush(self.queue, (me.next_tick, next(self.number), me, _TICK, me.starts))

    def run_until(self, end: float) -> None:
        while self.queue and self.queue[0][0] < end:
            self.now, _, me, event, starts = heappop(self.queue)
            if not isinstance(event, _World) and (me.core is None or starts != me.starts):
                continue
            if self.faults and self.is_frozen(me.name) and not isinstance(event, _World):
                self.after(1, me, event)
                continue
            self._happen(me, event)
        self.now = end

    def _happen(self, me: Member, event: Any) -> None:
        if isinstance(event, _World):
            event.happen(self, me)
        elif event is _TICK:
            me.next_tick = float("inf")
            if me.core is not None and self.now >= me.core.state.wake_at - 1e-9:
                self.step(me, event)
            else:
                self._look_again(me)
        else:
            true = self._come_true(me, event)
            if true is not None:
                self.step(me, true)

    def gossip(self, me: Member) -> None:
        """What a member tells all others of itself, now and then."""
        if me.core is None or (self.faults and self.is_frozen(me.name)):
            return
        said, farewells = me.said(), [i for known in me.core.state.farewells.values() for i in known.signed]
        for other in self.order:
            if other is me or other.core is None:
                continue
            if self.faults and (self.is_cut(me.name, other.name) or self.is_frozen(other.name)):
                continue
            self.step(other, e.Heard(me.name, said, farewells))

    def lead_out_of_turn(self, me: Member, others: list[str]) -> None:
        if me.core is not None and not self.is_frozen(me.name):
            pending: deque[Any] = deque()
            self.act(me, me.lead(others), pending)
            while pending and me.core is not None:
                self.act(me, me.core.step(pending.popleft(), self.now), pending)
            self._look_again(me)

    # ---- a plan --------------------------------------------------------------------------------------------------------------

    def storm(self) -> None:
        for planned in self.plan.members:
            heappush(self.queue, (planned.starts, next(self.number), self.members[planned.name], _Start(), 0))
        for index, member in enumerate(self.order):
            heappush(self.queue, (0.1 * index, next(self.number), member, _Gossip(), 0))
        for fault in self.plan.faults:
            first = self.members[fault.who[0]]
            heappush(self.queue, (fault.at, next(self.number), first, _Begin(fault), 0))
            heappush(self.queue, (fault.until, next(self.number), first, _End(fault), 0))
        heappush(self.queue, (0.5, next(self.number), self.order[0], _Unrest(), 0))
        self.run_until(self.plan.ticks)

    def begin(self, fault: Fault) -> None:
        member = self.members[fault.who[0]]
        if fault.kind == "crash":
            member.stop()
        elif fault.kind == "leave" and member.up:
            self.step(member, e.Leave(hands_over=True))
        elif fault.kind == "rival":
            self.lead_out_of_turn(member, list(fault.who[1:]))
        elif fault.kind not in ("crash", "leave", "rival"):
            self.faults.setdefault(fault.kind, []).append(fault)

    def end(self, fault: Fault) -> None:
        member = self.members[fault.who[0]]
        if fault.kind in ("crash", "leave"):
            if fault.kind == "leave" and member.up:
                member.stop()
            self.start(member)
        elif fault in self._in_force(fault.kind):
            self.faults[fault.kind].remove(fault)
            if not self.faults[fault.kind]:
                del self.faults[fault.kind]

    def start(self, member: Member) -> None:
        if not member.up:
            member.start()
            self._look_again(member)

    def unrest(self) -> None:
        """What restless, usurping and shaky members do, each tick."""
        for kind in ("usurp", "restless"):
            for fault in self._in_force(kind):
                peer = self.members[fault.who[0] if kind == "usurp" else self.draw.choice(fault.who)]
                others = [name for name in self.members if name != peer.name]
                asked = self.draw.sample(others, self.draw.randint(1, len(others)))
                if self.draw.random() < 0.25:
                    self.lead_out_of_turn(peer, asked)
        for fault in self._in_force("shaky"):
            peer = self.members[self.draw.choice(fault.who)]
            if self.draw.random() < 0.1 and peer.up:
                self._restart(peer)

    def calm(self) -> None:
        """Everyone is back, nothing is lost."""
        self.rounds_in_storm = len(self.states)
        self.faults.clear()
        self.queue = [item for item in self.queue if not isinstance(item[3], _Begin | _End | _Unrest | _Start)]
        self.queue.sort()
        for member in self.order:
            if member.up and member.core.state.leaving is not None:  # type: ignore[union-attr]
                member.stop()
            self.start(member)
        newest = max(member.last.round for member in self.order)
        self.stood.clear()
        for _ in range(CALM_TICKS):
            self.run_until(self.now + 1)
            together = [
                round for round, names in self.stood.items() if round > newest and len(names) == len(self.order)
            ]
            if together:
                if min(together) > newest + 3:  # the round in hand, and two
                    raise Stuck(f"together only in round {min(together)}; the network healed in round {newest}")
                return
        where = ", ".join(f"{member.name} at round {member.last.round}" for member in self.order)
        raise Stuck(f"{CALM_TICKS} ticks after the network healed in round {newest}: {where}")

    @property
    def rounds(self) -> int:
        """How many rounds were committed."""
        return len(self.states)


# ---- what the queue holds beside the core's events ------------------------------------------------------------------------

_TICK = e.Tick()


class _World:
    """Something that happens whether a member is up or not."""

    def happen(self, world: World, me: Member) -> None:
        raise NotImplementedError


class _Start(_World):
    def happen(self, world: World, me: Member) -> None:
        world.start(me)


class _Gossip(_World):
    def happen(self, world: World, me: Member) -> None:
        world.gossip(me)
        heappush(world.queue, (world.now + GOSSIP, next(world.number), me, self, 0))


class _Unrest(_World):
    def happen(self, world: World, me: Member) -> None:
        world.unrest()
        heappush(world.queue, (world.now + 1, next(world.number), me, self, 0))


class _Begin(_World):
    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def happen(self, world: World, me: Member) -> None:
        world.begin(self.fault)


class _End(_Begin):
    def happen(self, world: World, me: Member) -> None:
        world.end(self.fault)


class _Average:
    __match_args__ = ("group", "until")

    def __init__(self, group: Any, until: float) -> None:
        self.group, self.until = group, until


class _Fetch:
    __match_args__ = ("state", "sources")

    def __init__(self, state: str, sources: tuple[str, ...]) -> None:
        self.state, self.sources = state, sources


class _Ask:
    __match_args__ = ("to", "since")

    def __init__(self, to: str, since: int) -> None:
        self.to, self.since = to, since


def _made_up(liar: Member, last: Last, state: str) -> Agreement:
    """A round after `last` that a member has made up, and signed alone."""
    spec, update = liar.world.spec, liar.update()
    claim = liar.sign(
        Claim(
            run=RUN,
            round=last.round + 1,
            base=last.state,
            tokens=100,
            flops=1,
            first_batch=0,
            batches=100,
            update=update,
        )
    )
    vote = Vote(run=RUN, round=last.round + 1, attempt=0, group=group_digest([claim]), base=last.state, state=state)
    return Agreement((claim,), (liar.sign(vote),), {liar.name: ""}, counted({liar.name: claim.value}, last, spec))


def simulate(plan: Plan) -> World:
    """Play a plan; returns the world as it is afterwards.

    Raises:
        Broken: a rule does not hold; with the story of the plan.
    """
    world = World(plan)
    try:
        world.storm()
        world.calm()
        world.check_work()
    except Broken as error:
        raise type(error)(f"{error}\n{plan.story()}") from None
    return world
