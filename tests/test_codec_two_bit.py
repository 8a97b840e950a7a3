"""int2: its error against the best there is, its bytes, and everything that its encoder would not write."""

from __future__ import annotations

import struct

import pytest
import torch

from peer.training.aggregate import Mean
from peer.training.codecs.codec import EncodedUpdate, average_codec
from peer.training.codecs.two_bit import Int2
from peer.training.reduce import average_chunk
from protocol.errors import FormatError

INT2 = Int2()
BEST_OF_NORMAL = 0.3428  # relative L2 error of the best four levels for normal values (Max 1960, table I)


def lost(values: torch.Tensor) -> float:
    decoded = INT2.decode(INT2.encode(values), values.numel())
    return ((decoded - values).double().norm() / values.double().norm()).item()


def test_int2_loses_no_more_of_normal_values_than_the_best_four_levels_do() -> None:
    values = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0)) * 1e-4
    assert 0.33 < lost(values) < BEST_OF_NORMAL * 1.005


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 1000, 65536])
def test_each_value_keeps_its_sign_and_takes_one_of_two_sizes_of_its_block(count: int) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(count))
    decoded = INT2.decode(INT2.encode(values), count)
    assert torch.equal(decoded < 0, values < 0)
    for block, read in zip(values.split(256), decoded.split(256), strict=True):
        sizes = read.abs().unique()
        assert len(sizes) <= 2
        for size in sizes:  # about the mean of the values that it stands for
            mean = block[read.abs() == size].abs().mean()
            assert abs(size - mean) <= 0.03 * block.abs().max()


def test_two_sizes_that_are_all_there_is_come_back_exactly() -> None:
    values = torch.tensor([1.0, -4.0]).repeat(300)
    assert torch.equal(INT2.decode(INT2.encode(values), 600), values)
    assert INT2.decode(INT2.encode(torch.zeros(300)), 300).eq(0).all()


def test_an_average_is_written_as_a_part_is() -> None:
    parts = [INT2.encode(torch.full((300,), value)) for value in (1.0, 4.0)]
    average = average_chunk("int2", Mean(), parts, [2, 1], 300)
    assert len(average) == average_codec("int2").encoded_bytes(300) == 2 * 4 + 75
    assert average_codec("int2").decode(average, 300).tolist() == [2.0] * 300


def test_an_update_takes_two_bits_and_an_eighth_a_value() -> None:
    encoded = EncodedUpdate.encode(torch.randn(1 << 18), "int2")
    assert sum(map(len, encoded.chunks)) == (1 << 18) * 2.125 / 8


def written(small: int, large: int, bits: bytes) -> bytes:
    return struct.pack("<HH", small, large) + bits


def test_int2_bytes_are_read_as_written_down() -> None:
    # signs 0110, which size 1010, the first value in the lowest bit
    assert INT2.decode(written(0x3F80, 0x4080, bytes([0b0101_0110])), 4).tolist() == [4.0, -1.0, -4.0, 1.0]


@pytest.mark.parametrize(
    "data",
    [
        written(0x4080, 0x3F80, b"\0"),  # the smaller one is the larger one
        written(0x3F80, 0x4080, b"\x40"),  # a bit after the last value
        written(0xBF80, 0x4080, b"\0"),  # size -1
        written(0x8000, 0x4080, b"\0"),  # -0
        written(0x3F80, 0x7F80, b"\0"),  # infinity
        written(0x3F80, 0x7FC0, b"\0"),  # NaN
        written(0x3F80, 0x4080, b""),  # too short
        written(0x3F80, 0x4080, b"\0\0"),  # too long
    ],
)
def test_bytes_that_no_encoder_writes_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        INT2.decode(data, 3)
