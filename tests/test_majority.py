"""Majorities of weight."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocol.majority import has_majority


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 100), min_size=1), st.data())
def test_two_camps_never_both_hold_a_majority(of: dict[str, int], data: st.DataObject) -> None:
    camp = {peer for peer in of if data.draw(st.booleans())}
    assert has_majority(camp, of) != has_majority(set(of) - camp, of)


def test_votes_of_outsiders_do_not_count() -> None:
    assert not has_majority({"x", "y"}, {"a": 1, "b": 1, "c": 1})
    assert has_majority({"a", "b", "x"}, {"a": 1, "b": 1, "c": 1})
