"""One member cannot ruin an average: each part's length is bounded by the group's, exactly, for every codec."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.presets import NEW
from lab.poisoned_rounds import ATTACKS, LARGEST, Community
from peer.training.aggregate import ClippedMean, Mean, length, usual_length, weighted_mean
from peer.training.codecs.codec import average_codec, codec
from peer.training.reduce import average_chunk
from peer.training.robust import aggregator
from protocol.errors import FormatError

CLIP = NEW["sync"]["clip"]
WIRES = ("fp32", "fp16", "int8", "int4", "int2", "topk")
COUNT = 8192 + 100  # two blocks of topk's, and an odd rest


def values(seed: int, count: int = COUNT, size: float = 2.0**-10) -> torch.Tensor:
    """Whole multiples of a power of two from a hash: the same on every machine, whoever's random numbers change."""
    raw = np.frombuffer(hashlib.shake_256(bytes([seed])).digest(2 * count), dtype="<i2")
    return torch.from_numpy(raw.astype(np.float32)) * (size * 2.0**-15)


def decoded(wire: str, parts: list[torch.Tensor]) -> list[torch.Tensor]:
    coder = codec(wire)
    return [coder.decode(coder.encode(part), part.numel()) for part in parts]


def averaged(wire: str, parts: list[torch.Tensor], weights: list[int], clip: float = CLIP) -> torch.Tensor:
    """As every member reads it."""
    coder, count = codec(wire), parts[0].numel()
    data = average_chunk(wire, aggregator(clip), [coder.encode(part) for part in parts], weights, count)
    return average_codec(wire).decode(data, count)


# ---- the length of a part --------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4097), st.integers(0, 255), st.floats(1e-37, 1e30), st.integers(0, 999))
def test_a_length_is_the_norm_and_does_not_hang_on_the_order(count: int, seed: int, size: float, shift: int) -> None:
    part = values(seed, count, size)
    expected = part.double().norm().item()
    assert length(part) == pytest.approx(expected, rel=1e-3)
    assert length(part) == length(part.flip(0)) == length(part.roll(shift)) == length(-part)
    assert length(part.view(1, -1)[:, ::2].flatten()) <= length(part) * (1 + 1e-3)


@pytest.mark.parametrize("fill", [3.4e38, LARGEST, 1e-30, 1e-44])
def test_lengths_of_huge_and_of_denormal_values_are_right(fill: float) -> None:
    part = torch.full((65536,), fill)
    assert length(part) == pytest.approx(256 * part[0].item(), rel=1e-3)


def test_a_length_is_exactly_what_integers_come_to() -> None:
    part = values(7, 65536)
    peak = part.abs().max().item()
    shift = 18 - math.frexp(peak)[1]  # 18 bits: 65536 squares of 36 bits are 52 bits
    whole = sum(round(value * 2.0**shift) ** 2 for value in part.tolist())
    assert length(part) == math.sqrt(whole) * 2.0**-shift


# ---- the usual length ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lengths", "weights", "expected"),
    [
        ([7.0], [5], 7.0),
        ([9.0, 2.0], [1, 1], 2.0),  # the lower of two
        ([9.0, 2.0], [100, 1], 2.0),  # however much weight the longer one has
        ([1.0, 2.0, 50.0], [1, 1, 1], 2.0),
        ([50.0, 2.0, 1.0], [1, 1, 1], 2.0),
        ([1.0, 2.0, 3.0, 50.0], [1, 1, 1, 1], 2.0),
        ([4.0, 2.0, 1.0], [4, 2, 1], 2.0),  # who works more has more to say
        ([4.0, 2.0, 1.0, 1.0], [4, 2, 1, 1], 2.0),
        ([1e9, 1e9, 1e9, 1e9, 1e9, 1.0, 1.0, 1.0], [1, 1, 1, 1, 1, 9, 9, 9], 1.0),  # many identities with little work
        ([1e-9, 1e-9, 1e-9, 1e-9, 1e-9, 1.0, 1.0, 1.0], [1, 1, 1, 1, 1, 9, 9, 9], 1.0),
        ([0.0, 0.0, 0.0, 3.0, 5.0], [1, 1, 1, 1, 1], 3.0),  # zeros say nothing
        ([0.0, 6.0], [1, 1], 6.0),
        ([0.0, 0.0], [1, 1], 0.0),
    ],
)
def test_the_usual_length_is_a_lower_median_by_weight(
    lengths: list[float], weights: list[int], expected: float
) -> None:
    assert usual_length(lengths, weights) == expected
    backwards = usual_length(lengths[::-1], weights[::-1])
    assert backwards == expected, "in whatever order the members stand in the group"


# ---- the average of a chunk ------------------------------------------------------------------------------------------

DIGESTS = {  # of the bytes that a reducer sends for POISONED by WEIGHTS: the same on every machine
    "fp32": "e3d6cbb91bb7de4e",
    "fp16": "03d5f5ae87695f4b",
    "int8": "cb03637717c2554d",
    "int4": "442121cf500a3ea7",
    "int2": "70ea50724f5f4378",
    "topk": "3d202eaf6cf27db0",
}
WEIGHTS = [3, 1, 2, 5, 4]


