"""topk: of each block of 4096 values only the 128 largest travel, as one of two sizes with a sign (SparseLoCo, Sarfi et
al. 2025; the setting of Covenant-72B). What is left out waits in its sender's model, which trains on from there
(`peer.training.work`). Gradients wait in a residual, of which nine tenths go into the next update: what has waited for
long pulls the wrong way. docs/benchmarks.md has what each is worth.

A part is, of `n` values, the k = ceil(n / 32) that are kept:

    places       `peer.training.codecs.positions` of k out of n: each block of 4096 has 128 of them,
                 a shorter last one of w values ceil(w / 32)
    sizes        for each block 2 x bf16: the mean of its smaller and of its larger ones, cut where that is closest
                 to all
    2k bits      the signs (1: negative), then which of the two sizes, in whole bytes; least significant bit first

An average (`peer.training.aggregate.senders_mean`) is on the places of all members together, so it is written
otherwise:

    u32          how many places k
    places       of k out of n
    values       int4 of these k

    >>> topk = TopK()
    >>> values = torch.zeros(64); values[5], values[40] = -2.0, 1.0
    >>> part = topk.encode(values)
    >>> len(part) == topk.encoded_bytes(64), topk.decode(part, 64).equal(values)
    (True, True)
    >>> average = TopKAverage()
    >>> average.decode(average.encode(values), 64)[5]
    tensor(-1.9961)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from peer.training.codecs.block import Int4, read_bf16, round_bf16, write_bf16
from peer.training.codecs.dense import Codec
from peer.training.codecs.positions import most_position_bytes, position_bytes, read_positions, write_positions
from protocol.errors import FormatError

BLOCK = 4096  # values from which the largest are taken
ONE_IN = 32  # is kept
_BF16_MAX = 3.3895313892515355e38
_VALUES = Int4()  # of an average


class TopK(Codec):
    name = "topk"
    feedback = 0.9
    sparse = True

    def encoded_bytes(self, count: int) -> int:
        kept = _kept(count)
        return position_bytes(kept, count) + 4 * _blocks(count) + -(-2 * kept // 8)

    def _encode(self, values: torch.Tensor) -> bytes:
        flat = values.numpy()
        full = flat.size // BLOCK * BLOCK
        lots = [_largest(flat[:full].reshape(-1, BLOCK), 0)] if full else []
        lots += [_largest(flat[full:].reshape(1, -1), full)] if full < flat.size else []
        places, negative, large, sizes = (
            np.concatenate([lot[i].ravel() for lot in lots] or [np.zeros(0, dtype=np.int64)]) for i in range(4)
        )
        bits = np.packbits(np.concatenate([negative, large]).astype(np.bool_), bitorder="little")
        scales = torch.from_numpy(sizes.astype(np.float32))
        return write_positions(places, flat.size) + write_bf16(scales) + bits.tobytes()

    def _decode(self, data: memoryview, count: int) -> tuple[torch.Tensor, bool]:
        values = np.zeros(count, dtype=np.float32)
        if count == 0:
            return torch.from_numpy(values), True
        kept, end = _kept(count), len(data) - -(-2 * _kept(count) // 8)
        start = end - 4 * _blocks(count)
        places = read_positions(data[:start], kept, count)
        blocks = places // BLOCK
        if not np.array_equal(blocks, np.arange(kept) // (BLOCK // ONE_IN)):
            raise FormatError("topk codec: a block with more or fewer places than it keeps")
        sizes = read_bf16(data[start:end], "topk codec: a size").view(-1, 2).numpy()
        if (sizes[:, 0] > sizes[:, 1]).any():
            raise FormatError("topk codec: a smaller size that is the larger one")
        bits = np.unpackbits(np.frombuffer(data[end:], dtype=np.uint8), bitorder="little")
        if bits[2 * kept :].any():
            raise FormatError("topk codec: bits set after the last value")
        sent = sizes[blocks, bits[kept : 2 * kept]]
        values[places] = np.where(bits[:kept], -sent, sent)
        return torch.from_numpy(values), True


class TopKAverage(Codec):
    """All values that are not 0, wherever they are."""

    name = "topk"
    sparse = True

    def encoded_bytes(self, count: int) -> int:
        return 4 + most_position_bytes(count) + _VALUES.encoded_bytes(count)

    def _encode(self, values: torch.Tensor) -> bytes:
        places = np.flatnonzero(values.numpy())
        kept = values[torch.from_numpy(places)]
        return np.uint32(places.size).tobytes() + write_positions(places, values.numel()) + _VALUES.encode(kept)

    def _check_size(self, data: bytes | bytearray | memoryview, count: int) -> None:
        kept = int.from_bytes(data[:4], "little")
        if count < 0 or len(data) < 4 or kept > count:
            raise FormatError(f"topk codec: expected an average of at most {count} places, got {kept}")
        expected = 4 + position_bytes(kept, count) + _VALUES.encoded_bytes(kept)
        if len(data) != expected:
            raise FormatError(f"topk codec: expected {expected} bytes for {kept} of {count} values, got {len(data)}")

    def _decode(self, data: memoryview, count: int) -> tuple[torch.Tensor, bool]:
        kept = int.from_bytes(data[:4], "little")
        split = 4 + position_bytes(kept, count)
        places = read_positions(data[4:split], kept, count)
        values = torch.zeros(count)
        values[torch.from_numpy(places)] = _VALUES.decode(data[split:], kept)
        return values, True


def _blocks(count: int) -> int:
    return -(-count // BLOCK)


def _kept(count: int) -> int:
    return -(-count // ONE_IN)


def _largest(blocks: NDArray[np.float32], start: int) -> tuple[NDArray[Any], ...]:
    """What travels of some blocks, the first of which begins at place `start`.

    Returns:
        places, ascending; which are negative; which are of the larger size [blocks, kept]; and the sizes [blocks, 2].
    """
    count, width = blocks.shape
    magnitudes = np.abs(blocks)
    # argpartition: four times as fast as torch.topk or kthvalue; a threshold by partition would need its ties cut off
    places = np.argpartition(magnitudes, width - _kept(width), axis=1)[:, width - _kept(width) :]
    places.sort(axis=1)
    kept = np.take_along_axis(magnitudes, places, axis=1)
    sizes = _two_sizes(kept)
    negative = np.take_along_axis(blocks, places, axis=1) < 0
    return (
        places + (start + width * np.arange(count)[:, None]),
        negative,
        kept > sizes.mean(axis=1, keepdims=True),
        sizes,
    )


def _two_sizes(kept: NDArray[np.float32]) -> NDArray[np.float64]:
    """The two sizes of each block that stand for its values with the least squared error, as bf16 holds them.

    Args:
        kept: [blocks, values], none negative.

    Returns:
        [blocks, 2], the smaller size first.
    """
    ordered = np.sort(kept, axis=1).astype(np.float64)
    if ordered.shape[1] == 1:
        ordered = np.repeat(ordered, 2, axis=1)
    sums = np.cumsum(ordered, axis=1)
    below, above, number = sums[:, :-1], sums[:, -1:] - sums[:, :-1], np.arange(1, ordered.shape[1])
    rest = ordered.shape[1] - number
    # of all cuts of the ordered values in two: the one with the most between its two means
    best = np.argmax(below * (below / number) + above * (above / rest), axis=1)[:, None]
    small = np.take_along_axis(below / number, best, axis=1)
    large = np.maximum(np.take_along_axis(above / rest, best, axis=1), small)
    sizes = torch.from_numpy(np.concatenate([small, large], axis=1).clip(max=_BF16_MAX).astype(np.float32))
    return round_bf16(sizes).numpy().astype(np.float64)
