"""A run with more members than fit into a group: all take turns, and the work of those who wait counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.light.community import run
from lab.light.log import Turns
from lab.light.plan import Plan
from tests.sim.rotation import play


def check(found: Turns, plan: Plan, share: float) -> None:
    """Nobody is further than `share` of its share from it, nothing is lost, and all hold the same states."""
    assert found.divided == []
    assert set(found.last.values()) == {plan.rounds}
    assert found.lost == 0, [(turn.index, turn.done, turn.counted) for turn in found.turns]
    assert found.worst <= share, [(turn.index, turn.taken, turn.due) for turn in found.turns]


@pytest.mark.parametrize("churn", [0.0, 0.05])
def test_24_members_in_groups_of_8_by_the_rules_alone(churn: float) -> None:
    fared = play(members=24, places=8, rounds=60, churn=churn, deaf=churn)
    assert fared.worst <= 0.2 and fared.dropped == 0


@pytest.mark.parametrize(("rounds", "share"), [(60, 0.2), (300, 0.05)])
def test_200_members_in_groups_of_32_that_come_and_go_by_the_rules_alone(rounds: int, share: float) -> None:
    fared = play(members=200, places=32, rounds=rounds, churn=0.05, deaf=0.02)
    assert fared.worst <= share
    assert fared.dropped == 0


@pytest.mark.swarm
def test_three_times_as_many_members_as_fit_take_turns(tmp_path: Path) -> None:
    plan = Plan(members=12, max_group=4, rounds=12, round_s=1.5)
    found = Turns.of(run(plan, tmp_path, timeout_s=300))
    assert found.divided == [] and set(found.last.values()) == {plan.rounds}
    assert all(turn.taken for turn in found.turns), "how fair it is the rules alone show, and the slow test below"


@pytest.mark.slow
@pytest.mark.swarm
def test_24_members_in_groups_of_8_are_each_in_their_share_of_60_rounds(tmp_path: Path) -> None:
    plan = Plan(members=24, max_group=8, rounds=60, round_s=1.5)
    check(Turns.of(run(plan, tmp_path, timeout_s=780)), plan, share=0.2)
