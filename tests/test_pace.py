"""Deadlines and shares: they follow from what was measured, and a slow line does not hold up the others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.net.pace import LEAST_SILENCE_S, Pace, Patience
from peer.round.shares import SHARE_CAP, shares


def upload_s(share: float, members: int, rate: float) -> float:
    """Seconds to upload one's part of an all-reduce of one unit."""
    return (1 + share * (members - 2)) / rate


rates = st.lists(st.floats(1.0, 100.0), min_size=3, max_size=12)


@given(rates)
def test_the_slowest_upload_is_never_slower_than_with_equal_shares(found: list[float]) -> None:
    lines = {f"peer{index}": rate for index, rate in enumerate(found)}
    given_ = shares(lines, set(lines))
    total, count = sum(given_.values()), len(lines)
    slowest = max(upload_s(given_[peer] / total, count, rate) for peer, rate in lines.items())
    equal = max(upload_s(1 / count, count, rate) for rate in lines.values())
    assert slowest <= equal * 1.01


@given(rates, st.sets(st.integers(0, 11)))
def test_who_cannot_be_reached_reduces_nothing_and_somebody_does(found: list[float], firewalled: set[int]) -> None:
    lines = {f"peer{index}": rate for index, rate in enumerate(found)}
    reducers = {peer for index, peer in enumerate(lines) if index not in firewalled} or {"peer0"}
    given_ = shares(lines, reducers)
    assert sum(given_.values()) > 0
    assert all(given_[peer] == 0 for peer in set(lines) - reducers)


def test_a_line_ten_times_as_slow_reduces_less_than_its_equal_share() -> None:
    given_ = shares({"a": 10e6, "b": 10e6, "c": 10e6, "slow": 1e6}, {"a", "b", "c", "slow"})
    assert given_["slow"] == 0 and given_["a"] == given_["b"] == given_["c"] > 0


def test_whoever_boasts_of_its_line_gets_no_more_than_the_cap() -> None:
    given_ = shares({"liar": 1e18, "a": 1e6, "b": 1e6, "c": 1e6}, {"liar", "a", "b", "c"})
    assert given_["liar"] / sum(given_.values()) <= SHARE_CAP / 4 + 0.01


def test_with_nothing_measured_all_reduce_the_same() -> None:
    assert shares({"a": 0.0, "b": 0.0, "c": 0.0}, {"a", "b"}) == {"a": 1, "b": 1, "c": 0}


def test_silence_is_judged_by_what_was_seen_and_doubles_after_a_failure() -> None:
    pace = Pace(Patience(silence_s=10.0))
    assert pace.silence_s == 10.0
    pace.went_well(longest_gap_s=0.1, seconds=1.0)
    assert pace.silence_s == LEAST_SILENCE_S
    pace.went_well(longest_gap_s=1.0, seconds=1.0)
    assert pace.silence_s == pytest.approx(5.0)
    pace.failed()
    assert pace.silence_s == 10.0
    pace.failed()
    assert pace.silence_s == 10.0, "never more than the limit"


def test_the_whole_may_take_as_long_as_its_bytes_need_until_it_has_been_measured() -> None:
    pace = Pace(Patience(total_s=100.0))
    assert pace.total_s(10**9) > 10**9 / 50_000
    pace.went_well(longest_gap_s=0.1, seconds=40.0)
    assert pace.total_s(10**9) == 200.0
