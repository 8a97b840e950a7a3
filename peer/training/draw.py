"""Which samples are whose: a pseudo-random function that anyone can compute.

Draw number `counter` (0, 1, 2, ...) of a peer in a round is

    SHA-256("potluck-draw-v1\\n" | run seed, u64 | round, u64 | counter, u64 | peer id, ASCII)

with big-endian integers; its first 16 bytes, read as a big-endian integer, modulo the number of training sequences
(a bias below 2**-64), are the index of the sequence. Draws are with replacement: peers need not know of each other.

    >>> draw(0, 1, "12D3KooWExample", first=0, count=3, size=1000)
    [778, 820, 623]
    >>> draw(0, 1, "12D3KooWExample", first=1, count=2, size=1000)
    [820, 623]
"""

from __future__ import annotations

import hashlib
import struct

_DOMAIN = b"potluck-draw-v1\n"


def draw(seed: int, round: int, peer_id: str, first: int, count: int, size: int) -> list[int]:
    """Indices of training sequences, draws `first` to `first + count - 1`.

    Args:
        seed: the run's.
        round: that the work is for.
        peer_id: base58.
        size: how many training sequences there are, at least 1.
    """
    if size < 1:
        raise ValueError("there is nothing to draw from")
    prefix = hashlib.sha256(_DOMAIN + struct.pack(">QQ", seed, round))
    suffix = peer_id.encode("ascii")
    indices = []
    for counter in range(first, first + count):
        hasher = prefix.copy()
        hasher.update(struct.pack(">Q", counter) + suffix)
        indices.append(int.from_bytes(hasher.digest()[:16], "big") % size)
    return indices
