"""What the owner of a peer sees, as its parts see it; `terminal` has one for people, `json_lines` one for scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from peer.screen.terms import Terms
from peer.swarm.head import Head
from peer.swarm.rounds import RoundReport
from peer.trainer import WorkReport


class Screen(Protocol):
    """One of the two."""

    def agree(self, terms: Terms) -> bool:
        """Show the run's terms; whether the owner agrees."""

    def fetching(self, name: str, done_bytes: int, size_bytes: int) -> None: ...

    def step(self, key: str) -> None:
        """One of the steps before training: a key of peer.screen.messages."""

    def working(self, report: WorkReport) -> None: ...

    def committed(self, head: Head, report: RoundReport) -> None: ...

    def waiting(self, reason: str) -> None: ...

    def paused(self, reason: str) -> None:
        """No step is done until the reason is gone; what was done is kept."""

    def problem(self, key: str, **values: str) -> None:
        """Something that the owner may have to see to, and that goes on by itself then: a key of peer.screen.messages."""

    def credited(self, tokens: int, rounds: int, newest: int) -> None:
        """What the receipts show, up to round `newest`."""

    def over(self, rounds: int, receipts: Path | None) -> None:
        """The run has had all its rounds; `receipts`: the folder of this peer's, if it has some."""

    def stage(self, round: int, name: str) -> None:
        """Where in the round this peer is: one of `peer.swarm.rounds.STAGES`. Called in another thread."""
