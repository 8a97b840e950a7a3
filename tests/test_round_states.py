"""Members that get different states, restart, or have a full disk: what is committed then, and what is told. Cores in
memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from peer.round import actions as a
from peer.round import events as e
from peer.round.box import Ballot, Box
from peer.round.state import Timing, Voting
from protocol.signed import Signed
from protocol.statements import Vote
from tests.core_kit import Lone, of, signed
from tests.table_kit import Table

ODD = "d" * 64


def test_a_member_whose_state_differs_takes_the_one_of_the_majority_and_no_majority_hangs_on_one_vote() -> None:
    table = Table("abo")
    table["o"].averages = lambda found: replace(found, state=ODD) if table["o"].round == 1 else found
    table.agree(3)
    for name in "ab":
        assert table[name].commits[0].attempts == 2, (
            "one of the two that agreed may have told the odd one another state"
        )
    assert table["o"].agreed(2).state == table["a"].agreed(2).state != ODD


def test_three_states_for_three_members_commit_nothing() -> None:
    table = Table("abc", timing=Timing(majority_s=1.0))
    for seat in table.seats.values():
        seat.averages = lambda found, seat=seat: replace(found, state=64 * seat.name)  # type: ignore[misc]
    table.until(lambda: all(seat.state.attempts >= 3 for seat in table.seats.values()))
    assert {seat.round for seat in table.seats.values()} == {1}
    for seat in table.seats.values():
        seat.averages = lambda found: found
    table.agree(2)
    assert all(len(seat.handed_over) == 1 for seat in table.seats.values()), "the work was kept"


# ---- restarts --------------------------------------------------------------------------------------------------------


def averaging(lone: Lone) -> a.AllReduce:
    """It has just begun to average in a group of b's."""
    lone.hears("bc")
    lone.works()
    lone.step(lone.proposed("b"))
    group = lone.group("b", lone.mine(), lone.member("b"), lone.member("c"))
    (start,) = of(a.AllReduce, lone.step(e.Grouped("group", "b", group)))
    assert isinstance(start, a.AllReduce)
    return start


def averaged(start: a.AllReduce) -> e.Averaged:
    return e.Averaged(start.group.digest, start.group.attempt, ODD, 0.1)


def test_a_member_that_voted_tells_of_it_after_a_restart() -> None:
    before = Lone("me", "bc", round_seconds=100.0)
    before.step(averaged(averaging(before)))
    phase = before.state.phase
    assert isinstance(phase, Voting)
    again = Lone("me", "bc", box=before.state.box, round_seconds=100.0)
    again.hears("bc")
    again.works()
    (join,) = of(a.Join, again.step(again.proposed("c", attempt=1)))
    assert join.vote.value == phase.vote.value and join.group.digest == phase.group.digest
    assert [cast.state for cast in join.promise.value.cast] == [ODD]


def test_a_member_that_cannot_show_for_what_it_voted_sits_the_round_out() -> None:
    box = replace(Box().promise(2, 0, "b"), ballots=(Ballot(0, "a" * 64, ODD),), is_forgotten=True)
    lone = Lone("me", "bc", box=box, round_seconds=1.0)
    lone.hears("bc", tokens=100)
    lone.works()
    (answer,) = lone.step(lone.proposed("b", attempt=7))
    assert isinstance(answer, a.Decline) and "before a restart" in answer.why
    for _ in range(10):
        lone.hears("bc", tokens=100)
        assert not of(a.Propose, lone.wait(1.0)), "nor does it lead"


# ---- full disks ------------------------------------------------------------------------------------------------------


def test_a_promise_that_cannot_be_kept_is_told_to_nobody_and_does_not_stop_the_clock() -> None:
    table, failures = Table("a"), [OSError("no space left on device")] * 3

    def full(box: Box) -> None:
        if failures:
            raise failures.pop()

    table["a"].saves = full
    table.agree(3)
    assert not failures and len(table["a"].aborted) == 3
    lone = Lone("me", "b", round_seconds=100.0)
    lone.saves = lambda box: full(box)
    failures.append(OSError("no space left on device"))
    lone.hears("b")
    lone.works()
    answers = of(a.Decline, lone.step(lone.proposed("b")))
    assert [answer.why for answer in answers] == ["a promise cannot be kept here: a full or broken disk"]


def test_a_stage_is_said_before_a_vote_is_on_disk_and_one_after_it_was_told() -> None:
    """So that the lab can break a member between the two."""
    lone = Lone("me", "bc", round_seconds=100.0)
    first = lone.core.step(averaged(averaging(lone)), lone.now)
    assert first[:-1] == [a.Stage(2, "vote")] and isinstance(first[-1], a.SaveBox)
    sent, voted = lone.core.step(e.BoxSaved(), lone.now)
    assert isinstance(sent, a.SendVote) and voted == a.Stage(2, "voted")


def vote_of(lone: Lone, name: str, state: str = ODD) -> Signed[Vote]:
    group = lone.state.newest_group
    assert group is not None
    cast = Ballot(group.attempt, group.digest, state)._asdict()
    return signed(name, Vote(run=lone.spec.digest, round=2, base=lone.state.last.state, **cast))


def test_votes_that_one_cannot_hear_come_through_another_and_no_others_do() -> None:
    """A round of n members must not carry n votes in each of its n answers."""
    lone = Lone("me", "bc", round_seconds=100.0)
    averaging(lone)
    lone.step(e.Votes("b", vote_of(lone, "b")))
    for lacks, shown in (([], set()), (["b"], {"b"}), (["me", "c", "stranger"], set()), (["b", "c"], {"b"})):
        (answer,) = of(a.ShowVotes, lone.step(e.Votes("c", vote_of(lone, "c"), (), "call", lacks)))
        assert {vote.by for vote in answer.others} == shown


def test_whoever_misses_votes_asks_those_who_may_have_them() -> None:
    lone = Lone("me", "bc", round_seconds=100.0)
    (told,) = of(a.SendVote, lone.step(averaged(averaging(lone))))
    assert (set(told.to), told.lacks) == ({"b", "c"}, [])
    lone.step(e.Votes("b", vote_of(lone, "b", "f" * 64)))
    again = of(a.SendVote, lone.wait(1.5))[0]
    assert (set(again.to), again.lacks) == ({"b", "c"}, ["c"])


def test_a_vote_that_cannot_be_kept_is_not_given() -> None:
    lone = Lone("me", "bc", round_seconds=100.0)
    start = averaging(lone)

    def full(box: Box) -> None:
        raise OSError("no space left on device")

    lone.saves = full
    done = lone.step(averaged(start))
    assert not of(a.SendVote, done) and not lone.state.box.ballots
    assert of(a.SendAbort, done)[0].why == "a full or broken disk", "the others need not wait for it"


@pytest.mark.parametrize("failing", ["ab", "a"])
def test_a_commit_that_cannot_be_kept_does_not_stop_the_member(failing: str) -> None:
    table = Table("ab")
    broken = set(failing)

    for name in failing:

        def full(agreement: object, name: str = name) -> None:
            if name in broken:
                broken.discard(name)
                raise OSError("no space left on device")

        table[name].keeps = full
    table.agree(4)
    assert not broken
    assert any("cannot keep round 2" in why for why in table["a"].aborted)
