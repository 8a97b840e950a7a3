"""Who vanishes, refuses or falls silent in a round: the others go on, and no work is lost. Cores in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from peer.round import actions as a
from peer.round import events as e
from peer.round.blame import Blame
from peer.round.group import Group
from peer.round.state import Averaging
from protocol.statements import Promise
from tests.core_kit import Lone, of, signed
from tests.table_kit import Seat, Table


def reasons(seat: Seat, name: str) -> list[str]:
    """Why a member was left out of rounds."""
    return [why for done in seat.commits for who, why in done.left_out if who == name]


def assert_no_work_twice(*seats: Seat) -> None:
    for seat in seats:
        assert len(seat.handed_over) == len(set(seat.handed_over)), f"{seat.name} worked twice from one base"


def test_a_member_alone_makes_rounds_alone_unless_the_host_asked_for_more() -> None:
    Table("a").agree(4)
    table = Table("a", min_peers=2)
    table.until(lambda: table["a"].waiting_for == "wants-more-peers")
    table.run(30)
    assert table["a"].round == 1


def test_a_late_joiner_takes_part_within_two_rounds_of_the_one_that_it_finds() -> None:
    table = Table("ab", newcomers="n", start="ab")
    table.agree(4)
    late = table["n"]
    late.start()
    table.until(lambda: any(done.counted for done in late.commits))
    found, first = late.commits[0].agreement.round, next(d.agreement.round for d in late.commits if d.counted)
    assert found >= 4 and first <= found + 2


def test_a_member_that_is_silent_in_mid_round_is_left_out_and_no_work_is_lost() -> None:
    table = Table("abm")
    table["m"].is_mute = True
    a, b, _ = table.seats.values()
    table.agree(3, "ab")
    assert a.commits[0].attempts > 1, "the first attempt was with it"
    assert any("no data" in why for why in reasons(a, "m") + reasons(b, "m"))
    assert_no_work_twice(a, b)


@pytest.mark.parametrize("phase", ["Bound", "Lead", "Averaging", "Voting"])
def test_a_member_that_is_killed_in_mid_round_does_not_stop_the_others(phase: str) -> None:
    table = Table("abc")
    table.until(lambda: any(type(seat.state.phase).__name__ == phase for seat in table.seats.values()))
    victim = next(seat for seat in table.seats.values() if type(seat.state.phase).__name__ == phase)
    victim.kill()
    alive = [seat for seat in table.seats.values() if seat is not victim]
    table.agree(3)
    assert_no_work_twice(*alive)


def test_a_leader_that_dies_after_its_proposal_is_replaced_and_the_work_is_kept() -> None:
    table = Table("abc")
    first = {seat.name: seat for seat in table.seats.values()}

    def dies(action: Any) -> Any:
        return None if isinstance(action, a.SendGroup) else action

    for seat in first.values():
        seat.bends = dies
    table.until(lambda: any(seat.handed_over for seat in first.values()))
    leader = next(seat for seat in first.values() if of(a.Propose, seat.done))
    leader.kill()
    others = [seat for seat in first.values() if seat is not leader]
    for seat in others:
        seat.bends = lambda action: action
    table.agree(3)
    assert of(a.Propose, others[0].done + others[1].done), "one of them leads"
    assert_no_work_twice(*others)


def test_a_reducer_that_vanishes_in_mid_round_is_done_without() -> None:
    table = Table("ab", newcomers="r", start="ab")
    helper = table["r"]
    helper.start(reduce_only=True)
    table.until(lambda: helper.done and of(a.AllReduce, helper.done))
    helper.kill()
    table.agree(4)
    assert_no_work_twice(table["a"], table["b"])


def test_members_whom_nobody_reaches_average_through_those_that_only_reduce() -> None:
    table = Table("ab", newcomers="rs", start="")
    for name in "ab":
        table[name].start(reachable=False)
    for name in "rs":
        table[name].start(reduce_only=True)
    table.agree(3)
    groups = [sent.group for name in "ab" for sent in of(a.SendGroup, table[name].done)]
    assert {"r", "s"} in [{reducer.peer for reducer in group.reducers} for group in groups]
    assert groups and all(group.reducers and not any(member.share for member in group.members) for group in groups)
    assert set(table["a"].agreed(3).voters) == {"a", "b"}, "who only reduces has no vote"


def test_a_minority_does_not_commit_and_says_why() -> None:
    table = Table("abc")
    table["b"].kill()
    table["c"].kill()
    table.until(lambda: table["a"].waiting_for == "too-few")
    table.run(60)
    assert table["a"].round == 1 and not table["a"].commits


def test_of_two_equal_members_that_lose_each_other_exactly_one_goes_on() -> None:
    table = Table("ab")
    table.cut("a", "b")
    one, other = table["a"], table["b"]
    table.until(lambda: max(one.round, other.round) >= 4)
    table.run(30)
    assert min(one.round, other.round) == 1


def test_two_behind_firewalls_take_part_through_a_third_and_reduce_nothing() -> None:
    table = Table("hvw", min_peers=3)
    table.cut("v", "w")
    table.agree(4)
    groups = [sent.group for name in "hvw" for sent in of(a.SendGroup, table[name].done)]
    full = [group for group in groups if len(group.members) == 3]
    assert set(table["h"].agreed(4).weights) == set("hvw")
    for group in full:
        shares = {member.peer: member.share for member in group.members}
        assert shares["h"] > 0 and shares["v"] == shares["w"] == 0


# ---- what a leader makes of the answers ------------------------------------------------------------------------------


def leading(others: str, **sync: Any) -> Lone:
    """One that has just asked all others, and has its own work ready; they answer as the test says."""
    lone = Lone("me", "", round_seconds=0.5, **sync)
    lone.wait(1.0)
    lone.hears(others, tokens=100)
    assert set(of(a.Propose, lone.works())[0].to) == set(others)
    return lone


def joins(lone: Lone, name: str, unheard: Sequence[str] = ()) -> e.Joined:
    attempt, last = lone.state.phase.attempt, lone.state.last
    fields = {"run": lone.spec.digest, "round": lone.state.round, "base": last.state, "leader": lone.me}
    promise = signed(name, Promise(attempt=attempt, **fields))
    return e.Joined(name, attempt, lone.member(name), promise, (), unheard=unheard)


def made(actions: list[Any]) -> Group:
    group: Group = of(a.SendGroup, actions)[0].group
    return group


def test_when_nobody_can_be_reached_by_all_the_least_reachable_is_left_out() -> None:
    lone = leading("bcd")
    lone.step(joins(lone, "b", ["me", "d"]), joins(lone, "c", ["d"]))
    group = made(lone.step(joins(lone, "d", ["b", "c"])))
    assert {member.peer: member.share > 0 for member in group.members} == {"me": False, "b": False, "c": True}
    assert dict(group.left_out) == {"d": "2 of the others cannot reach it"}


def test_a_lone_member_that_cannot_reduce_makes_no_group() -> None:
    lone = Lone("me", "", round_seconds=0.5, reachable=False)
    lone.wait(1.0)
    done = lone.works()
    assert "nobody in the group can be reached to reduce" in of(a.Aborted, done)[0].why
    assert not of(a.SendGroup, done)


def test_who_has_done_nothing_is_waited_for_less_than_who_works() -> None:
    waited: dict[int, float] = {}
    for tokens in (0, 100):
        lone = Lone("me", "", round_seconds=0.5)
        lone.wait(1.0)
        lone.hears("b", tokens=tokens)
        lone.works()
        started = lone.now
        while not isinstance(lone.state.phase, Averaging):
            lone.hears("b", tokens=tokens)
            lone.wait(0.1)
        waited[tokens] = lone.now - started
    assert waited[0] < waited[100] <= 3.5


# ---- who is blamed, and for what -------------------------------------------------------------------------------------


def averaging(lone: Lone, *names: str) -> Group:
    """The group that these have joined; its all-reduce is under way."""
    return made([action for name in names for action in lone.step(joins(lone, name))])


def test_a_member_that_another_leader_has_bound_meanwhile_is_blamed_only_when_it_refuses_again() -> None:
    lone = leading("bc")
    for culprit in ("", "b"):
        attempt = averaging(lone, "b", "c").attempt
        done = lone.step(e.GroupTaken("b", attempt, "I am bound to another attempt"))
        assert of(a.StopAllReduce, done) and of(a.SendAbort, done)[0].culprit == culprit
        assert lone.state.blame.spoilt(lone.now) == {culprit} - {""}
        lone.hears("bc", tokens=100)
        lone.wait(1.0)
    assert lone.state.phase.asked == ("c",), "it is left out"


def test_a_member_that_refuses_again_and_again_is_left_out_until_it_was_in_a_round() -> None:
    blame = Blame()
    assert [blame.balked("b") for _ in range(3)] == [False, True, True]
    blame.kept_their_word("leader", ["b"], 0.0)
    assert not blame.balked("b") and not blame.balked("c")


def test_whoever_does_not_see_it_hears_who_spoilt_the_group() -> None:
    """Only the reducer of a chunk sees that it is not what its sender claimed; the group is over for the others,
    too."""
    lone = leading("bc")
    group = averaging(lone, "b", "c")
    done = lone.step(e.GaveUp("c", group.digest, group.attempt, "chunk 3 is not what was claimed", "b"))
    assert of(a.StopAllReduce, done) and of(a.SendAbort, done)[0].culprit == "b"
    assert lone.state.blame.reason("b", lone.now).startswith("c gave up: chunk 3")


def test_an_abort_from_outside_the_group_is_ignored() -> None:
    lone = leading("bc")
    group = averaging(lone, "b", "c")
    assert not lone.step(e.GaveUp("stranger", group.digest, group.attempt, "because", "b"))
    assert isinstance(lone.state.phase, Averaging) and not lone.state.blame.spoilt(lone.now)


def test_a_leader_that_proposes_and_sends_no_group_is_not_followed_for_long() -> None:
    lone = Lone("me", "hb", round_seconds=1000.0)
    lone.hears("hb")
    lone.works()
    why = ""
    for attempt in range(5):
        found = lone.step(lone.proposed("h", attempt))
        why = of(a.Decline, found)[0].why if not of(a.Join, found) else ""
        lone.hears("hb")
        lone.wait(2.0)
        lone.hears("hb")
    assert why == "after your last proposal there came no group"
    assert of(a.Join, lone.step(lone.proposed("b", 9))), "others are"
