"""How many reports may wait for the rounds before them, in all and of one peer. `reports` asks; the store holds them.

Whoever has too much waiting keeps the rest and sends it later. When all room is taken, those give way who have most
waiting, and of those first who have done no work: what another has reported, too, stays in that one's name.
"""

from __future__ import annotations

from coordinator.store.database import Tables
from protocol.agreement import Agreement
from protocol.errors import NetworkError

MAX_AHEAD = 100_000  # rounds beyond the newest committed one
MAX_WAITING = 20_000  # reports of agreements, by all peers
MAX_WAITING_BYTES = 512 << 20
MAX_WAITING_PER_PEER = 100
MAX_WAITING_BYTES_PER_PEER = 16 << 20
_HINT = "report the rounds before it first"


def check_room(tables: Tables, ahead: int, reporter: str, size_bytes: int) -> None:
    """Check that a report may wait in a peer's name.

    Args:
        ahead: rounds that it is beyond the newest committed one.

    Raises:
        NetworkError: this peer has enough waiting.
    """
    mine, held_bytes = tables.waiting.held_by(reporter)
    if mine >= MAX_WAITING_PER_PEER or held_bytes + size_bytes > MAX_WAITING_BYTES_PER_PEER or ahead > MAX_AHEAD:
        raise NetworkError(f"{ahead} rounds ahead of the ledger, and {mine} reports of yours wait already", _HINT)


def hold(tables: Tables, agreement: Agreement, ahead: int, reporter: str, now: float) -> None:
    """Let a checked agreement wait in a peer's name; others may have to give way.

    Raises:
        NetworkError: this peer has enough waiting, or all have.
    """
    data = agreement.to_bytes()
    if tables.waiting.is_held(data, reporter):
        return
    check_room(tables, ahead, reporter, len(data))
    tables.waiting.hold(data, round=agreement.round, base=agreement.base, reporter=reporter, time=now)
    while _is_over_full(tables):
        tables.waiting.drop_furthest_of_the_heaviest()
    if not tables.waiting.is_held(data, reporter):
        raise NetworkError("too many reports wait already", _HINT)


def _is_over_full(tables: Tables) -> bool:
    count, size_bytes = tables.waiting.held()
    return count > MAX_WAITING or size_bytes > MAX_WAITING_BYTES
