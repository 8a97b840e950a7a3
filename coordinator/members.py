"""Who was admitted to a run, who waits to be, and by which invites: `potluck members`, `potluck invites`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coordinator.admission import MAX_ASKING
from coordinator.run_folder import RunFolder
from coordinator.store.database import Store, Tables
from protocol.errors import InputError
from protocol.ledger_entry import BanEntry, parse_entry


@dataclass(frozen=True)
class Known:
    """One identity."""

    peer_id: str
    enrolled: float  # Unix seconds
    renewed: float
    tokens: int  # of credit
    rounds: int  # of that
    pending: int  # tokens on hold
    banned: str | None  # why; None: it is not
    invite: str | None  # the note of the invite that it came by; None: the run's own, or none
    is_member: bool = True  # else it waits for the host's word

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def list_members(folder: Path) -> list[Known]:
    """Who came first first, and then who waits to be let in. Raises: InputError: not a run's folder."""
    with _reading(folder) as tables:
        credit = {item.peer_id: item for item in tables.credits.until(tables.rounds.newest())}
        pending = tables.claims.pending()
        entries = [parse_entry(tables.log.leaf(leaf)) for leaf in tables.bans.leaves().values()]
        why = {entry.peer_id: entry.reason for entry in entries if isinstance(entry, BanEntry)}
        found = []
        for row in tables.members.all():
            granted, invite = credit.get(row.peer_id), tables.invites.of(row.peer_id)
            tokens, rounds = (granted.tokens, granted.rounds) if granted is not None else (0, 0)
            note = invite.note if invite is not None else None
            held = pending.get(row.peer_id, 0)
            found.append(
                Known(row.peer_id, row.enrolled, row.renewed, tokens, rounds, held, why.get(row.peer_id), note)
            )
        for asks in tables.invites.asking(MAX_ASKING):
            found.append(Known(asks.peer_id, asks.asked, asks.asked, 0, 0, 0, None, None, is_member=False))
        return found


@dataclass(frozen=True)
class KnownInvite:
    """An invite of its own for some people."""

    note: str
    uses: int  # came in by it
    most: int  # may
    ends: float  # Unix seconds
    revoked: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def list_invites(folder: Path) -> list[KnownInvite]:
    """Those that end last first. Raises: InputError: not a run's folder."""
    with _reading(folder) as tables:
        return [KnownInvite(row.note, row.uses, row.most, row.ends, row.revoked) for row in tables.invites.all()]


@contextmanager
def _reading(folder: Path) -> Iterator[Tables]:
    path = RunFolder(folder).store
    if not path.is_file():
        raise InputError(f"{folder} is not a run's folder", "give the folder that `potluck host` keeps, as runs/NAME")
    store = Store(path)
    try:
        with store.reading() as tables:
            yield tables
    finally:
        store.close()
