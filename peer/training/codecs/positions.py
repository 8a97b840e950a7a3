"""Writes which of `count` places hold a value: as few bits as there can simply be (Elias 1974, Fano 1971).

Of `kept` places out of `count`, sorted, each is cut into its `low` lowest bits and the rest:

    low parts    kept x low bits, least significant bit first
    high parts   for i = 0, 1, ...: bit (place_i >> low) + i of kept + (count - 1 >> low) + 1 bits is set

both filled up to whole bytes with zeros. `low` is log2(count / kept), rounded down: of one place in 32 each takes 7
bits, where a plain index in a block of 4096 takes 12. When more than a quarter is kept, a bitmap of `count` bits is
shorter and takes the place of both. The size follows from `kept` and `count`.

    >>> data = write_positions(np.array([3, 64, 200]), 256)
    >>> len(data) == position_bytes(3, 256) == 4
    True
    >>> read_positions(memoryview(data), 3, 256).tolist()
    [3, 64, 200]
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protocol.errors import FormatError


def position_bytes(kept: int, count: int) -> int:
    """How many bytes `kept` places out of `count` take; at most `most_position_bytes(count)`."""
    low = _low_bits(kept, count)
    return -(-count // 8) if low == 0 else -(-kept * low // 8) + -(-_high_bits(kept, count, low) // 8)


def most_position_bytes(count: int) -> int:
    """The most that any number of places out of `count` takes."""
    return -(-count // 8) + 2


def write_positions(places: NDArray[np.int64], count: int) -> bytes:
    """Places from 0 to count - 1, strictly ascending, as bytes."""
    low = _low_bits(places.size, count)
    if low == 0:
        bitmap = np.zeros(count, dtype=np.uint8)
        bitmap[places] = 1
        return np.packbits(bitmap, bitorder="little").tobytes()
    lows = (places[:, None] >> np.arange(low)) & 1
    highs = np.zeros(_high_bits(places.size, count, low), dtype=np.uint8)
    highs[(places >> low) + np.arange(places.size)] = 1
    return b"".join(
        np.packbits(bits.astype(np.uint8), axis=None, bitorder="little").tobytes() for bits in (lows, highs)
    )


def read_positions(data: memoryview, kept: int, count: int) -> NDArray[np.int64]:
    """The places that `write_positions` wrote: `kept` of them, from 0 to count - 1, strictly ascending.

    Args:
        data: `position_bytes(kept, count)` bytes.

    Raises:
        FormatError: bytes that it does not write.
    """
    low = _low_bits(kept, count)
    split = -(-kept * low // 8)
    high_bits = _high_bits(kept, count, low) if low else count
    highs = _bits(data[split:], high_bits)
    places = np.flatnonzero(highs)
    if places.size != kept:
        raise FormatError(f"expected {kept} places, got {places.size}")
    if low == 0:
        return places
    lows = _bits(data[:split], kept * low).reshape(kept, low)
    places = (places - np.arange(kept)) << low
    for bit in range(low):
        places |= lows[:, bit].astype(np.int64) << bit
    if kept and ((np.diff(places) <= 0).any() or places[-1] >= count):
        raise FormatError(f"places that are not strictly ascending below {count}")
    return places


def _low_bits(kept: int, count: int) -> int:
    """0: a bitmap."""
    if 4 * kept >= count:
        return 0
    return max((count // max(kept, 1)).bit_length() - 1, 1)


def _high_bits(kept: int, count: int, low: int) -> int:
    return kept + ((count - 1) >> low) + 1


def _bits(data: memoryview, count: int) -> NDArray[np.uint8]:
    """The first `count` bits. Raises: FormatError: a bit set after them."""
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), bitorder="little")
    if bits[count:].any():
        raise FormatError("bits set after the last place")
    return bits[:count]
