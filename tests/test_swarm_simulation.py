"""A swarm in a storm: thousands of rounds with whatever can go wrong; and that what is checked would notice a bug."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from protocol.majority import acceptors_after, has_majority
from tests.planted_bugs import ALL, PLANTED, picks_one
from tests.round_simulator import simulate
from tests.sim_rules import Broken, Diverged, Rulebook
from tests.swarm_plans import LIES, Fault, Member, Plan, plans, random_plan, shrink

ROUNDS = 10_000


@settings(max_examples=150)
@given(plans())
def test_no_storm_that_hypothesis_draws_breaks_a_rule(plan: Plan) -> None:
    simulate(plan)


def test_ten_thousand_rounds_break_no_rule() -> None:
    rounds = committed = seed = 0
    while rounds < ROUNDS:
        world = simulate(random_plan(seed))
        rounds, committed, seed = rounds + world.rounds, committed + world.rounds_in_storm, seed + 1
    assert rounds >= ROUNDS
    assert committed > ROUNDS / 2  # a storm in which nothing commits shows nothing


# ---- planted bugs -----------------------------------------------------------------------------------------------------


def fails(plan: Plan, rules: Rulebook, kind: type[Broken]) -> bool:
    try:
        simulate(plan, rules)
    except kind:
        return True
    except Broken:
        return False
    return False


@pytest.mark.parametrize("bug", PLANTED)
def test_the_simulator_finds_a_planted_bug_and_tells_it_as_a_short_story(bug: str) -> None:
    rules, kind, faults = PLANTED[bug]
    drawn = (random_plan(seed, rounds=10 if faults == ALL else 6, kinds=faults) for seed in range(1500))
    found = next((plan for plan in drawn if fails(plan, rules, kind)), None)
    assert found is not None, f"nothing broke although {bug}"
    small = shrink(found, lambda plan: fails(plan, rules, kind))
    assert len(small.faults) <= 12, small.story()
    with pytest.raises(kind) as caught:
        simulate(small, rules)
    assert small.story() in str(caught.value)


def test_choosing_between_two_states_that_may_be_committed_diverges() -> None:
    """Too rare for a random storm: d and e commit with a's vote, nobody hears theirs, and b and c have another state."""
    lost = tuple(Fault(0, "lose", (sender, to), 20, "vote") for sender in "de" for to in "abc")
    wrong, split = Fault(0, "wrong", ("b", "c"), 20), Fault(10, "split", ("d", "e"), 40)
    plan = Plan(tuple(Member(name, 1) for name in "abcde"), (wrong, *lost, split))
    simulate(plan)
    with pytest.raises(Diverged):
        simulate(plan, Rulebook(must_complete=picks_one))


def test_members_that_believed_a_leader_who_passes_over_their_votes_would_diverge() -> None:
    """a alone has heard that the state of the first attempt is committed; then e leads the others, who voted for it too."""
    lost = tuple(Fault(0, "lose", (sender, to), 17, "vote") for sender in "abcde" for to in "bcde" if sender != to)
    usurper = (Fault(11, "freeze", ("a",), 70), Fault(11, "usurp", ("e",), 40), Fault(17, "rival", tuple("ebcd"), 18))
    plan = Plan(tuple(Member(name, 1) for name in "abcde"), (*lost, *usurper), ticks=100)
    simulate(plan)
    with pytest.raises(Diverged):
        simulate(plan, Rulebook(checks_leader=False))


def test_a_storm_with_one_hostile_member_breaks_no_rule() -> None:
    kinds = (*LIES, "split", "lose", "freeze", "slow", "rival")
    for seed in range(300):
        simulate(random_plan(seed, rounds=6, kinds=kinds))


def test_a_plan_is_played_the_same_each_time() -> None:
    assert simulate(random_plan(5)).states == simulate(random_plan(5)).states


# ---- farewells --------------------------------------------------------------------------------------------------------


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
