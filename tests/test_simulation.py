"""A swarm in a storm: thousands of rounds of the core that ships, with whatever can go wrong; and a bug is noticed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from protocol.majority import acceptors_after, has_majority
from tests.sim.bugs import ALL, PLANTED, Bug, planted
from tests.sim.plans import LIES, Fault, Member, Plan, plans, random_plan, shrink
from tests.sim.referee import Broken
from tests.sim.world import simulate

ROUNDS = 10_000  # by each of two tests, so that two workers share them


@settings(max_examples=150)
@given(plans())
def test_no_storm_that_hypothesis_draws_breaks_a_rule(plan: Plan) -> None:
    simulate(plan)


@pytest.mark.parametrize("first", [0, 1_000_000])
def test_ten_thousand_rounds_break_no_rule(first: int) -> None:
    rounds = committed = 0
    seed = first
    while rounds < ROUNDS:
        world = simulate(random_plan(seed))
        rounds, committed, seed = rounds + world.rounds, committed + world.rounds_in_storm, seed + 1
    assert committed > ROUNDS / 2  # a storm in which nothing commits shows nothing


# ---- planted bugs ---------------------------------------------------------------------------------------------------


def fails(plan: Plan, bug: Bug) -> bool:
    with planted(bug):
        try:
            simulate(plan)
        except bug.breaks:
            return True
        except Broken:
            return False
    return False


@pytest.mark.parametrize("name", PLANTED)
def test_the_simulator_finds_a_planted_bug_and_tells_it_as_a_short_story(name: str) -> None:
    bug = PLANTED[name]
    rounds = bug.rounds if bug.faults == ALL else 6
    drawn = (random_plan(seed, rounds=rounds, kinds=bug.faults) for seed in range(1500))
    found = next((plan for plan in drawn if fails(plan, bug)), None)
    assert found is not None, f"nothing broke although {name}"
    small = shrink(found, lambda plan: fails(plan, bug))
    assert len(small.faults) <= 12, small.story()
    with planted(bug), pytest.raises(bug.breaks) as caught:
        simulate(small)
    assert small.story() in str(caught.value)


def test_a_storm_with_one_hostile_member_breaks_no_rule() -> None:
    kinds = (*LIES, "split", "lose", "freeze", "slow", "rival")
    for seed in range(300):
        simulate(random_plan(seed, rounds=6, kinds=kinds))


def test_a_plan_is_played_the_same_each_time() -> None:
    assert simulate(random_plan(5)).referee.states == simulate(random_plan(5)).referee.states


# ---- farewells ------------------------------------------------------------------------------------------------------


def test_a_leavers_weight_is_its_successors() -> None:
    weights = {"a": 1, "b": 2, "c": 4}
    assert has_majority({"b"}, acceptors_after(weights, {"c": "b"}))
    assert not has_majority({"c"}, acceptors_after(weights, {"c": "b"}))


def test_a_chain_of_leavers_ends_at_who_stays_and_a_circle_at_each_of_its_own() -> None:
    weights = {"a": 1, "b": 2, "c": 9, "d": 1}
    assert has_majority({"a"}, acceptors_after(weights, {"c": "b", "b": "a"}))
    assert has_majority({"c"}, acceptors_after(weights, {"c": "b", "b": "c"}))
    assert has_majority({"b"}, acceptors_after(weights, {"c": "b", "b": "d", "d": "b"}))


def test_who_decides_an_even_split_decides_it_through_its_successor() -> None:
    weights = {"a": 1, "b": 1, "c": 2}
    for leaver in "ab":
        for successor in {"a", "b", "z"} - {leaver}:
            counted = acceptors_after(weights, {leaver: successor})
            assert has_majority({"a", "b", "z"} - {leaver}, counted) == has_majority({"a", "b"}, weights)
            assert has_majority({"c"}, counted) == has_majority({"c"}, weights)


def test_a_storm_of_leavers_breaks_no_rule() -> None:
    kinds = ("leave", "split", "lose", "delay", "rival")
    for seed in range(200):
        simulate(random_plan(seed, rounds=6, kinds=kinds))


def test_a_leave_and_a_return_as_a_story() -> None:
    plan = Plan((Member("a", 1), Member("b", 3)), (Fault(4, "leave", ("b",), 9),))
    assert plan.story().splitlines() == [
        "a: weight 1; b: weight 3; every message takes one tick",
        "tick   4 to   9: b leaves as it should, and comes back",
    ]
    assert simulate(plan).rounds > 2
