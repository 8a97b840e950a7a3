"""Everyone that was ever admitted to a run, from its folder: `potluck members`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coordinator.run_folder import RunFolder
from coordinator.store.database import Store
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

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def list_members(folder: Path) -> list[Known]:
    """Who came first first. Raises: InputError: not a run's folder."""
    path = RunFolder(folder).store
    if not path.is_file():
        raise InputError(f"{folder} is not a run's folder", "give the folder that `potluck host` keeps, as runs/NAME")
    store = Store(path)
    try:
        with store.reading() as tables:
            credit = {item.peer_id: item for item in tables.credits.until(tables.rounds.newest())}
            pending = tables.claims.pending()
            entries = [parse_entry(tables.log.leaf(leaf)) for leaf in tables.bans.leaves().values()]
            why = {entry.peer_id: entry.reason for entry in entries if isinstance(entry, BanEntry)}
            return [
                Known(
                    row.peer_id,
                    row.enrolled,
                    row.renewed,
                    credit[row.peer_id].tokens if row.peer_id in credit else 0,
                    credit[row.peer_id].rounds if row.peer_id in credit else 0,
                    pending.get(row.peer_id, 0),
                    why.get(row.peer_id),
                )
                for row in tables.members.all()
            ]
    finally:
        store.close()
