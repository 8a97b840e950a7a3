"""The network: which faults are in force, and what they do to a message."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tests.sim.plans import Fault, Plan

ON_TIME = (1.0,)  # ticks that a message takes
BENT = ("blind", "hasty", "mislead", "usurp")
DELAY, TWICE = 4, 9  # ticks more


class Network:
    """What is between the members.

    Attributes:
        faults: those in force, by kind; empty while all is well.
        bends: one of them changes what a member does with an event.
        draw: all chance of a run comes from here, so that a plan is played the same each time.
    """

    def __init__(self, plan: Plan) -> None:
        self.draw = random.Random(plan.jitter)
        self.jitter = bool(plan.jitter)
        self.faults: dict[str, list[Fault]] = {}
        self.bends = False

    def begin(self, fault: Fault) -> None:
        self.faults.setdefault(fault.kind, []).append(fault)
        self.bends = any(kind in BENT for kind in self.faults)

    def end(self, fault: Fault) -> None:
        left = [other for other in self.faults.pop(fault.kind, []) if other is not fault]
        if left:
            self.faults[fault.kind] = left
        self.bends = any(kind in BENT for kind in self.faults)

    def clear(self) -> None:
        self.faults.clear()
        self.bends = False

    def of(self, kind: str) -> Sequence[Fault]:
        """The faults of a kind that are in force."""
        return self.faults.get(kind, ())

    def is_in(self, kind: str, name: str) -> bool:
        return kind in self.faults and any(name in fault.who for fault in self.faults[kind])

    def is_frozen(self, name: str) -> bool:
        return "freeze" in self.faults and any(fault.who[0] == name for fault in self.faults["freeze"])

    def is_cut(self, one: str, other: str) -> bool:
        return "split" in self.faults and any((one in f.who) != (other in f.who) for f in self.faults["split"])

    def delays(self, sender: str, to: str, what: str) -> Sequence[float]:
        """After how many ticks a message arrives, and a second copy of it; empty: it is lost."""
        if not self.jitter and not self.faults:
            return ON_TIME
        delay = 1.0 + (self.draw.choice((0, 0, 0, 1, 2)) if self.jitter else 0)
        if not self.faults:
            return (delay,)
        lossy = "lossy" in self.faults and self.draw.random() < 0.3
        if lossy or self.is_cut(sender, to) or self._on_link("lose", sender, to, what):
            return ()
        first = delay + DELAY if self._on_link("delay", sender, to, what) else delay
        return (first, delay + TWICE) if self._on_link("twice", sender, to, what) else (first,)

    def _on_link(self, kind: str, sender: str, to: str, what: str) -> bool:
        return kind in self.faults and any(
            fault.who[:2] == (sender, to) and fault.what in ("", what) for fault in self.faults[kind]
        )
