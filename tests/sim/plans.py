"""What goes wrong in a simulated run, as data: drawn by hypothesis or from a seed, replayed, shrunk, told as a story.

A `Plan` says who takes part and which `Fault`s come when; `world.simulate` plays it, the same way each time. Hypothesis
draws some hundred plans and shrinks those that fail itself. That is too slow for ten thousand rounds, so most plans
come from a seed (`random_plan`), and `shrink` makes one that fails small by leaving out what it can do without.

    >>> plan = Plan((Member("a", 1), Member("b", 3)), (Fault(4, "crash", ("b",), 9),))
    >>> print(plan.story())
    a: weight 1; b: weight 3; every message takes one tick
    tick   4 to   9: b is killed, and started again
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from hypothesis import strategies as st

NAMES = "abcdef"
ROUND_TICKS = 10  # that a round without faults takes
MESSAGES = ("", "propose", "answer", "group", "vote")  # which of them a link loses; "": all

WHOLE = ("hasty", "restless", "lossy", "slow", "blind", "shaky")  # some storms are made of these, from first to last
LIES = ("usurp", "mislead", "boast", "jump")  # what a hostile member does; in one plan they are all by the same one
TELLS = {
    "crash": "{0} is killed, and started again",
    "freeze": "{0} stands still, then goes on",
    "split": "{all} see only each other",
    "lose": "{what} from {0} to {1} is lost",
    "delay": "{what} from {0} to {1} takes four ticks more",
    "twice": "{what} from {0} to {1} comes twice, the second time late",
    "wrong": "{all} get a wrong result from the all-reduce",
    "slow": "the all-reduce takes {all} six ticks more",
    "fail": "the all-reduce fails for {all}",
    "hasty": "{all} join a new attempt while they are in a group",
    "rival": "{0} leads, whoever else does, and asks {rest}",
    "restless": "{all} lead again and again, whoever else does, and ask some of the others",
    "blind": "{all} do not see that others are ahead",
    "shaky": "{all} are killed now and then, and started again at once",
    "lossy": "a third of all messages is lost",
    "leave": "{0} leaves as it should, and comes back",
    "corrupt": "the states that {0} hands out are damaged",
    "usurp": "{0} leads, and passes over the votes that it is shown; it shows whose promises it likes",
    "mislead": "{0} votes for states that it has made up",
    "boast": "{0} says that it stands on a later state, of its own making",
    "jump": "{0} says that it is in the last attempt that there is, and asks the others to it",
    "blackout": "{all} are killed at the same moment, and started again",
    "ended": "the certificates of {all} end, and they get new ones",
    "die": "{all} are gone for good, once the host knows of their rounds and others share them",
    "word": "the host lets whoever it hears of go on, as soon as they are too few",
}


@dataclass(frozen=True)
class Member:
    name: str
    weight: int  # in the agreement that the run begins with; 0: a newcomer
    starts: int = 0  # tick


@dataclass(frozen=True)
class Fault:
    at: int  # tick
    kind: str  # a key of `TELLS`
    who: tuple[str, ...]
    until: int  # tick
    what: str = ""  # which messages

    def story(self) -> str:
        text = TELLS[self.kind].format(
            *self.who, all=" and ".join(self.who), rest=" and ".join(self.who[1:]), what=self.what or "everything"
        )
        return f"tick {self.at:3} to {self.until:3}: {text}"


@dataclass(frozen=True)
class Plan:
    """One run: a storm of `ticks`, then the network is quiet and everyone is back."""

    members: tuple[Member, ...]
    faults: tuple[Fault, ...]
    ticks: int = 4 * ROUND_TICKS
    jitter: int = 0  # a seed for how long messages take; 0: one tick each
    places: int = 64  # in a group

    def story(self) -> str:
        """What happens, for people."""
        pace = "messages take one to three ticks" if self.jitter else "every message takes one tick"
        pace += f"; groups of {self.places}" if self.places < len(self.members) else ""
        late = [f"{m.name} starts at tick {m.starts}" for m in self.members if m.starts]
        who = [f"{m.name}: weight {m.weight}" for m in self.members]
        return "\n".join(["; ".join([*who, *late, pace]), *(fault.story() for fault in self.faults)])


def _fault(draw: random.Random, names: list[str], ticks: int, worst: list[int], kinds: tuple[str, ...]) -> Fault:
    kind = draw.choice(kinds)
    at = min(draw.choice(worst) + draw.randrange(ROUND_TICKS), ticks - 1)
    until = at + draw.choice([1, 2, 4, 8, 16, 3 * ROUND_TICKS])
    least = 2 if kind in ("lose", "delay", "twice") else 1
    most = len(names) if kind in ("rival", "blackout") else max(len(names) - 1, least)
    count = least if kind in ("lose", "delay", "twice", "crash", "freeze", "leave", "corrupt", *LIES) else 0
    who = draw.sample(names, count or draw.randint(1, most))
    what = draw.choice(MESSAGES) if least == 2 else ""
    return Fault(at, kind, tuple(who if kind == "rival" else who if least == 2 else sorted(who)), until, what)


def random_plan(seed: int, rounds: int = 10, kinds: tuple[str, ...] = tuple(TELLS)) -> Plan:
    """A plan from a seed: quick to draw."""
    draw = random.Random(seed)
    names = list(NAMES[: draw.randint(2, 5)])
    ticks = rounds * ROUND_TICKS
    heaviest = draw.choice([1, 3, 10])
    members = [Member(name, draw.choice([1, heaviest])) for name in names]
    if len(names) > 2 and draw.random() < 0.3:
        members[-1] = Member(names[-1], 0, draw.randrange(ticks))
    kinds = tuple(draw.sample(kinds, min(len(kinds), draw.randint(2, 5))))  # few kinds in one plan find more than all
    worst = [draw.randrange(ticks) for _ in range(draw.randint(1, rounds))]  # troubles seldom come alone
    per_round = draw.choice([0.3, 1, 2, 3])
    faults = [_fault(draw, names, ticks, worst, kinds) for _ in range(draw.randint(1, int(per_round * rounds) + 1))]
    liar = draw.choice(names)
    faults = [replace(fault, who=(liar,)) if fault.kind in LIES else fault for fault in faults]
    hardship = draw.choice([0.0, 0.2, 0.5])
    whole = [kind for kind in WHOLE if draw.random() < hardship] + ["blind"] * (draw.random() < 0.5)
    faults += [Fault(0, kind, tuple(names), ticks) for kind in dict.fromkeys(whole)]
    faults.sort(key=lambda fault: fault.at)
    jitter, places = draw.choice([0, draw.randint(1, 999)]), draw.choice([64, 64, 3])
    return Plan(tuple(members), tuple(faults), ticks, jitter, places)


@st.composite
def plans(draw: st.DrawFn, rounds: int = 6) -> Plan:
    """The same, drawn piece by piece by hypothesis, which shrinks what fails."""
    ticks = rounds * ROUND_TICKS
    names = list(NAMES[: draw(st.integers(2, 4))])
    members = tuple(Member(name, draw(st.sampled_from([1, 2, 3, 10]))) for name in names)
    pairs = st.permutations(names).map(lambda order: tuple(order[:2]))
    some = st.lists(st.sampled_from(names), min_size=1, max_size=len(names) - 1, unique=True).map(tuple)
    link = st.tuples(st.sampled_from(["lose", "delay", "twice"]), pairs, st.sampled_from(MESSAGES))
    other = st.tuples(st.sampled_from([k for k in TELLS if k not in ("lose", "delay", "twice")]), some, st.just(""))
    faults = []
    for kind, who, what in draw(st.lists(st.one_of(link, other), max_size=12)):
        at = draw(st.integers(0, ticks - 1))
        faults.append(Fault(at, kind, who, at + draw(st.integers(1, 2 * ROUND_TICKS)), what))
    liar = (draw(st.sampled_from(names)),)
    faults = [replace(fault, who=liar) if fault.kind in LIES else fault for fault in faults]
    return Plan(members, tuple(sorted(faults, key=lambda f: f.at)), ticks, draw(st.integers(0, 50)))


def shrink(plan: Plan, fails: Callable[[Plan], bool]) -> Plan:
    """The plan with as little as it takes to fail still."""
    smaller = True
    while smaller:
        smaller = False
        for other in _simpler(plan):
            if fails(other):
                plan, smaller = other, True
                break
    return plan


def _simpler(plan: Plan) -> list[Plan]:
    faults, half = plan.faults, len(plan.faults) // 2
    found = [replace(plan, faults=faults[:half]), replace(plan, faults=faults[half:])] if half else []
    found += [replace(plan, faults=faults[:i] + faults[i + 1 :]) for i in range(len(faults))]
    if plan.jitter:
        found.append(replace(plan, jitter=0))
    if plan.places < len(plan.members):
        found.append(replace(plan, places=64))
    last = max((fault.at for fault in faults), default=0) + 1
    if last < plan.ticks:
        found.append(replace(plan, ticks=last))
    involved = {name for fault in faults for name in fault.who}
    for member in plan.members:
        if member.name not in involved and len(plan.members) > 2:
            found.append(replace(plan, members=tuple(m for m in plan.members if m is not member)))
        if member.weight > 1 or member.starts:
            plain = Member(member.name, min(member.weight, 1))
            found.append(replace(plan, members=tuple(plain if m is member else m for m in plan.members)))
    return found