def poisoned() -> list[torch.Tensor]:
    """Five members' parts, the second far too long, the fourth and half of the fifth zero."""
    parts = [values(seed) for seed in range(5)]
    parts[1] *= -(2.0**40)
    parts[3].zero_()
    parts[4][: COUNT // 2] = 0
    return parts


@pytest.mark.parametrize("wire", WIRES)
def test_a_reducers_bytes_are_the_stored_ones(wire: str) -> None:
    coder = codec(wire)
    encoded = [coder.encode(part) for part in poisoned()]
    data = average_chunk(wire, aggregator(CLIP), encoded, WEIGHTS, COUNT)
    assert hashlib.sha256(data).hexdigest()[:16] == DIGESTS[wire]


@pytest.mark.parametrize("wire", WIRES)
def test_a_part_that_is_too_long_is_made_as_long_as_allowed_and_no_other_is_touched(wire: str) -> None:
    before, parts = decoded(wire, poisoned()), decoded(wire, poisoned())
    ClippedMean(CLIP).average(parts, WEIGHTS, sparse=codec(wire).sparse)
    lengths = [length(part) for part in before]
    limit = CLIP * usual_length(lengths, WEIGHTS)
    assert max(lengths[0], *lengths[2:]) <= limit < lengths[1]
    assert length(parts[1]) == pytest.approx(limit, rel=2e-3)
    assert all(torch.equal(parts[i], before[i]) for i in (0, 2, 3, 4))


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("fill", [3.38e38, -LARGEST, 1e19, 1e-44])
def test_what_one_of_four_sends_moves_the_average_by_so_much_and_is_finite(wire: str, fill: float) -> None:
    honest = [values(seed) for seed in range(3)]
    weights = [1, 1, 1, 1]
    longest = CLIP * max(length(part) for part in decoded(wire, honest))
    for bad in (torch.full((COUNT,), fill), torch.zeros(COUNT).index_fill_(0, torch.tensor([5]), fill)):
        mean = averaged(wire, [*honest, bad], weights)
        assert torch.isfinite(mean).all()
        quiet = averaged(wire, [*honest, torch.zeros(COUNT)], weights)
        assert length(mean - quiet) <= longest * (1.2 if codec(wire).sparse else 0.35), (
            "a quarter, and what encoding loses"
        )


@pytest.mark.parametrize("members", range(2, 24))
def test_even_a_group_of_nothing_but_the_largest_values_has_a_finite_average(members: int) -> None:
    """Shares of all weight, rounded, may come to more than one."""
    parts = [torch.full((8,), torch.finfo(torch.float32).max) for _ in range(members)]
    assert torch.isfinite(averaged("fp32", parts, [1] * members)).all()


@pytest.mark.parametrize("wire", WIRES)
def test_who_is_alone_and_those_who_are_alike_get_the_plain_mean(wire: str) -> None:
    assert torch.equal(averaged(wire, [values(1)], [7]), averaged(wire, [values(1)], [7], clip=0.0))
    three = [values(1), values(2), values(3)]
    assert torch.equal(averaged(wire, three, [4, 2, 1]), averaged(wire, three, [4, 2, 1], clip=0.0))
    zeros = [torch.zeros(COUNT), torch.zeros(COUNT)]
    assert not averaged(wire, zeros, [1, 1]).any()


def test_of_two_the_longer_one_is_shortened_however_much_weight_it_has() -> None:
    mean = averaged("fp32", [values(1), values(1) * 1024], [1, 1023])
    assert length(mean) == pytest.approx(length(values(1)) * (1 + CLIP * 1023) / 1024, rel=1e-3)


def test_what_only_some_have_of_a_chunk_is_not_thrown_away() -> None:
    """Most members trained on no text that has these words."""
    parts = [torch.zeros(COUNT), values(1), torch.zeros(COUNT), torch.zeros(COUNT)]
    assert torch.equal(averaged("fp32", parts, [1, 1, 1, 1]), values(1) / 4)


def test_the_quick_look_never_changes_an_average() -> None:
    """Around the limit exact lengths decide, with whatever kernels sums of squares are made."""

    def exact(parts: list[torch.Tensor], weights: list[int]) -> torch.Tensor:
        lengths = [length(part) for part in parts]
        limit = CLIP * usual_length(lengths, weights)
        factors = [limit / own if own > limit else 1.0 for own in lengths]
        return weighted_mean([part * factor for part, factor in zip(parts, factors, strict=True)], weights)

    for near in (0.9, 0.99, 0.999, 0.99999, 1.0, 1.00001, 1.001, 1.01, 1.1):
        parts = [values(1), values(1), values(1) * CLIP * near]
        quick = ClippedMean(CLIP).average([part.clone() for part in parts], [1, 1, 1])
        assert torch.equal(quick, exact(parts, [1, 1, 1]))


def test_a_run_without_the_number_averages_as_it_always_did() -> None:
    assert type(aggregator(0.0)) is Mean and type(aggregator(CLIP)) is ClippedMean
    assert averaged("fp32", [values(1), values(1) * 1024], [1, 1], clip=0.0).equal(values(1) * 512.5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("wire", ["fp32", "fp16"])
def test_values_that_are_not_finite_are_refused_before_they_are_averaged(wire: str, bad: float) -> None:
    part = torch.full((COUNT,), bad)
    data = part.numpy().tobytes() if wire == "fp32" else part.to(torch.float16).numpy().tobytes()
    with pytest.raises(FormatError, match="not finite"):
        average_chunk(wire, aggregator(CLIP), [codec(wire).encode(values(1)), data], [1, 1], COUNT)


# ---- a whole run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", ["int2", *(pytest.param(wire, marks=pytest.mark.slow) for wire in ("int4", "topk"))])
def test_one_of_seven_that_attacks_costs_less_than_a_tenth_of_the_loss(seven: Community, wire: str) -> None:
    clean = seven.train(rounds=6, wire=wire, clip=CLIP)
    for attack in ("negated x10", "noise x10"):
        assert seven.train(rounds=6, wire=wire, clip=CLIP, attack=ATTACKS[attack]) < 1.1 * clean, attack
