"""The peers of one home, running or not: what `potluck status` shows without an invite, and whom `potluck leave` asks.

Reads what is on disk and talks to nobody; imports nothing heavy.

    >>> import tempfile
    >>> find_peers(Path(tempfile.mkdtemp()))
    []
"""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peer.disk.round_log import Round, read_rounds
from peer.disk.run_lock import Process, holder
from protocol.errors import InputError, PotluckError
from protocol.keys import load_public_pem
from protocol.run_card import MAX_RUN_CARD_BYTES, RunCard

SHOWN_ROUNDS = 5
LEAVE_S = 60.0  # that a peer may take to leave; it needs a few seconds
LEAVE_NOW_S = 10.0
AGAIN_S = 0.3  # between two signals: as one, they would arrive once
_LOOK_S = 0.1


@dataclass(frozen=True)
class LocalPeer:
    """One run's folder on this machine."""

    folder: Path
    name: str  # of the run; empty when its card is not there or does not hold
    process: Process | None  # that trains; None: none does
    rounds: tuple[Round, ...]  # the newest, oldest first

    @property
    def run(self) -> str:
        """The first 16 hex digits of the run digest."""
        return self.folder.name

    def to_json(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "name": self.name,
            "running": self.process is not None,
            "pid": self.process.pid if self.process else None,
            "round": self.rounds[-1].round if self.rounds else 0,
            "rounds": [item._asdict() for item in self.rounds],
        }


def find_peers(home: Path, run: str | None = None) -> list[LocalPeer]:
    """The peers of a home, by the digests of their runs.

    Args:
        run: only those of runs with this name, or whose digest begins so.

    Raises:
        InputError: none is of that run, or a lock cannot be read.
    """
    folders = sorted(path for path in (home / "runs").glob("*") if path.is_dir())
    found = [
        LocalPeer(
            folder, _name(folder), holder(folder / "lock"), tuple(read_rounds(folder / "rounds.jsonl", SHOWN_ROUNDS))
        )
        for folder in folders
    ]  # fmt: skip
    if run is None:
        return found
    chosen = [peer for peer in found if run and (peer.name == run or peer.run.startswith(run[:16].lower()))]
    if not chosen:
        known = ", ".join(peer.name or peer.run for peer in found) or "none at all"
        raise InputError(f"no run here is called {run!r}, nor does a digest begin so", f"known in {home}: {known}")
    return chosen


def ask_to_leave(peer: LocalPeer, *, now: bool, timeout_s: float | None = None) -> bool:
    """Ask a running peer to leave, as Ctrl-C does; returns whether it has left in time.

    Args:
        now: as a second Ctrl-C does: the round in hand is not finished.

    Raises:
        RefusedError: it is another user's.
    """
    assert peer.process is not None, "it runs"
    deadline = time.monotonic() + (timeout_s or (LEAVE_NOW_S if now else LEAVE_S))
    peer.process.signal(signal.SIGINT)
    again = time.monotonic() + AGAIN_S
    while holder(peer.folder / "lock") == peer.process:
        if time.monotonic() >= deadline:
            return False
        if now and time.monotonic() >= again:
            peer.process.signal(signal.SIGINT)
            again = time.monotonic() + AGAIN_S
        time.sleep(_LOOK_S)
    return True


def _name(folder: Path) -> str:
    try:
        with (folder / "root.pem").open("rb") as root, (folder / "run-card.json").open("rb") as card:
            return RunCard.open(card.read(MAX_RUN_CARD_BYTES + 1), load_public_pem(root.read(8192))).spec.run.name
    except (OSError, PotluckError):
        return ""
