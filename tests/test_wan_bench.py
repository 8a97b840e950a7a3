"""`scripts/bench wan`: how a small model stands for a large one, what the table says, and an arm of each sort."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import pytest

from coordinator import presets
from scripts.tables import wan as bench_wan
from scripts.wan import plan as wan_plan
from scripts.wan import report as wan_report
from scripts.wan import scale as wan_scale
from scripts.wan.arms import ARMS, DILOCO, PRESETS, averaging
from scripts.wan.report import Outcome, crossing, table, targets, value_at
from scripts.wan.scale import CARD_TOKENS_PER_S, LINES, REAL_BATCH, REAL_TRAINABLE, Scale

LLAMA_1B = {"hidden": 2048, "kv": 512, "intermediate": 8192, "layers": 16, "rank": 16}


def outcome(arm: str, *points: tuple[float, float], seed: int = 1, line: str = "20/100") -> Outcome:
    return Outcome(arm, "lora", line, "plain", seed, 1e-3, points[-1][0], 1000, 6e3, 4e3, 0.9, 0.0, points)


@pytest.mark.parametrize("module", [wan_scale, wan_report])
def test_the_examples_in_the_docstrings_hold(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


def test_the_real_adapter_has_as_many_values_as_its_shape_says() -> None:
    shape = LLAMA_1B
    sides = [(shape["hidden"], shape["hidden"])] * 2  # q, o
    sides += [(shape["hidden"], shape["kv"])] * 2  # k, v
    sides += [(shape["hidden"], shape["intermediate"])] * 3  # gate, up, down
    assert REAL_TRAINABLE["lora"] == shape["layers"] * shape["rank"] * sum(a + b for a, b in sides)


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("line", ["20/100", "10/50"])
@pytest.mark.parametrize("compress", [1.0, 8.0, 16.0])
def test_an_exchange_costs_as_many_steps_as_in_reality(kind: str, line: str, compress: float) -> None:
    real_step_s = REAL_BATCH * 512 / CARD_TOKENS_PER_S
    real_exchange_s = 1.5 * REAL_TRAINABLE[kind] * 2 * 8e-6 / LINES[line].up_mbit
    ours = Scale(kind, trainable=100_000, compress=compress)
    assert ours.exchange_s(line, 2) / ours.step_s == pytest.approx(real_exchange_s / real_step_s)
    assert ours.line(line).delay_ms * compress == pytest.approx(LINES[line].delay_ms)


def test_loopback_has_no_limits() -> None:
    assert Scale("full", 1000).line("loopback") == LINES["loopback"]
    assert Scale("full", 1000).exchange_s("loopback", 2) == 0


def test_a_loss_is_reached_when_there_is_a_model_that_has_it_and_not_before() -> None:
    curve = [(0.0, 5.0), (10.0, 4.0), (20.0, 4.5), (30.0, 3.5)]
    assert crossing(curve, 4.5) == 10.0
    assert crossing(curve, 4.0) == 10.0
    assert crossing(curve, 3.75) == 30.0
    assert crossing(curve, 5.5) == 0.0
    assert crossing(curve, 3.0) is None
    assert value_at(curve, 15.0) == 4.25


def test_the_target_is_the_ideal_arms_loss_at_four_fifths_of_the_budget() -> None:
    ideal = outcome("ideal", (0.0, 5.0), (80.0, 3.4), (100.0, 3.0))
    assert targets([ideal, outcome("potluck-int8", (0.0, 5.0), (90.0, 1.0))]) == {("lora", 1): pytest.approx(3.4)}


def test_the_table_says_how_long_how_much_and_who_never_got_there() -> None:
    outcomes = [
        outcome("ideal", (0.0, 5.0), (80.0, 3.4), (100.0, 3.0)),
        outcome("ideal", (0.0, 5.0), (80.0, 3.6), (100.0, 3.0), seed=2),
        outcome("potluck", (0.0, 5.0), (160.0, 3.4), (200.0, 3.03)),
        outcome("potluck", (0.0, 5.0), (240.0, 3.6), (250.0, 3.03), seed=2),
        outcome("hivemind", (0.0, 5.0), (600.0, 4.5)),
    ]
    rows = {
        row.split(" | ")[3].strip(): [cell.strip() for cell in row.strip("|").split("|")] for row in table(outcomes)[2:]
    }
    ours, stock = rows["potluck"], rows["hivemind"]
    assert ours[6] == "200 (160 to 240)"
    assert ours[7] == "2.50"
    assert ours[8:11] == ["6", "4", "10.00"]
    assert ours[13:] == ["+1.00%", ""]
    assert stock[6] == "not reached"
    assert stock[13:] == ["+50.00%", "160 (3.8 times sooner)"]


def test_every_arm_takes_its_turn_on_every_line_and_other_variants_only_on_the_first() -> None:
    rates = {kind: dict.fromkeys(ARMS, 1e-3) for kind in ("lora", "full")}
    scales = {kind: Scale(kind, 100_000) for kind in ("lora", "full")}
    plan = wan_plan.courses(
        ARMS, ["lora", "full"], ["20/100", "loopback"], ["plain", "killed"], [1, 2],
        rates=rates, scales=scales, steps=100, patience=4.0,
    )  # fmt: skip
    assert len(plan) == 2 * 2 * (len(ARMS) - 1) * 3
    assert {(item.line, item.variant) for item in plan} == {
        ("20/100", "plain"),
        ("loopback", "plain"),
        ("20/100", "killed"),
    }
    assert [item.arm for item in plan[: len(ARMS) - 1]] == [arm for arm in ARMS if arm != "ideal"]
    assert all(wan_plan.START_S < item.expected_s <= wan_plan.START_S + item.limit_s for item in plan)


def test_speeds_differ_but_their_sum_does_not() -> None:
    assert all(sum(speeds) == wan_scale.PEERS for speeds in wan_scale.VARIANTS.values())


@pytest.mark.parametrize("arm", [*DILOCO, *PRESETS])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_every_arm_of_local_steps_can_be_simulated(arm: str, kind: str) -> None:
    assert averaging(arm, kind).local_steps > 0


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_arm_of_ours_is_the_preset(kind: str) -> None:
    preset, arm = presets.PRESETS[kind], PRESETS["potluck"][kind]
    assert arm["sync"] == {
        name: value for name, value in preset["sync"].items() if name not in ("method", "round_seconds")
    }
    assert arm.get("outer", {}) == preset.get("outer", {})


def test_an_unknown_arm_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_wan.parse(["--arms", "potluck-int8,horovod"])
    assert "horovod" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.swarm
@pytest.mark.timeout(900)
def test_an_arm_of_each_sort_lowers_the_loss_and_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lab.wan.lab import available

    if reason := available():
        pytest.skip(f"no WAN lab here: {reason}")
    told, plot = tmp_path / "wan.json", tmp_path / "wan.png"
    arms = ["ideal", "hivemind-256", "opendiloco-50", "potluck-int8"]
    options = ["--quick", "--methods", "lora", "--arms", ",".join(arms), "--json", str(told), "--plot", str(plot)]
    assert bench_wan.main(options) == 0
    outcomes = json.loads(told.read_text())["outcomes"]
    assert [item["arm"] for item in outcomes] == arms
    assert plot.stat().st_size > 0
    for item in outcomes:
        assert item["points"][-1][1] < item["points"][0][1], item["arm"]
        assert item["arm"] == "ideal" or item["up_bytes"] > 0
        assert not [problem for problem in item["problems"] if "not averaged" in problem]
    assert not _processes_of("scripts.wan.hivemind_peer", "scripts.wan.diloco_peer")


def _processes_of(*scripts: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:  # it has ended
                continue
            found += [line for script in scripts if script in line]
    return found


def test_a_widened_model_computes_what_it_did(glass_dir: Path) -> None:
    import torch

    from peer.training.loading import load_causal_lm
    from scripts.wan.model import widened

    model, tokens = load_causal_lm(glass_dir).eval(), torch.arange(24).view(2, 12)
    wide = widened(model, 64).eval()
    assert sum(p.numel() for p in wide.parameters()) > sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        torch.testing.assert_close(wide(tokens).logits, model(tokens).logits, atol=1e-4, rtol=1e-4)
