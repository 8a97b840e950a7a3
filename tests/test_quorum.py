"""When votes commit a state, and which an attempt must complete. `test_simulation.py` plays all rules together."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from peer.round.box import Ballot
from peer.round.quorum import Undecided, is_committed, locked, must_complete
from protocol.errors import RoundAborted
from protocol.majority import has_majority

EVEN = {"a": 1, "b": 1, "c": 1}
FIVE = dict.fromkeys("abcde", 1)
S, T = Ballot(0, "g", "s"), Ballot(0, "g", "t")


# ---- majorities -----------------------------------------------------------------------------------------------------


def test_a_majority_is_more_than_half_of_the_weight_and_not_of_the_heads() -> None:
    assert has_majority({"a"}, {"a": 3, "b": 1, "c": 1})
    assert not has_majority({"b", "c"}, {"a": 3, "b": 1, "c": 1})


def test_a_state_is_committed_by_a_majority_of_the_acceptors_and_of_the_group() -> None:
    acceptors, group = {"a": 1, "b": 1, "c": 1}, {"b": 1, "c": 1, "d": 9}
    assert not is_committed({"b", "c"}, acceptors, group, completes=False)
    assert not is_committed({"c", "d"}, acceptors, group, completes=False)
    assert is_committed({"b", "c", "d"}, acceptors, group, completes=False)


def test_where_an_earlier_average_is_completed_the_acceptors_decide_alone() -> None:
    assert is_committed({"b", "c"}, EVEN, {"b": 1, "c": 1, "d": 9}, completes=True)
    assert not is_committed({"c", "d"}, EVEN, {"c": 1, "d": 9}, completes=True)


# ---- locks ----------------------------------------------------------------------------------------------------------


def test_without_votes_a_new_group_may_average() -> None:
    assert must_complete({"a": [], "b": []}, EVEN, {}) is None


def test_a_state_that_a_silent_member_may_have_committed_is_completed() -> None:
    assert must_complete({"a": [S], "b": []}, EVEN, {"g": EVEN}) == S


def test_a_state_that_cannot_have_been_committed_is_dropped() -> None:
    assert must_complete({"a": [S], "b": [], "c": []}, EVEN, {"g": EVEN}) is None


def test_two_states_of_one_attempt_lock_only_when_one_may_have_its_majority() -> None:
    assert must_complete({"a": [S], "b": [S], "c": [T], "d": []}, FIVE, {"g": FIVE}) == S
    assert must_complete({"a": [S], "b": [T], "c": [], "d": []}, FIVE, {"g": FIVE}) is None


def test_between_two_states_that_silent_members_may_have_committed_nobody_chooses() -> None:
    with pytest.raises(Undecided):
        must_complete({"a": [S], "b": [T], "c": []}, FIVE, {"g": FIVE})
    assert must_complete({"a": [S], "b": [T], "c": [], "d": [S]}, FIVE, {"g": FIVE}) == S


def test_the_votes_of_several_attempts_at_one_state_count_together() -> None:
    """a completed S in attempt 2 alone; that it and c had voted for it in attempt 0 still binds."""
    later = Ballot(2, "g", "s", True)
    assert must_complete({"a": [later], "c": [S], "d": [], "e": []}, FIVE, {"g": FIVE}) == later


def test_silent_acceptors_that_were_not_in_the_group_cannot_have_voted_for_it() -> None:
    group = dict.fromkeys("abc", 1)
    answers: Mapping[str, list[Ballot]] = {"a": [S], "b": [], "c": []}
    assert must_complete(answers, FIVE, {"g": group}) is None


def test_where_a_state_was_being_completed_silent_acceptors_outside_of_the_group_may_have_voted_for_it() -> None:
    """a completes what the group b, c has averaged, b heard it and c is silent; d and e may have been asked, too."""
    later = Ballot(1, "g", "s", True)
    answers: Mapping[str, list[Ballot]] = {"a": [later], "b": [later], "d": []}
    assert must_complete(answers, FIVE, {"g": {"b": 1, "c": 1}}) == later


def test_of_two_possible_states_the_one_voted_for_last_is_completed() -> None:
    later = Ballot(3, "h", "t")
    answers = {"a": [S, later], "b": [S], "c": [later]}
    assert must_complete(answers, FIVE, {"g": FIVE, "h": FIVE}) == later


def test_who_left_before_a_group_did_not_vote_for_it_and_who_is_in_it_may_have() -> None:
    answers = {"a": [S], "b": []}
    assert locked(answers, EVEN, {"g": EVEN}) == S
    assert locked(answers, EVEN, {"g": EVEN}, left={"c"}) is None
    assert locked(answers, EVEN, {"g": EVEN}, left={"c"}, carried={"c"}) == S


def test_a_minority_of_the_acceptors_makes_no_group() -> None:
    with pytest.raises(RoundAborted, match="only 1"):
        locked({"a": []}, EVEN, {})
