"""How a peer stands, for the tests of its screen: the real answers of `status`, of a peer that trains nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from peer.limits.answers import LiveState
from peer.limits.gate import Readings
from peer.limits.limits import OwnLimits
from peer.limits.rates import LineRates, Rate
from peer.limits.watch import Watch
from peer.round.events import Said
from peer.round.report import RoundReport
from peer.round.state import View
from peer.screen.standing import PeerStanding
from peer.trainer import WorkReport
from protocol.run_spec import Credit
from protocol.schedule import Rates
from tests.kit.builders import make_spec

ME = "12D3KooWme"


class StillSensors:
    """Of a computer where nothing changes."""

    def __init__(self, readings: Readings) -> None:
        self.readings = readings

    def read(self, limits: OwnLimits) -> Readings:
        return self.readings

    def apply(self, limits: OwnLimits) -> None: ...


class OnePeer:
    """A peer whose threads are the test: what it tells `standing` is what the socket answers."""

    def __init__(
        self, readings: Readings, *, limits: OwnLimits | None = None, reduce_only: bool = False, hold: int = 0
    ) -> None:
        spec = make_spec(name="wood").model_copy(update={"credit": Credit(hold_rounds=hold)})
        self.rates, self.now = LineRates(Rate(lambda: 0.0), Rate(lambda: 0.0)), 0.0
        self.standing_now = PeerStanding(spec, ME, self.rates, reduce_only=reduce_only, clock=lambda: self.now)
        self.round, self.credit, self.granted_at = 0, (0, 0, 0), None
        self.others: list[View] = []
        place = Path(tempfile.gettempdir())  # where nothing is written: the watch is not entered
        self.watch = Watch(place, place, (), StillSensors(readings), lambda failure: None)
        self.watch.gate.readings, self.watch.gate.limits = readings, limits or OwnLimits()
        self._live = LiveState(self.watch, self)

    granted_at: float | None

    def standing(self) -> dict[str, Any]:
        return self.standing_now.to_json(self.round, self.others, self.credit, self.granted_at)

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        return self._live.answer(question)

    def status(self) -> dict[str, Any]:
        """With the clock as the test has it."""
        return self.ask({"do": "status"})["state"] | {"now": self.now}

    def has_trained(self, rounds: int = 20, tokens: int = 1000) -> None:
        """Rounds that were made, with a loss that falls, and one in hand."""
        for number in range(1, rounds + 1):
            self.standing_now.working(WorkReport(number, tokens, 1234.5, 4.0 - number / 10, Rates(5e-05, 0.7)))
            self.commit(number, tokens)
        self.round = rounds
        self.standing_now.working(WorkReport(rounds + 1, 512, 1234.5, None, Rates(5e-05, 0.7)))
        self.others = [
            View(f"12D3KooWother{name}", Said(rounds + 1, "f" * 64, tokens=256), 0.0, 1.0, 1.0) for name in "abcdef"
        ]
        self.rates.up.took(340_000_000)
        self.rates.down.took(1_200_000_000)

    def commit(self, number: int, tokens: int, left_out: tuple[tuple[str, str], ...] = ()) -> None:
        self.round = max(self.round, number)
        head: Any = SimpleNamespace(round=number, agreement=SimpleNamespace(weights={ME: tokens, "another": 7000}))
        self.standing_now.committed(head, RoundReport(number, 3, tokens + 7000, 1.25, 1, True, left_out))


def picture(draw: Callable[[], Any], width: int) -> list[str]:
    """A picture as lines of text."""
    from rich.console import Console

    console = Console(width=width, color_system=None)
    with console.capture() as caught:
        console.print(draw())
    return [line.rstrip() for line in caught.get().splitlines()]
