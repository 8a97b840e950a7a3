"""Who is in which round of a run that is larger than its groups, by the rules alone: no messages, no clocks.

    fared = play(members=200, places=32, rounds=60, churn=0.05)
    fared.worst, fared.lost

Each member has a state of its own, and the one that is first in line asks whom `peer.round.turns` lets it ask. What the
claims count for, and so whose votes decide the next round, follows from `protocol.counting`.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from peer.round import turns
from peer.round.events import Said
from peer.round.state import View
from protocol.counting import counted_worths
from protocol.last import Last
from protocol.majority import has_majority
from tests.core_kit import make_core, spec_of

SPEEDS = (128, 192, 256)  # tokens a round
AWAY_MOST = 3  # rounds
ATTEMPTS = 10  # at one round


@dataclass
class Fared:
    """How the members fared.

    Attributes:
        due: member -> its share of the seats in the rounds that it was there for.
    """

    taken: Counter[str] = field(default_factory=Counter)
    due: Counter[str] = field(default_factory=Counter)
    done: int = 0  # tokens
    dropped: int = 0  # of them: their author waited for longer than work may
    failed: int = 0  # attempts
    waits: int = 0  # rounds' times that passed without one, for too many of those who decide were away

    @property
    def worst(self) -> float:
        """How far the member that fared worst is from its share, as a part of it."""
        return max(abs(self.taken[name] / due - 1) for name, due in self.due.items())

    @property
    def lost(self) -> float:
        return self.dropped / self.done


class Rotation:
    def __init__(self, members: int, places: int, churn: float, deaf: float, seed: int) -> None:
        spec, self._last = spec_of(max_group=places, rules=3), Last(0, "0" * 64)
        self._draw, self._churn, self._deaf, self._places = random.Random(seed), churn, deaf, places
        self._tokens = {f"{index:03}": SPEEDS[index % len(SPEEDS)] for index in range(members)}
        self._states = {name: make_core(name, spec, self._last).state for name in self._tokens}
        self._back: dict[str, int] = {}  # who is away -> the round that it is back in
        self._unheard: dict[str, list[int]] = {
            name: [] for name in self._tokens
        }  # rounds whose work is not counted yet
        self._missed: dict[str, list[list[str]]] = {name: [] for name in self._tokens}  # rounds made while it was away
        self.fared = Fared()

    def round(self) -> None:
        number = self._last.round + 1
        live = self._there(number)
        self._show(live, number)
        group = self._group(live, number)
        for name in live:
            self._unheard[name].append(number)
            self.fared.due[name] += len(group) / len(live)
            self.fared.done += self._tokens[name]
        self._count(group, number)
        for name, state in self._states.items():
            self._missed[name].append(group)
            state.last = self._last
            if name in live:
                turns.rounds_made(state, self._missed[name], number)
                self._missed[name] = []

    def _there(self, number: int) -> list[str]:
        self._back = {name: back for name, back in self._back.items() if back > number}
        for name in self._tokens:
            if name not in self._back and number > 1 and self._draw.random() < self._churn:
                self._back[name] = number + self._draw.randint(1, AWAY_MOST)
        while number > 1 and not has_majority(self._tokens.keys() - self._back.keys(), self._last.weights):
            self._back = {name: back - 1 for name, back in self._back.items() if back - 1 > number}
            self.fared.waits += 1
        return [name for name in self._tokens if name not in self._back]

    def _show(self, live: list[str], number: int) -> None:
        """All that are there hear each other, and work."""
        said = Said(number, self._last.state, tokens=1, hears=len(live) - 1)
        views = {name: View(name, said, number, 3.0, 3.0) for name in live}
        for name in live:
            state = self._states[name]
            state.views, state.own.tokens = {peer: view for peer, view in views.items() if peer != name}, 1
            state.round_started = number

    def _group(self, live: list[str], number: int) -> list[str]:
        for attempt in range(ATTEMPTS):
            leader = self._leader(live, number)
            state = self._states[leader]
            asked = turns.to_ask(state, turns.others(state, number), number, attempt)
            group = [leader, *(view.peer for view in asked if self._draw.random() >= self._deaf)]
            if number == 1 or has_majority(set(group), turns.acceptors(state)):
                return group
            self.fared.failed += 1
        raise AssertionError(f"no group for round {number}")

    def _leader(self, live: list[str], number: int) -> str:
        line = {}
        for name in live:
            if number == 1 or name in self._last.weights:
                state = self._states[name]
                place = turns.place_in_line(state, turns.others(state, number), number)
                if place is not None:
                    line[place] = name
        return line[min(line)] if line else live[0]

    def _count(self, group: list[str], number: int) -> None:
        worths, spans = {}, {}
        for name in group:
            self.fared.taken[name] += 1
            waited = self._last.may_have_waited(name) if number > 1 else 0
            mine = [done for done in self._unheard[name] if done >= number - waited]
            self.fared.dropped += (len(self._unheard[name]) - len(mine)) * self._tokens[name]
            worths[name], spans[name] = len(mine) * self._tokens[name], 1 + waited
            self._unheard[name] = []
        counts = counted_worths(worths, self._last, spans, self._places)
        base = self._last.state
        self._last = Last(number, f"{number:064x}", counts.weights, counts.newcomers, base, counts.full, counts.recent)


def play(members: int, places: int, rounds: int, churn: float = 0.0, deaf: float = 0.0, seed: int = 0) -> Fared:
    """A run's rounds, one after the other.

    Args:
        places: in a group.
        churn: in each round, this part of the members goes away, each for up to three rounds.
        deaf: this part of those who are asked does not answer.

    Raises:
        AssertionError: a round was not made in ten attempts.
    """
    rotation = Rotation(members, places, churn, deaf, seed)
    for _ in range(rounds):
        rotation.round()
    return rotation.fared
