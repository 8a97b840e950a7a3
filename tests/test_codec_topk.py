"""topk and its places: the same numbers as a plain reference, and hostile bytes that come to a FormatError."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peer.training.aggregate import Mean
from peer.training.codecs.positions import most_position_bytes, position_bytes, read_positions, write_positions
from peer.training.codecs.sparse import BLOCK, TopK, TopKAverage
from peer.training.reduce import average_chunk
from protocol.errors import FormatError

TOPK, AVERAGE = TopK(), TopKAverage()
COUNTS = [1, 31, 32, 33, 64, 4095, 4096, 4097, 4096 * 3 + 100, 65536]


def mean_of(parts: list[bytes], weights: list[int], count: int) -> bytes:
    return average_chunk("topk", Mean(), parts, weights, count)


def heavy(count: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator=draw) * torch.exp(torch.randn(count, generator=draw)) * 1e-4


# ---- places ----------------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(st.integers(0, 3000), st.data())
def test_any_places_come_back_in_the_bytes_said_before(count: int, data: Any) -> None:
    chosen = sorted(data.draw(st.sets(st.integers(0, count - 1), max_size=300))) if count else []
    places = np.array(chosen, dtype=np.int64)
    raw = write_positions(places, count)
    assert len(raw) == position_bytes(len(chosen), count) <= most_position_bytes(count)
    assert read_positions(memoryview(raw), len(chosen), count).tolist() == chosen


@pytest.mark.parametrize("count", [1, 2, 7, 8, 64, 100, 4096, 65536])
def test_no_number_of_places_takes_more_than_a_bitmap(count: int) -> None:
    assert max(position_bytes(kept, count) for kept in range(count + 1)) <= most_position_bytes(count)


def test_one_place_in_32_takes_7_bits() -> None:
    assert abs(position_bytes(2048, 65536) - 2048 * 7 / 8) <= 2


@settings(max_examples=200)
@given(st.integers(1, 600), st.data())
def test_bytes_that_no_writer_writes_are_refused(count: int, data: Any) -> None:
    kept = data.draw(st.integers(0, count))
    size = position_bytes(kept, count)
    raw = data.draw(st.binary(min_size=size, max_size=size))
    try:
        places = read_positions(memoryview(raw), kept, count)
    except FormatError:
        return
    assert write_positions(places, count) == raw


@pytest.mark.parametrize("places", [[20, 10, 200], [10, 10, 200], [10, 20, 255]], ids=["swapped", "twice", "beyond"])
def test_places_that_do_not_ascend_or_lie_beyond_are_refused(places: list[int]) -> None:
    raw = write_positions(np.array(places), 256)
    assert len(raw) == position_bytes(3, 250)
    with pytest.raises(FormatError, match="strictly ascending below 250"):
        read_positions(memoryview(raw), 3, 250)


# ---- parts -----------------------------------------------------------------------------------------------------------


def largest(values: torch.Tensor) -> set[int]:
    """The places that are to be kept."""
    places: set[int] = set()
    for start in range(0, values.numel(), BLOCK):
        block = values[start : start + BLOCK].abs()
        places |= {start + place for place in torch.topk(block, -(-block.numel() // 32)).indices.tolist()}
    return places


@pytest.mark.parametrize("count", COUNTS)
def test_the_largest_of_each_block_travel_with_their_sign(count: int) -> None:
    values = heavy(count)
    data = TOPK.encode(values)
    assert len(data) == TOPK.encoded_bytes(count)
    decoded = TOPK.decode(data, count)
    sent = decoded.nonzero().flatten().tolist()
    assert set(sent) == largest(values)
    assert torch.equal(decoded[sent].sign(), values[sent].sign())


def test_the_two_sizes_are_the_best_of_all() -> None:
    values = heavy(BLOCK)
    decoded = TOPK.decode(TOPK.encode(values), BLOCK)
    kept = decoded.nonzero().flatten()
    sizes, _ = values[kept].abs().double().sort()

    def spread(part: torch.Tensor) -> float:
        return ((part - part.mean()) ** 2).sum().item() if part.numel() else 0.0

    best = min(spread(sizes[:cut]) + spread(sizes[cut:]) for cut in range(1, sizes.numel()))
    got = ((decoded[kept].abs().double() - values[kept].abs().double()) ** 2).sum().item()
    assert got <= best * 1.01 + 1e-5 * sizes.square().sum().item()  # sizes are rounded to bf16


@pytest.mark.parametrize(
    "values", [torch.zeros(5000), torch.ones(5000), torch.full((40,), 3.4e38), torch.full((40,), 1e-45)]
)
def test_blocks_of_equal_tiny_or_huge_values_survive(values: torch.Tensor) -> None:
    decoded = TOPK.decode(TOPK.encode(values), values.numel())
    assert torch.isfinite(decoded).all()
    sent = decoded != 0
    assert torch.allclose(decoded[sent], values[sent], rtol=2**-8)


# ---- averages --------------------------------------------------------------------------------------------------------


def mean_of_senders(parts: list[torch.Tensor], weights: list[int]) -> list[float]:
    result = []
    for numbers in zip(*(part.tolist() for part in parts), strict=True):
        sent = [(number, weight) for number, weight in zip(numbers, weights, strict=True) if number != 0]
        below = sum(weight for _, weight in sent) if len(sent) > 1 else sum(weights)
        result.append(sum(number * weight for number, weight in sent) / below)
    return result


@pytest.mark.parametrize("count", [33, 4096, 4096 * 2 + 100])
@pytest.mark.parametrize("members", [1, 2, 5])
def test_each_place_is_the_mean_of_those_who_sent_it(count: int, members: int) -> None:
    common = heavy(count, 99)
    weights = [100 * (i + 1) for i in range(members)]
    parts = [TOPK.encode(common + 0.3 * heavy(count, i)) for i in range(members)]
    data = mean_of(parts, weights, count)
    assert len(data) <= AVERAGE.encoded_bytes(count)
    got = AVERAGE.decode(data, count).double()
    wanted = torch.tensor(mean_of_senders([TOPK.decode(part, count) for part in parts], weights), dtype=torch.float64)
    sent = wanted != 0
    assert not got[~sent].any()
    assert (got - wanted).abs().max() <= wanted.abs().max() / 7 * 0.53


def test_what_one_member_alone_sent_is_shrunk_to_its_share() -> None:
    one, other = torch.zeros(64), torch.zeros(64)
    one[3], other[9], one[20], other[20] = 4.0, 1.0, 2.0, 2.0
    mean = AVERAGE.decode(mean_of([TOPK.encode(one), TOPK.encode(other)], [1, 3], 64), 64)
    assert torch.allclose(mean[[3, 9, 20]], torch.tensor([1.0, 0.75, 2.0]), atol=0.15)


def test_sixty_four_members_that_send_other_places_stay_within_the_bound() -> None:
    parts = [TOPK.encode(heavy(65536, seed)) for seed in range(64)]
    data = mean_of(parts, [1] * 64, 65536)
    assert AVERAGE.encoded_bytes(65536) * 0.85 < len(data) <= AVERAGE.encoded_bytes(65536)
    assert torch.isfinite(AVERAGE.decode(data, 65536)).all()


# ---- hostile bytes ---------------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(st.sampled_from([1, 33, 200, 4097]), st.booleans(), st.data())
def test_changed_bytes_come_to_finite_values_or_a_format_error(count: int, average: bool, data: Any) -> None:
    part = TOPK.encode(heavy(count))
    raw = bytearray(mean_of([part, TOPK.encode(heavy(count, 1))], [1, 2], count) if average else part)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    decode = AVERAGE.decode if average else TOPK.decode
    try:
        values = decode(bytes(raw), count)
    except FormatError:
        return
    assert values.shape == (count,) and torch.isfinite(values).all()


@settings(max_examples=300)
@given(st.integers(0, 300), st.binary(max_size=200))
def test_random_bytes_come_to_finite_values_or_a_format_error(count: int, raw: bytes) -> None:
    for decode in (TOPK.decode, AVERAGE.decode):
        try:
            values = decode(raw, count)
        except FormatError:
            continue
        assert values.shape == (count,) and torch.isfinite(values).all()


@pytest.mark.parametrize("count", [-1, 0, 4095, 2**40])
@pytest.mark.parametrize("kept", [0, 128, 2**32 - 1])
def test_an_average_of_another_size_is_refused_before_anything_is_allocated(count: int, kept: int) -> None:
    part = TOPK.encode(heavy(4096))
    data = kept.to_bytes(4, "little") + mean_of([part], [1], 4096)[4:]
    tracemalloc.start()
    with pytest.raises(FormatError, match="expected"):
        AVERAGE.decode(data, count)
    with pytest.raises(FormatError, match="expected"):
        TOPK.decode(part, count)
    assert tracemalloc.get_traced_memory()[1] < 1 << 16
    tracemalloc.stop()
    assert len(data) < AVERAGE.encoded_bytes(4096)


def test_a_block_with_another_number_of_places_is_refused() -> None:
    values = torch.zeros(2 * BLOCK)
    values[: 2 * BLOCK : 64] = 1.0
    data = bytearray(TOPK.encode(values))
    places = np.sort(np.random.default_rng(0).choice(BLOCK, 256, replace=False))  # all in the first block
    data[: position_bytes(256, 2 * BLOCK)] = write_positions(places, 2 * BLOCK)
    with pytest.raises(FormatError, match="more or fewer"):
        TOPK.decode(bytes(data), 2 * BLOCK)


def test_sizes_in_the_wrong_order_and_spare_bits_are_refused() -> None:
    data = TOPK.encode(heavy(33))  # two places: a size pair, then four bits of a byte
    at = position_bytes(2, 33)
    swapped = data[:at] + data[at + 2 : at + 4] + data[at : at + 2] + data[at + 4 :]
    with pytest.raises(FormatError, match="smaller size"):
        TOPK.decode(swapped, 33)
    with pytest.raises(FormatError, match="bits set"):
        TOPK.decode(data[:-1] + bytes([data[-1] | 0x80]), 33)
