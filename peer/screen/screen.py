"""What the owner of a peer sees, as its parts see it; `terminal` has one for people, `json_lines` one for scripts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from peer.disk.receipts import Receipts
from peer.limits.gate import Permission
from peer.round.report import RoundReport
from peer.screen.live import Ask
from peer.screen.messages import Reason, told_time
from peer.screen.terms import JoinTerms
from peer.sync.shelf import Head
from peer.trainer import WorkReport
from protocol.parts import Failure


class Screen(Protocol):
    """One of the two."""

    def agree(self, terms: JoinTerms) -> bool:
        """Show the run's terms; whether the owner agrees."""

    def fetching(self, name: str, done_bytes: int, size_bytes: int) -> None: ...

    def step(self, key: str) -> None:
        """One of the steps before training: a key of peer.screen.messages."""

    def live(self, ask: Ask, leave: Callable[[], object]) -> None:
        """From now on `ask` answers as the control socket does, and `leave` asks this peer to leave."""

    def working(self, report: WorkReport) -> None: ...

    def committed(self, head: Head, report: RoundReport) -> None: ...

    def waiting(self, reason: str) -> None: ...

    def paused(self, reason: str) -> None:
        """No step is done until the reason is gone; what was done is kept."""

    def held(self, verdict: Permission) -> None:
        """Whether this peer may work by its owner's limits, and if not, why and until when; any thread."""

    def problem(self, key: str, **values: str) -> None:
        """Something that the owner may have to see to, and that goes on by itself then: a key of `messages`."""

    def credited(self, tokens: int, rounds: int, newest: int) -> None:
        """What the receipts show, up to round `newest`."""

    def over(self, rounds: int, receipts: Path | None) -> None:
        """The run has had all its rounds; `receipts`: the folder of this peer's, if it has some."""

    def stage(self, round: int, name: str) -> None:
        """Where in the round this peer is: one of `peer.round.report.STAGES`. Called in another thread."""


def tell_held(verdict: Permission) -> str:
    """Why a peer does not work, in English; empty: it may."""
    if verdict.why is None:
        return ""
    until = Reason("held-until", time=told_time(verdict.until)) if verdict.until else ""
    return Reason("held", reason=Reason(verdict.why.key, **verdict.why.values), until=until)


def tell_failure(screen: Screen, failure: Failure) -> None:
    """A part of this program has failed by a mistake of ours: the owner is told."""
    screen.problem("part-failed", part=Reason(f"part-{failure.part}"), reason=failure.reason)


def tell_over(screen: Screen, rounds: int, receipts: Receipts | None) -> None:
    """The run is over, and this is what it brought; `receipts`: None of who was no member."""
    if receipts is not None:
        screen.credited(*receipts.credit())
    screen.over(rounds, receipts.folder if receipts is not None and receipts.rounds() else None)
