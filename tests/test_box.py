"""The box: what one member may promise and vote, whatever it is asked. `test_simulation.py` plays many of them."""

from __future__ import annotations

import pytest

from peer.net import box_bytes
from peer.net.opening import Opening
from peer.round.box import AlreadyPromised, Ballot, Box
from peer.round.group import Group
from protocol.errors import FormatError
from protocol.keys import PeerIdentity
from protocol.signed import Signed
from protocol.statements import Farewell
from tests.core_kit import signed

GROUP = Group(1, "0" * 64, 0, "a", ())
S, T = "5" * 64, "7" * 64


def ballot(attempt: int, group: str = "g", state: str = S) -> Ballot:
    return Ballot(attempt, group, state)


def farewell(round: int = 1, attempt: int = 0) -> Signed[Farewell]:
    return signed("me", Farewell(run="f" * 64, round=round, successor="b", attempt=attempt))


# ---- promises -------------------------------------------------------------------------------------------------------


def test_a_later_attempt_is_promised_and_an_earlier_one_refused() -> None:
    box = Box().promise(1, 3, "a").promise(1, 4, "b")
    with pytest.raises(AlreadyPromised) as caught:
        box.promise(1, 3, "a")
    assert caught.value.attempt == 4


def test_one_attempt_is_promised_to_one_leader_and_again_to_the_same() -> None:
    box = Box().promise(1, 0, "a")
    assert box.promise(1, 0, "a") == box
    with pytest.raises(AlreadyPromised):
        box.promise(1, 0, "b")


def test_a_round_that_is_over_is_not_joined_again() -> None:
    with pytest.raises(AlreadyPromised, match="over"):
        Box().promise(5, 0, "a").promise(4, 9, "a")


def test_a_new_round_starts_with_no_votes_and_any_attempt() -> None:
    box = Box().promise(1, 7, "a").vote(1, ballot(7), GROUP)
    assert box.next_attempt(1) == 8 and box.next_attempt(2) == 0
    assert box.promise(2, 0, "b").ballots == () and box.voted(2) is None


# ---- votes ----------------------------------------------------------------------------------------------------------


def test_a_vote_in_another_attempt_than_the_one_promised_is_refused() -> None:
    box = Box().promise(1, 2, "a")
    for round, attempt in [(1, 1), (1, 3), (2, 2), (0, 2)]:
        with pytest.raises(AlreadyPromised, match="given up"):
            box.vote(round, ballot(attempt), GROUP)


def test_a_second_state_or_group_in_one_attempt_is_refused_and_the_same_vote_twice_is_one() -> None:
    box = Box().promise(1, 0, "a").vote(1, ballot(0), GROUP)
    for other in (ballot(0, state=T), ballot(0, group="h")):
        with pytest.raises(AlreadyPromised, match="another state"):
            box.vote(1, other, GROUP)
    assert box.vote(1, ballot(0), GROUP) is box


def test_votes_for_one_state_are_kept_and_those_for_an_earlier_one_are_over() -> None:
    box = Box().promise(1, 0, "a").vote(1, ballot(0), GROUP)
    again = box.promise(1, 1, "b").vote(1, ballot(1), GROUP)
    assert again.ballots == (ballot(0), ballot(1)) and again.voted(1) == ballot(1)
    assert again.promise(1, 2, "b").vote(1, ballot(2, "h", T), GROUP).ballots == (ballot(2, "h", T),)


# ---- farewells ------------------------------------------------------------------------------------------------------


def test_who_has_voted_or_said_farewell_says_none_any_more() -> None:
    for box in (Box().promise(1, 0, "a").vote(1, ballot(0), GROUP), Box().say_farewell(farewell()), Box(2)):
        with pytest.raises(AlreadyPromised):
            box.say_farewell(farewell(attempt=1))


def test_after_a_farewell_there_is_no_vote_in_the_attempts_before_it() -> None:
    box = Box().promise(1, 3, "a").say_farewell(farewell(attempt=4))
    with pytest.raises(AlreadyPromised, match="handed its weight over"):
        box.vote(1, ballot(3), GROUP)
    assert box.promise(1, 4, "a").vote(1, ballot(4), GROUP).ballots


def test_a_farewell_is_kept_as_long_as_its_round_is_not_over() -> None:
    box = Box().say_farewell(farewell(2))
    assert 2 in box.promise(2, 0, "a").farewells and not box.promise(3, 0, "a").farewells


def test_in_a_new_epoch_nothing_is_left() -> None:
    box = Box().promise(1, 2, "a").vote(1, ballot(2), GROUP).say_farewell(farewell(2))
    assert box.in_epoch(0, 1) is box and box.in_epoch(1, 1) == Box(1, epoch=1)


def test_what_is_of_another_epoch_is_over_once_its_round_is() -> None:
    box = Box(7, 3, "a", epoch=1)
    assert box.standing_on(1, 6) is box.standing_on(0, 6) is box
    assert box.standing_on(2, 5) == Box(epoch=2), "a later epoch may have fewer rounds"
    assert box.standing_on(0, 7) == Box(epoch=0), "and an earlier one may go past it"


# ---- the disk -------------------------------------------------------------------------------------------------------


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
        box_bytes.from_bytes(data, Opening("f" * 64, PeerIdentity.generate().private_key.public_key()))


def test_promises_and_votes_come_back_from_the_disk_and_without_their_group_as_forgotten() -> None:
    box = Box().promise(3, 2, "a").vote(3, ballot(2), GROUP).promise(3, 5, "b")
    data = box_bytes.to_bytes(box).replace(b'"evidence": "', b'"evidence": "AAAA')
    again = box_bytes.from_bytes(data, Opening("f" * 64, PeerIdentity.generate().private_key.public_key()))
    assert (again.round, again.attempt, again.leader, again.ballots) == (3, 5, "b", box.ballots)
    assert again.is_forgotten and again.group is None
