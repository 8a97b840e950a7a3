"""A run with more members than fit into a group: all take turns, and the work of those who wait counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.light.community import run
from lab.light.log import Turns
from lab.light.plan import Plan


def check(found: Turns, plan: Plan, share: float) -> None:
    """Nobody is further than `share` of its share from it, nothing is lost, and all hold the same states."""
    assert found.divided == []
    assert set(found.last.values()) == {plan.rounds}
    assert found.lost == 0, [(turn.index, turn.done, turn.counted) for turn in found.turns]
    assert found.worst <= share, [(turn.index, turn.taken, turn.due) for turn in found.turns]


@pytest.mark.swarm
def test_three_times_as_many_members_as_fit_take_turns(tmp_path: Path) -> None:
    plan = Plan(members=12, max_group=4, rounds=24, round_s=0.5, step_s=0.1)
    check(Turns.of(run(plan, tmp_path, timeout_s=300)), plan, share=0.5)


@pytest.mark.slow
@pytest.mark.swarm
def test_24_members_in_groups_of_8_are_each_in_their_share_of_60_rounds(tmp_path: Path) -> None:
    plan = Plan(members=24, max_group=8, rounds=60, round_s=1.5)
    check(Turns.of(run(plan, tmp_path, timeout_s=780)), plan, share=0.2)
