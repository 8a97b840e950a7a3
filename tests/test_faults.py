"""The fault table, played: real processes are broken at chosen instants of a round, one after the other.

One scenario of each kind that is over in seconds; `scripts/bench faults` plays all.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from lab.fault_scenarios import LAB_NAMES, NAMES, SCENARIOS, FaultCommunity, Row, Scenario
from lab.faults import Fault, Faults, Injector
from lab.outcomes import counted_twice, divergences, wrongly_credited
from lab.processes import leave_in_turn
from lab.small_community import Inputs, tiny_inputs
from lab.wan.lab import Host, WanLab, available
from lab.warm_start import WarmStart
from tests.swarm_kit import World, agreed, run, until

pytestmark = [
    pytest.mark.swarm,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # hivemind's way to find p2pd
]

HOME = Host(delay_ms=20, jitter_ms=2, up_mbit=20, down_mbit=100)
ON_ONE_MACHINE = tuple(scenario for scenario in SCENARIOS if scenario.quick and not scenario.lab)
OF_THE_SAME_KIND = tuple(scenario for scenario in SCENARIOS if scenario.slow)
ON_LINES = tuple(scenario for scenario in SCENARIOS if scenario.quick and scenario.lab)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return tiny_inputs(tmp_path_factory.mktemp("inputs"))


def play(community: FaultCommunity, scenarios: tuple[Scenario, ...]) -> None:
    """All of them, each with what must hold; then once more all together, and the ledger."""
    print("\n" + Row.header())
    for scenario in scenarios:
        row = community.play(scenario)
        print(row.to_markdown(), flush=True)
        assert row.one_state, f"two states in one round: {divergences(community.every_part)}"
        assert row.work_kept != "no", f"{row.stage}, {row.kind}: a survivor's work was not used"
        if scenario.does == "join":
            assert row.back_s is not None, "the newcomer never took part"
    community.wait_all_together(time.time())
    leave_in_turn(community.peers.values())
    assert community.host.stop(signal.SIGINT) == 0
    assert not divergences(community.every_part)
    assert not counted_twice(community.run)
    assert not wrongly_credited(community.run, community.every_part)
    assert not [part.said[part.said.index("Traceback") :] for part in community.every_part if "Traceback" in part.said]


@pytest.mark.parametrize(
    "scenarios",
    [
        pytest.param(ON_ONE_MACHINE, id="one of each"),
        pytest.param(OF_THE_SAME_KIND, id="of the same kind", marks=pytest.mark.slow),
    ],
)
def test_whatever_is_killed_or_corrupted_all_commit_the_same_states(
    tmp_path: Path, inputs: Inputs, starter: WarmStart, scenarios: tuple[Scenario, ...]
) -> None:
    with FaultCommunity(tmp_path, inputs, starter, names=NAMES[:4]) as community:
        play(community, scenarios)


@pytest.mark.slow
def test_whoever_is_cut_off_in_the_middle_of_a_round_comes_back(
    tmp_path: Path, inputs: Inputs, starter: WarmStart
) -> None:
    if reason := available():
        pytest.skip(f"no WAN lab here: {reason}")
    with (
        WanLab(dict.fromkeys(("host", *LAB_NAMES), HOME)) as lab,
        FaultCommunity(tmp_path, inputs, starter, lab) as community,
    ):
        play(community, ON_LINES)


def test_engines_in_one_process_can_be_broken_too(tmp_path: Path) -> None:
    faults = Faults(tmp_path / "faults")

    async def main() -> None:
        told = Injector(faults.folder, "slow").telling(lambda round, stage: None)
        async with World(tmp_path).peers(3, on_stage=told) as peers:
            await agreed(peers, 1)
            number = faults.order(Fault("delay", "reduce", seconds=0.2))
            await until(lambda: (faults.folder / f"{number:04d}.happened").exists())
            await agreed(peers, faults.wait(number).round)

    run(main())


def test_what_would_hit_the_test_itself_is_refused(tmp_path: Path) -> None:
    faults = Faults(tmp_path)
    faults.order(Fault("kill", "vote", peer="alice", round=3))
    injector = Injector(tmp_path, "alice")
    injector.reached(2, "vote")
    injector.reached(3, "reduce")
    with pytest.raises(ValueError, match="process of its own"):
        injector.reached(3, "vote")


def test_an_order_is_carried_out_once_and_by_whom_it_names(tmp_path: Path) -> None:
    faults = Faults(tmp_path)
    number = faults.order(Fault("delay", "vote", peer="alice"))
    alice, bob = (Injector(tmp_path, name) for name in ("alice", "bob"))
    bob.reached(1, "vote")
    with pytest.raises(AssertionError, match="nobody came"):
        faults.wait(number, timeout_s=0.0)
    alice.reached(1, "vote")
    alice.reached(2, "vote")
    assert (faults.wait(number).peer, faults.wait(number).round) == ("alice", 1)


@pytest.mark.parametrize(("kind", "what"), [("explode", ""), ("corrupt", ""), ("corrupt", "mood")])
def test_a_fault_that_nobody_can_carry_out_is_refused(kind: str, what: str) -> None:
    with pytest.raises(ValueError, match="expected one of"):
        Fault(kind, "vote", what=what)
