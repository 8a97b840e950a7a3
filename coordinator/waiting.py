"""How many reports may wait for the rounds before them, in all and of one peer: rules without I/O, for `reports`.

Whoever has too much waiting keeps the rest and sends it later. When all room is taken, those give way who have most
waiting, and of those first who have done no work: what another has reported, too, stays in that one's name.
"""

from __future__ import annotations

from protocol.errors import NetworkError

MAX_AHEAD = 100_000  # rounds beyond the newest committed one
MAX_WAITING = 20_000  # reports of agreements, by all peers
MAX_WAITING_BYTES = 512 << 20
MAX_WAITING_PER_PEER = 100
MAX_WAITING_BYTES_PER_PEER = 16 << 20
HINT = "report the rounds before it first"


def check_room(count: int, held_bytes: int, size_bytes: int, ahead: int) -> None:
    """Check that one more report may wait in a peer's name.

    Args:
        count: of its reports that wait.
        held_bytes: of these.
        size_bytes: of the one more.
        ahead: rounds that this is beyond the newest committed one.

    Raises:
        NetworkError: this peer has enough waiting.
    """
    if count >= MAX_WAITING_PER_PEER or held_bytes + size_bytes > MAX_WAITING_BYTES_PER_PEER or ahead > MAX_AHEAD:
        raise NetworkError(f"{ahead} rounds ahead of the ledger, and {count} reports of yours wait already", HINT)


def is_over_full(count: int, held_bytes: int) -> bool:
    """Whether some of the reports that wait in all names must give way."""
    return count > MAX_WAITING or held_bytes > MAX_WAITING_BYTES
