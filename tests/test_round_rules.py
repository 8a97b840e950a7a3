"""The rules of a round: promises, votes, locks, majorities. `test_swarm_simulation.py` plays them all together."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peer.round_rules import Ballot, BallotBox, Bound, Undecided, is_committed, must_complete

from protocol.errors import FormatError
from protocol.majority import has_majority

EVEN = {"a": 1, "b": 1, "c": 1}


def kept() -> tuple[BallotBox, list[bytes]]:
    """A box, and all that it has saved."""
    saved: list[bytes] = []
    return BallotBox(save=saved.append), saved


# ---- promises -----------------------------------------------------------------------------------------------------------


def test_a_later_attempt_is_promised_and_an_earlier_one_refused() -> None:
    box, _ = kept()
    box.promise(1, 3, "a")
    box.promise(1, 4, "b")
    with pytest.raises(Bound) as caught:
        box.promise(1, 3, "a")
    assert caught.value.attempt == 4


def test_one_attempt_is_promised_to_one_leader_and_again_to_the_same() -> None:
    box, _ = kept()
    box.promise(1, 0, "a")
    box.promise(1, 0, "a")
    with pytest.raises(Bound):
        box.promise(1, 0, "b")


def test_a_round_that_is_over_is_not_joined_again() -> None:
    box, _ = kept()
    box.promise(5, 0, "a")
    with pytest.raises(Bound, match="over"):
        box.promise(4, 9, "a")


def test_a_new_round_starts_with_no_votes_and_any_attempt() -> None:
    box, _ = kept()
    box.promise(1, 7, "a")
    box.vote(1, Ballot(7, "g", "s"))
    assert box.next_attempt(1) == 8 and box.next_attempt(2) == 0
    box.promise(2, 0, "b")
    assert box.ballots == []


def test_a_promise_is_saved_before_it_is_given() -> None:
    def full_disk(data: bytes) -> None:
        raise OSError("no space left on device")

    box = BallotBox(save=full_disk)
    with pytest.raises(OSError):
        box.promise(1, 0, "a")


# ---- votes --------------------------------------------------------------------------------------------------------------


def test_a_vote_in_another_attempt_than_the_one_promised_is_refused() -> None:
    box, _ = kept()
    box.promise(1, 2, "a")
    for round_, attempt in [(1, 1), (1, 3), (2, 2), (0, 2)]:
        with pytest.raises(Bound, match="given up"):
            box.vote(round_, Ballot(attempt, "g", "s"))
    assert box.ballots == []


def test_a_second_state_or_group_in_one_attempt_is_refused() -> None:
    box, _ = kept()
    box.promise(1, 0, "a")
    box.vote(1, Ballot(0, "g", "s"))
    for other in (Ballot(0, "g", "t"), Ballot(0, "h", "s")):
        with pytest.raises(Bound, match="another state"):
            box.vote(1, other)


def test_the_same_vote_twice_is_one_vote() -> None:
    box, saved = kept()
    box.promise(1, 0, "a")
    box.vote(1, Ballot(0, "g", "s"))
    count = len(saved)
    box.vote(1, Ballot(0, "g", "s"))
    assert box.ballots == [Ballot(0, "g", "s")] and len(saved) == count


def test_after_a_crash_promises_and_votes_still_bind() -> None:
    box, saved = kept()
    box.promise(3, 2, "a")
    box.vote(3, Ballot(2, "g", "s"))
    box.promise(3, 5, "b")
    again = BallotBox()
    again.restore(saved[-1])
    assert (again.round, again.attempt, again.leader, again.ballots) == (3, 5, "b", [Ballot(2, "g", "s")])
    with pytest.raises(Bound):
        again.promise(3, 4, "c")
    with pytest.raises(Bound):
        again.vote(3, Ballot(2, "g", "t"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b'{"round":1,"attempt":0,"leader":"a"}',
        b'{"round":"x","attempt":0,"leader":"a","ballots":[]}',
        b'{"round":1,"attempt":0,"leader":"a","ballots":[[1,2]]}',
        b'{"round":1,"attempt":0,"leader":"a","ballots":7}',
    ],
)
def test_a_damaged_box_is_refused_and_not_taken_for_an_empty_one(data: bytes) -> None:
    with pytest.raises(FormatError):
        BallotBox().restore(data)


# ---- majorities ---------------------------------------------------------------------------------------------------------


def test_a_majority_is_more_than_half_of_the_weight_and_not_of_the_heads() -> None:
    assert has_majority({"a"}, {"a": 3, "b": 1, "c": 1})
    assert not has_majority({"b", "c"}, {"a": 3, "b": 1, "c": 1})
    assert not has_majority({"stranger"}, EVEN)


def test_an_even_split_goes_to_exactly_one_side() -> None:
    of = {"a": 2, "b": 1, "c": 1}
    assert has_majority({"a"}, of) != has_majority({"b", "c"}, of)


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 5), min_size=1), st.sets(st.sampled_from("abcdef")))
def test_of_two_sides_exactly_one_has_the_majority(of: dict[str, int], side: set[str]) -> None:
    assert has_majority(side, of) != has_majority(set(of) - side, of)


def test_before_the_first_agreement_everyone_has_a_majority() -> None:
    assert has_majority(set(), {}) and has_majority({"a"}, {})


def test_a_state_is_committed_by_a_majority_of_the_acceptors_and_of_the_group() -> None:
    acceptors, group = {"a": 1, "b": 1, "c": 1}, {"b": 1, "c": 1, "d": 9}
    assert not is_committed({"b", "c"}, acceptors, group)
    assert not is_committed({"c", "d"}, acceptors, group)
    assert is_committed({"b", "c", "d"}, acceptors, group)


# ---- locks --------------------------------------------------------------------------------------------------------------

S, T = Ballot(0, "g", "s"), Ballot(0, "g", "t")


def test_without_votes_a_new_group_may_average() -> None:
    assert must_complete({"a": [], "b": []}, EVEN, {}) is None


def test_a_state_that_a_silent_member_may_have_committed_is_completed() -> None:
    assert must_complete({"a": [S], "b": []}, EVEN, {"g": EVEN}) == S


def test_a_state_that_cannot_have_been_committed_is_dropped() -> None:
    assert must_complete({"a": [S], "b": [], "c": []}, EVEN, {"g": EVEN}) is None


def test_two_states_of_one_attempt_lock_only_when_one_may_have_its_majority() -> None:
    five = dict.fromkeys("abcde", 1)
    assert must_complete({"a": [S], "b": [S], "c": [T], "d": []}, five, {"g": five}) == S
    assert must_complete({"a": [S], "b": [T], "c": [], "d": []}, five, {"g": five}) is None


def test_between_two_states_that_silent_members_may_have_committed_nobody_chooses() -> None:
    five = dict.fromkeys("abcde", 1)
    with pytest.raises(Undecided):
        must_complete({"a": [S], "b": [T], "c": []}, five, {"g": five})
    assert must_complete({"a": [S], "b": [T], "c": [], "d": [S]}, five, {"g": five}) == S


def test_the_votes_of_several_attempts_at_one_state_count_together() -> None:
    """a completed S in attempt 2 alone; that it and c had voted for it in attempt 0 still binds."""
    five = dict.fromkeys("abcde", 1)
    later = Ballot(2, "g", "s")
    answers = {"a": [later], "c": [S], "d": [], "e": []}
    assert must_complete(answers, five, {"g": five}) == later


def test_silent_acceptors_that_were_not_in_the_group_cannot_have_voted_for_it() -> None:
    acceptors = dict.fromkeys("abcde", 1)
    group = dict.fromkeys("abc", 1)
    answers: Mapping[str, list[Ballot]] = {"a": [S], "b": [], "c": []}
    assert must_complete(answers, acceptors, {"g": group}) is None


def test_of_two_possible_states_the_one_voted_for_last_is_completed() -> None:
    five = dict.fromkeys("abcde", 1)
    later = Ballot(3, "h", "t")
    answers = {"a": [S, later], "b": [S], "c": [later]}
    assert must_complete(answers, five, {"g": five, "h": five}) == later
