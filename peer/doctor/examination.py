"""`potluck doctor`: what is asked of whom, side by side and within a time; `finding` has what comes of it.

    computer ────────────────────────────────┐
    coordinator: run, status ─▶ line, reach ─┴─▶ memory ─▶ speed, share, traffic

Whatever fails or takes too long is a finding, too, and the others are told all the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from peer.doctor.computer import Computer, of_computer, of_disk
from peer.doctor.costs import Power, of_power, of_speed, of_traffic
from peer.doctor.finding import Errand, Finding
from peer.doctor.fit import Fit, fit_of, of_download, of_fit
from peer.doctor.reach import Listened, of_line, of_own_address
from peer.link.answers import RunDescription
from peer.link.channel import CoordinatorBusy, CoordinatorOlder
from peer.link.line import MeasuredLine
from peer.screen.terms import JoinTerms
from peer.training.memory import MomentsKind
from protocol.errors import CoordinatorAway, InputError, PotluckError
from protocol.status import RunStatus

LIMIT_S = 28.0  # in all
LOOK_S = 15.0  # at the computer, and at the run; torch and a card's driver take seconds to load
LINE_S = 20.0
T = TypeVar("T")


@dataclass(frozen=True)
class AskedRun:
    """What a coordinator says of its run."""

    run: RunDescription
    status: RunStatus | None
    terms: JoinTerms


class Sources(Protocol):
    """Whom the doctor asks; each call may take long, and may raise PotluckError."""

    def computer(self) -> Computer: ...

    def own_address(self) -> str: ...

    def disk(self) -> tuple[int, str]:
        """Bytes free, and where."""

    def ask(self) -> AskedRun: ...

    def line(self) -> tuple[MeasuredLine, Listened]: ...

    def tokens_per_s(self, asked: AskedRun, fit: Fit) -> float: ...


class Examination:
    """One look at a computer, and at a run if there is an invite.

    Args:
        has_run: whether a run is looked at.
        moments: as this member would hold them.
        watts, price: as the owner gives them.
    """

    def __init__(
        self,
        sources: Sources,
        *,
        has_run: bool,
        moments: MomentsKind = "fp32",
        watts: float | None = None,
        price: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        limit_s: float = LIMIT_S,
    ) -> None:
        self._sources, self._has_run, self._clock = sources, has_run, clock
        self._watts, self._price, self._moments = watts, price, moments
        self._until = clock() + limit_s
        self._problems: list[Finding] = []

    def findings(self) -> Iterator[Finding]:
        """All of them, as they come."""
        looking = Errand("doctor-computer", self._sources.computer)
        asking = Errand("doctor-run", self._sources.ask) if self._has_run else None
        computer = self._wait("device", looking, LOOK_S)
        yield from self._failed()
        if computer is not None:
            yield from of_computer(computer)
        free_bytes, folder = self._sources.disk()
        yield of_disk(free_bytes, folder)
        yield from of_power(self._power(computer))
        if asking is None:
            yield of_own_address(self._sources.own_address())
            return
        asked = self._wait("run", asking, LOOK_S)
        yield from self._failed()
        if asked is None:
            return
        yield _run(asked)
        yield of_download(asked.terms, free_bytes)
        line, found = self._line()
        yield from found
        speed = None
        if computer is not None:
            fit = fit_of(asked.run.card.spec, asked.run.shape, computer.room, self._moments)
            memory = of_fit(fit)
            yield memory
            if memory.level != "bad":
                speed = self._speed(asked, fit)
                yield from self._failed()
        if speed is not None:
            yield from of_speed(speed, asked.status)
        yield of_traffic(asked.terms, line, speed)

    def _line(self) -> tuple[MeasuredLine | None, list[Finding]]:
        try:
            line, place = Errand("doctor-line", self._sources.line).within(self._left(LINE_S))
        except CoordinatorOlder as error:
            remedy = "nothing to do here; a clock that is wrong is told when you join"
            return None, [Finding("line", "note", f"line, clock and reach: not measured; {error.message}", remedy)]
        except CoordinatorBusy:
            text = "line, clock and reach: not measured, the host was asked too often just now"
            return None, [Finding("line", "note", text, "wait a minute, and look again")]
        except PotluckError as error:
            text = f"line, clock and reach: not measured; {error.message}"
            return None, [Finding("line", "note", text, _remedy(error))]
        return line, list(of_line(line, place))

    def _speed(self, asked: AskedRun, fit: Fit) -> float | None:
        return self._wait("speed", Errand("doctor-speed", lambda: self._sources.tokens_per_s(asked, fit)), LIMIT_S)

    def _power(self, computer: Computer | None) -> Power:
        card = computer.card if computer is not None and computer.kind == "cuda" else None
        if self._watts is None and card is not None and card.watts is not None:
            return Power(card.watts, True, self._price)
        return Power(self._watts, False, self._price)

    def _wait(self, key: str, errand: Errand[T], seconds: float) -> T | None:
        """What an errand brings; None: it failed, which `_failed` tells."""
        try:
            return errand.within(self._left(seconds))
        except PotluckError as error:
            level = "note" if key == "speed" and not isinstance(error, InputError) else "bad"
            self._problems.append(Finding(key, level, _failed(key, error), _remedy(error)))  # type: ignore[arg-type]
            return None

    def _failed(self) -> Iterator[Finding]:
        yield from self._problems
        self._problems.clear()

    def _left(self, seconds: float) -> float:
        return min(seconds, self._until - self._clock())


def _remedy(error: PotluckError) -> str:
    if isinstance(error, CoordinatorAway):  # whose own hint is for members
        return "check the network, or ask the host whether the run is up"
    return error.hint or "try again; if it stays so, report it to the project"


def _failed(key: str, error: PotluckError) -> str:
    why = error.message
    return {"device": f"card: {why}", "run": f"host: {why}", "speed": f"speed: {why}"}[key]


def _run(asked: AskedRun) -> Finding:
    spec = asked.run.card.spec
    rounds = spec.run.rounds
    if asked.run.finished or 0 < rounds <= asked.run.round:
        text = f"run: {spec.run.name} is over, it has had its {rounds} rounds"
        return Finding("run", "bad", text, "potluck fetch INVITE brings what came of it; ask the host for another run")
    return Finding("run", "good", f"run: {spec.run.name}, at round {asked.run.round}; its host answers")
