"""A run with more members than fit into a group: all take turns, and the work of those who wait counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.light.community import run
from lab.light.log import Turns
from lab.light.plan import Plan
from tests.sim.rotation import play
from tests.table_kit import Table


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


def test_who_follows_over_several_rounds_keeps_account_of_each() -> None:
    """Else who comes back would lead with books in which nobody took a turn meanwhile."""
    table = Table("abc")
    table.agree(2)
    table.cut("a", "bc")
    table.agree(6, "bc")
    owed, missed = table["a"].state.debts.get("a", 0.0), 6 - table["a"].round
    table.cuts.clear()
    table.until(lambda: table["a"].round >= 6)
    two_of_three = 2 / 3
    assert missed == 4 and table["a"].commits[-1].rounds >= missed
    assert table["a"].state.debts["a"] == pytest.approx(owed + two_of_three * missed)


@pytest.mark.slow
@pytest.mark.swarm
def test_three_times_as_many_members_as_fit_take_turns(tmp_path: Path) -> None:
    plan = Plan(members=12, max_group=4, rounds=24, round_s=1.5)
    check(Turns.of(run(plan, tmp_path, timeout_s=300)), plan, share=0.5)


@pytest.mark.slow
@pytest.mark.swarm
def test_24_members_in_groups_of_8_are_each_in_their_share_of_60_rounds(tmp_path: Path) -> None:
    plan = Plan(members=24, max_group=8, rounds=60, round_s=1.5)
    check(Turns.of(run(plan, tmp_path, timeout_s=780)), plan, share=0.2)
