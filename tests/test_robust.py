"""Trimmed and centered averages: exact, the same with any number of threads, and not to be pulled by a minority."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.run_config import RunConfig
from lab.poisoned_rounds import ATTACKS, Community
from peer.training.aggregate import Mean, length, senders_mean, weighted_mean
from peer.training.codecs.codec import average_codec, codec
from peer.training.reduce import average_chunk
from peer.training.robust import CenteredClip, Kind, TrimmedMean, aggregator
from protocol.errors import FormatError
from protocol.run_spec import Sync
from tests.test_clipping import COUNT, LARGEST, WIRES, values

CLIP = 1.0
ROBUST = (TrimmedMean(), CenteredClip(CLIP))
NUMBERS = st.floats(-1e3, 1e3, width=32).map(lambda number: number + 0.0)  # no -0


def trimmed(numbers: Sequence[float], weights: Sequence[int]) -> Fraction:
    """By the definition, a token at a time."""
    tokens = sorted(number for number, weight in zip(numbers, weights, strict=True) for _ in range(weight))
    away = len(tokens) // 3
    middle = tokens[away : len(tokens) - away]
    return sum(map(Fraction, middle), Fraction(0)) / len(middle)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(NUMBERS, st.integers(1, 9)), min_size=1, max_size=9))
def test_a_trimmed_mean_is_that_of_the_middle_third_of_all_tokens(members: list[tuple[float, int]]) -> None:
    numbers, weights = zip(*members, strict=True)
    found = TrimmedMean().average([torch.tensor([number]) for number in numbers], weights)
    assert found.item() == pytest.approx(float(trimmed(numbers, weights)), rel=1e-5, abs=1e-3)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(NUMBERS, st.integers(3, 9)), min_size=3, max_size=8),
    st.floats(-(2.0**127), 2.0**127, width=32),
)
def test_whoever_has_less_than_a_third_moves_no_value_beyond_the_others(
    members: list[tuple[float, int]], bad: float
) -> None:
    numbers, weights = zip(*members, strict=True)
    own = max(1, (sum(weights) - 2) // 2)
    assert 3 * own < sum(weights) + own
    found = TrimmedMean().average([torch.tensor([number]) for number in (*numbers, bad)], [*weights, own]).item()
    slack = 1e-3 + 1e-5 * max(map(abs, numbers))
    assert min(numbers) - slack <= found <= max(numbers) + slack


@pytest.mark.parametrize("how", ROBUST)
def test_equal_parts_stay_what_they_are_and_two_alike_are_a_mean(how: TrimmedMean | CenteredClip) -> None:
    assert torch.allclose(how.average([values(1)] * 5, [3, 1, 4, 1, 5]), values(1), rtol=1e-6)
    pair = [values(1), values(1).flip(0)]
    assert torch.allclose(how.average([part.clone() for part in pair], [5, 5]), weighted_mean(pair, [5, 5]), atol=1e-9)
    assert torch.equal(how.average([values(3)], [7]), values(3))


@pytest.mark.parametrize("how", ROBUST)
def test_the_bits_do_not_hang_on_threads_nor_on_where_a_stretch_begins(how: TrimmedMean | CenteredClip) -> None:
    count, weights = 65_536, [2**40 + seed for seed in range(7)]

    def average() -> torch.Tensor:
        return how.average([values(seed, count) for seed in range(7)], weights)

    threads = torch.get_num_threads()
    try:
        found = []
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(average())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, found[0]) for one in found)
    if isinstance(how, TrimmedMean):
        short = how.average([values(seed, count)[8000:9000].clone() for seed in range(7)], weights)
        assert torch.equal(short, found[0][8000:9000])


def test_what_was_not_sent_has_no_say_and_a_lone_value_is_shrunk() -> None:
    parts = [torch.tensor([0.0, 0.0, 3.0]), torch.tensor([0.0, 2.0, 4.0]), torch.tensor([6.0, 0.0, 0.0])]
    weights = [1, 1, 2]
    expected = senders_mean([part.clone() for part in parts], weights)
    found = TrimmedMean().average([part.clone() for part in parts], weights, sparse=True)
    assert torch.allclose(found, expected)
    dense = TrimmedMean().average(parts, weights)
    assert not torch.allclose(dense, expected)


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("kind", ["trimmed", "centered"])
@pytest.mark.parametrize("fill", [3.38e38, -LARGEST, 1e19, 1e-44])
def test_what_one_of_five_sends_hardly_moves_the_average_in_any_codec(wire: str, kind: Kind, fill: float) -> None:
    coder, honest = codec(wire), [values(seed) for seed in range(4)]

    def averaged(parts: list[torch.Tensor]) -> torch.Tensor:
        encoded = [coder.encode(part) for part in parts]
        data = average_chunk(wire, aggregator(CLIP, kind), encoded, [1] * len(parts), COUNT)
        return average_codec(wire).decode(data, COUNT)

    decoded = [coder.decode(coder.encode(part), COUNT) for part in honest]
    longest = max(map(length, decoded))
    for bad in (torch.full((COUNT,), fill), torch.zeros(COUNT).index_fill_(0, torch.tensor([5]), fill)):
        found = averaged([*honest, bad])
        assert torch.isfinite(found).all()
        assert length(found - averaged(honest)) <= longest


@pytest.mark.parametrize("how", ROBUST)
def test_wrong_weights_are_refused(how: TrimmedMean | CenteredClip) -> None:
    for weights in ([], [1], [1, 0], [1, True]):
        with pytest.raises(FormatError, match="weight"):
            how.average([values(1), values(2)], weights)


@pytest.mark.parametrize(
    ("sync", "host", "credit", "said"),
    [
        ({}, {}, {}, ["mean, clip 2"]),
        ({"aggregate": "trimmed"}, {}, {}, ["trimmed, clip 2", "of fewer than 4 members none is in the middle"]),
        ({"aggregate": "centered", "clip": 1, "min_peers": 4}, {}, {}, ["centered, clip 1"]),
        ({}, {"open": True}, {}, ["mean, clip 2", "so that a ban voids none"]),
        ({"clip": 0}, {"open": True}, {"hold_rounds": 9}, ["mean, no clip"]),
    ],
)
def test_a_host_hears_how_updates_are_averaged_before_it_is_chosen_for_good(
    sync: dict[str, object], host: dict[str, object], credit: dict[str, object], said: list[str]
) -> None:
    config = RunConfig.model_validate(
        {
            "run": {"name": "wood"},
            "model": {"path": "model", "license": "MIT"},
            "data": {"path": "data.txt", "license": "MIT"},
            "sync": {"round_tokens": 1, **sync},
            "host": host,
            "credit": credit,
        }
    )
    assert len(config.advice) == len(said)
    assert all(part in line for part, line in zip(said, config.advice, strict=True))


def test_the_spec_names_it_and_old_specs_are_what_they_were() -> None:
    plain = Sync(round_tokens=1)
    assert "aggregate" not in plain.model_dump(mode="json") and type(aggregator(plain.clip, plain.aggregate)) is Mean
    assert Sync(round_tokens=1, aggregate="trimmed").model_dump(mode="json")["aggregate"] == "trimmed"
    for wire, kind in (("int4", "centered"), ("topk", "trimmed")):
        with pytest.raises(ValueError, match=f"{kind} with wire {wire} needs clip"):
            Sync(round_tokens=1, wire=wire, aggregate=kind)


@pytest.mark.parametrize("kind", ["trimmed", "centered"])
def test_two_of_seven_that_attack_cost_less_than_a_tenth_of_the_loss(seven: Community, kind: Kind) -> None:
    clean = seven.train(rounds=4, wire="int4", clip=CLIP, how=kind)
    plain = seven.train(rounds=4, wire="int4", clip=0.0, attack=ATTACKS["negated x10"], hostile=2)
    found = seven.train(
        rounds=4,
        wire="int4",
        clip=CLIP,
        how=kind,
        attack=ATTACKS["negated x10"],
        hostile=2,
    )
    assert found < 1.1 * clean < plain
