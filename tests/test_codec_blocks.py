"""int4: its bytes, its error against float64, and everything that its encoder would not write."""

from __future__ import annotations

import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peer.training.codecs.block import Int4
from protocol.errors import FormatError

INT4 = Int4()


def reference(values: torch.Tensor) -> list[float]:
    """What the docstring says, value by value in float64."""
    result = []
    for start in range(0, values.numel(), 64):
        block = values[start : start + 64].double()
        scale = (block.abs().max() / 7).to(torch.bfloat16).double().item()
        result += [scale * max(-7, min(7, round(value / scale))) if scale else 0.0 for value in block.tolist()]
    return result


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 127, 1000, 65536])
def test_int4_is_the_nearest_of_15_levels_of_each_block(count: int) -> None:
    draw = torch.Generator().manual_seed(count)
    values = torch.randn(count, generator=draw) * torch.exp(torch.randn(count, generator=draw)) * 1e-4
    decoded = INT4.decode(INT4.encode(values), count)
    wanted = torch.tensor(reference(values), dtype=torch.float64)
    step = values.abs().max().item() / 7
    close = (decoded.double() - wanted).abs() <= 1e-12
    # a quotient in fp32 may fall on the other side of a border between two levels
    assert close.float().mean() > 0.999 and (decoded.double() - wanted).abs().max() <= step * 1.01


def test_int4_loses_a_tenth_of_a_normal_update() -> None:
    values = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0))
    error = (INT4.decode(INT4.encode(values), 1 << 16) - values).double().norm() / values.double().norm()
    assert 0.1 < error < 0.115


@settings(max_examples=100)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=200))
def test_any_finite_values_come_back_within_half_a_step_of_their_block(numbers: list[float]) -> None:
    values = torch.tensor(numbers, dtype=torch.float32)
    decoded = INT4.decode(INT4.encode(values), len(numbers)).double()
    for start in range(0, len(numbers), 64):
        block, back = values[start : start + 64].double(), decoded[start : start + 64]
        # half a step, and what rounding a scale to bf16 takes off the largest value
        assert (block - back).abs().max() <= block.abs().max() / 7 * 0.53 + 1e-38


def packed(scale: bytes, *levels: int) -> bytes:
    """Two values: one scale, one byte."""
    low, high = levels
    return scale + bytes([low | high << 4])


ONE = struct.pack("<H", 0x3F80)  # bf16


def test_int4_bytes_are_read_as_written_down() -> None:
    assert INT4.decode(packed(ONE, 15, 1), 2).tolist() == [7.0, -7.0]
    assert INT4.decode(packed(ONE, 10, 0), 1).tolist() == [2.0]


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (packed(ONE, 0, 8), 2),  # a level of -8, low
        (packed(ONE, 8, 0), 2),  # and high
        (packed(ONE, 8, 8), 1),  # the unused half-byte
        (packed(struct.pack("<H", 0xBF80), 9, 9), 2),  # scale -1
        (packed(struct.pack("<H", 0x8000), 9, 9), 2),  # -0
        (packed(struct.pack("<H", 0x7F80), 9, 9), 2),  # infinity
        (packed(struct.pack("<H", 0x7FC0), 9, 9), 2),  # NaN
        (packed(struct.pack("<H", 0x7F7F), 15, 9), 2),  # finite, but not 7 times
    ],
)
def test_int4_bytes_that_no_encoder_writes_are_refused(data: bytes, count: int) -> None:
    with pytest.raises(FormatError):
        INT4.decode(data, count)


@settings(max_examples=200)
@given(st.data())
def test_random_int4_bytes_are_refused_or_finite(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 130))
    raw = data.draw(st.binary(min_size=INT4.encoded_bytes(count), max_size=INT4.encoded_bytes(count)))
    try:
        values = INT4.decode(raw, count)
    except FormatError:
        return
    assert values.shape == (count,) and torch.isfinite(values).all()
