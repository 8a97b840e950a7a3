"""topk: of each block of 4096 values only the 128 largest travel, as one of two sizes with a sign (SparseLoCo, Sarfi et
al. 2025; the setting of Covenant-72B). What is left out waits in the sender's residual: `peer.training.codec`.

A part is, of `n` values, the k = ceil(n / 32) that are kept:

    places       `peer.training.positions` of k out of n: each block of 4096 has 128 of them, a shorter last one of w values ceil(w / 32)
    sizes        for each block 2 x bf16: the mean of its smaller and of its larger ones, split in two groups by Lloyd's algorithm
    2k bits      the signs (1: negative), then which of the two sizes, in whole bytes; least significant bit first

An average is another thing. A place that a member did not send is not a zero of that member: each place is the
weighted mean over those who sent it, and what one member alone sent is shrunk to that member's share of all weight. It is
on the places of all members together:

    u32          how many places k
    places       of k out of n
    values       int4 of these k

    >>> topk = TopK()
    >>> values = torch.zeros(64); values[5], values[40] = -2.0, 1.0
    >>> part = topk.encode(values)
    >>> len(part) == topk.encoded_bytes(64), topk.decode(part, 64).equal(values)
    (True, True)
    >>> topk.decode_average(topk.average([part, part], [1, 3], 64), 64)[5]
    tensor(-1.9961)
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from peer.training.aggregate import senders_mean
from peer.training.block_codec import Int4, read_bf16, round_bf16, write_bf16
from peer.training.dense_codec import Codec
from peer.training.positions import most_position_bytes, position_bytes, read_positions, write_positions
from protocol.errors import FormatError

BLOCK = 4096  # values from which the largest are taken
ONE_IN = 32  # is kept
_LLOYD_STEPS = 5  # seven more take another 1 to 3 % off the error of what is kept
_BF16_MAX = 3.3895313892515355e38
_VALUES = Int4()  # of an average


class TopK(Codec):
    name = "topk"
    feedback = True

    def encoded_bytes(self, count: int) -> int:
        kept = _kept(count)
        return position_bytes(kept, count) + 4 * _blocks(count) + -(-2 * kept // 8)

    def _encode(self, values: torch.Tensor) -> bytes:
        flat = values.numpy()
        places = _largest(flat)
        kept, blocks = flat[places], places // BLOCK
        large, sizes = _two_sizes(np.abs(kept.astype(np.float64)), blocks, _blocks(flat.size))
        bits = np.packbits(np.concatenate([kept < 0, large]), bitorder="little")
        return write_positions(places, flat.size) + write_bf16(torch.from_numpy(sizes)) + bits.tobytes()

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

    def average(self, parts: list[bytes], weights: list[int], count: int) -> bytes:
        mean = senders_mean([self.decode(part, count) for part in parts], weights)
        places = np.flatnonzero(mean.numpy())
        values = mean[torch.from_numpy(places)]
        return np.uint32(places.size).tobytes() + write_positions(places, count) + _VALUES.encode(values)

    def average_bytes(self, count: int) -> int:
        return 4 + most_position_bytes(count) + _VALUES.encoded_bytes(count)

    def decode_average(self, data: bytes | bytearray | memoryview, count: int) -> torch.Tensor:
        kept = int.from_bytes(data[:4], "little")
        if count < 0 or len(data) < 4 or kept > count:
            raise FormatError(f"topk codec: expected an average of at most {count} places, got {kept}")
        split = 4 + position_bytes(kept, count)
        expected = split + _VALUES.encoded_bytes(kept)
        if len(data) != expected:
            raise FormatError(f"topk codec: expected {expected} bytes for {kept} of {count} values, got {len(data)}")
        view = memoryview(data)
        places = read_positions(view[4:split], kept, count)
        values = torch.zeros(count)
        values[torch.from_numpy(places)] = _VALUES.decode(view[split:], kept)
        return values


def _blocks(count: int) -> int:
    return -(-count // BLOCK)


def _kept(count: int) -> int:
    return -(-count // ONE_IN)


def _largest(flat: NDArray[np.float32]) -> NDArray[np.int64]:
    """Places of the largest values of each block, ascending."""
    full = flat.size // BLOCK * BLOCK
    found = []
    for piece, width in ((flat[:full], BLOCK), (flat[full:], flat.size - full)):
        if piece.size:
            blocks = np.abs(piece).reshape(-1, width)
            # argpartition: half the time of partition with a threshold, a fifth of torch.topk's
            places = np.argpartition(blocks, width - _kept(width), axis=1)[:, width - _kept(width) :]
            places.sort(axis=1)
            found.append((places + np.arange(len(blocks))[:, None] * width).ravel())
    if len(found) == 2:
        found[1] += full
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def _two_sizes(
    values: NDArray[np.float64], blocks: NDArray[np.int64], count: int
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Which values are large ones of their block, and the two sizes [blocks, 2] that bf16 holds."""
    total, number = np.bincount(blocks, values, count), np.bincount(blocks, minlength=count)
    border = total / np.maximum(number, 1)
    for _ in range(_LLOYD_STEPS):
        large = values > border[blocks]
        number_large, total_large = (
            np.bincount(blocks[large], minlength=count),
            np.bincount(blocks, values * large, count),
        )
        small_mean = (total - total_large) / np.maximum(number - number_large, 1)
        large_mean = np.where(number_large > 0, total_large / np.maximum(number_large, 1), small_mean)
        border = (small_mean + large_mean) / 2
    sizes = np.stack([small_mean, large_mean], axis=1).clip(max=_BF16_MAX).astype(np.float32)
    return large, round_bf16(torch.from_numpy(sizes)).numpy()
