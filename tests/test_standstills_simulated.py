"""Six ways in which a run stood still for ever, each planted in the simulator, and how it ends; and a word too late.

The last test takes out the rule by which each ends: then it stands still, or breaks.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pydantic import ValidationError

from coordinator import standstill
from peer.round import attempt, follow, quorum, word
from peer.round.box import AlreadyPromised, Box
from peer.round.state import Voting
from protocol.majority import has_majority
from protocol.statements import MAX_ATTEMPT
from tests.sim import hostile
from tests.sim.bugs import PLANTED, Bug, everywhere, planted
from tests.sim.host import AWAY
from tests.sim.member import Member
from tests.sim.plans import Fault, Plan
from tests.sim.plans import Member as Planned
from tests.sim.referee import Broken, Stuck
from tests.sim.world import World, simulate

GO_ON = 15  # ticks from the word to the round that comes of it


def plan(weights: dict[str, int], *faults: Fault, ticks: int = 0) -> Plan:
    return Plan(tuple(Planned(name, weight) for name, weight in weights.items()), faults, ticks)


def playing(plan: Plan) -> World:
    """A world at the end of its storm; with no ticks, at its beginning."""
    world = World(plan)
    world.storm()
    return world


def until(world: World, happened: Callable[[], bool]) -> None:
    end = world.now + 60
    while not happened():
        assert world.now < end, "it never happened"
        world.run_until(world.now + 0.25)


def has_voted(member: Member) -> bool:
    return member.core is not None and isinstance(member.core.state.phase, Voting)


def epochs(world: World) -> set[int]:
    return {epoch for epoch, _ in world.referee.states}


# ---- (1) half of the last agreed weight is gone ---------------------------------------------------------------------

HALVES = {"a": 1, "b": 1, "c": 1, "d": 3}


def test_half_of_the_weight_gone_for_good_and_the_rest_goes_on() -> None:
    faults = Fault(24, "die", ("c", "d"), 25), Fault(24, "word", ("a",), 99)
    world = playing(plan(HALVES, *faults, ticks=24 + 4 + AWAY + GO_ON))
    assert epochs(world) == {0, 1}, "within two minutes and the time of a round"
    world.calm()


@pytest.mark.parametrize("kind", ["blackout", "split"])
def test_who_was_gone_comes_back_and_follows_also_from_rounds_of_its_own(kind: str) -> None:
    faults = Fault(24, kind, ("c", "d"), 90), Fault(60, "word", ("a",), 90)
    world = playing(plan(HALVES, *faults, ticks=90))
    back = world.members["d"]
    undone = back.last.round
    assert epochs(world) == {0, 1} and (undone > 4 or kind == "blackout"), "cut off, they made rounds of their own"
    world.calm()
    assert {member.last.epoch for member in world.order} == {1}
    assert back.last.round < undone or kind == "blackout"
    until(world, lambda: bool(hostile.lead_out_of_turn(back, ["c"])))  # what it promised in the rounds undone is over


# ---- (2) newcomers with half of a group's weight are gone after its vote --------------------------------------------


def test_newcomers_vanish_after_the_vote_and_those_who_decide_complete_it_alone() -> None:
    world = playing(plan({"a": 1, "x": 0, "y": 0, "z": 0}))
    until(world, lambda: has_voted(world.members["a"]))
    made = world.members["a"].core.state.phase.group  # type: ignore[union-attr]
    assert not has_majority({"a"}, made.weights), "the newcomers have more than half of it"
    world.bury("x", "y", "z")
    world.calm()
    assert world.referee.agreed[0, 2].completes


# ---- (3) all are killed between the votes and the first disk --------------------------------------------------------


def test_all_are_killed_after_their_votes_and_the_state_is_on_every_disk() -> None:
    world = playing(plan({"a": 1, "b": 1, "c": 1}))
    until(world, lambda: all(has_voted(member) for member in world.order))
    for member in world.order:
        member.stop()
    world.calm()
    assert world.referee.agreed[0, 2].completes


# ---- (4) certificates in a group that was voted on have ended -------------------------------------------------------


def test_certificates_end_after_the_votes_and_the_group_is_completed_all_the_same() -> None:
    world = playing(plan({"a": 1, "b": 1, "c": 1}, Fault(99, "ended", ("a",), 100)))
    until(world, lambda: all(has_voted(member) for member in world.order))
    for member in world.order:
        member.stop()
    assert world.papers is not None
    world.papers.end("abc")
    world.calm()
    assert world.referee.agreed[0, 2].completes


# ---- (5) two states may be committed, and only the gone know which --------------------------------------------------


def test_two_possible_states_and_the_host_lets_those_who_are_here_begin_anew() -> None:
    names = ("a", "b", "c", "d", "e")
    faults = Fault(0, "wrong", ("b",), 99), Fault(0, "slow", ("c", "d", "e"), 99), Fault(98, "die", ("d", "e"), 99)
    world = playing(plan(dict.fromkeys(names, 1), *faults))
    until(world, lambda: has_voted(world.members["a"]) and has_voted(world.members["b"]))
    assert not any(has_voted(world.members[name]) for name in "cde")
    world.bury("d", "e")
    world.restart(world.members["c"])
    world.calm()
    assert epochs(world) == {1}


# ---- (6) the attempts of a round are used up ------------------------------------------------------------------------


def test_a_round_that_was_tried_for_a_day_goes_on() -> None:
    world = World(plan({"a": 1, "b": 1, "c": 1}))
    for index, member in enumerate(world.order):
        member.disk.box = Box().promise(2, 10**7 + index, "a")
    world.storm()
    world.calm()


def test_nobody_uses_up_the_attempts_by_naming_the_last_one() -> None:
    world = simulate(plan({"a": 1, "b": 2, "c": 2}, Fault(0, "jump", ("a",), 60), ticks=60))
    assert world.rounds_in_storm >= 4
    assert all(member.disk.box.attempt < MAX_ATTEMPT for member in world.order if member.name != "a")


# ---- a word that comes too early, and reaches nobody in time --------------------------------------------------------


def test_a_word_by_which_nobody_can_go_on_any_more_holds_up_nobody() -> None:
    """Those whom it names go past its round with the others, before they hear it: who has heard it follows them."""
    faults = (
        Fault(16, "split", ("a", "b", "d"), 32),
        Fault(26, "word", ("b", "d"), 34),
        Fault(27, "split", ("a", "c", "e"), 43),
    )
    world = simulate(plan(dict.fromkeys("abcde", 1), *faults, ticks=60))
    assert world.host is not None and world.host.word is not None and epochs(world) == {0}


# ---- without the rules ----------------------------------------------------------------------------------------------


def _the_group_must_agree(voters: set[str], acceptors: dict, group: dict, completes: bool) -> bool:
    return has_majority(voters, acceptors) and has_majority(voters, group)


def _not_too_many(state: object, number: int) -> str:
    return f"attempt {number}" if number > 10**6 else ""


WITHOUT: dict[str, tuple[Callable[[], None], Bug, type[Exception]]] = {
    "nobody listens to the word": (
        test_half_of_the_weight_gone_for_good_and_the_rest_goes_on,
        Bug(((word, "take", lambda *args: []),), Broken),
        AssertionError,
    ),
    "undone rounds bind whoever made them": (
        lambda: test_who_was_gone_comes_back_and_follows_also_from_rounds_of_its_own("split"),
        Bug(((Box, "standing_on", lambda box, *args: box),), Broken),
        AlreadyPromised,
    ),
    "the ledger helps only whoever has fewer rounds": (
        lambda: test_who_was_gone_comes_back_and_follows_also_from_rounds_of_its_own("split"),
        Bug(everywhere(follow.outranks, lambda one, other: one.round > other.round), Stuck),
        Stuck,
    ),
    "newcomers are needed to complete": (
        test_newcomers_vanish_after_the_vote_and_those_who_decide_complete_it_alone,
        Bug(((quorum, "is_committed", _the_group_must_agree),), Stuck),
        Stuck,
    ),
    "votes come before the state is on disk": (
        test_all_are_killed_after_their_votes_and_the_state_is_on_every_disk,
        PLANTED["an average is voted for and not on disk"],
        Stuck,
    ),
    "ended certificates count in nothing": (
        test_certificates_end_after_the_votes_and_the_group_is_completed_all_the_same,
        PLANTED["ended certificates do not count in what was voted on"],
        Stuck,
    ),
    "the word is for those alone who hold too little": (
        test_two_possible_states_and_the_host_lets_those_who_are_here_begin_anew,
        Bug(((standstill, "STILL_S", float("inf")),), Stuck),
        Stuck,
    ),
    "a million attempts, and no more": (
        test_a_round_that_was_tried_for_a_day_goes_on,
        Bug(everywhere(attempt.check_attempt, _not_too_many), Stuck),
        Stuck,
    ),
    "any attempt is taken up": (
        test_nobody_uses_up_the_attempts_by_naming_the_last_one,
        Bug(everywhere(attempt.check_attempt, lambda state, number: ""), Stuck),
        ValidationError,
    ),
    "a word holds although nobody can go on by it": (
        test_a_word_by_which_nobody_can_go_on_any_more_holds_up_nobody,
        Bug(((word, "is_void", lambda state: False),), Stuck),
        Stuck,
    ),
}


@pytest.mark.parametrize("rule", WITHOUT)
def test_without_its_rule_it_stands_still(rule: str) -> None:
    scene, bug, breaks = WITHOUT[rule]
    with planted(bug), pytest.raises(breaks):
        scene()
