"""What a full run does not train, a tower for images say, stays as the genesis has it, to the bit, or is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from protocol.report import Answer
from protocol.safetensors_file import FULL_FILE
from tests.kit.builders import SHAPES, Run, make_run, safetensors_bytes
from tests.kit.verifying import status, verify_step

ROUNDS = 2


def build(folder: Path, untrained: tuple[str, ...], tampered: int | None = None) -> Run:
    """A run that trains `model.norm.weight` not; in one round its host, and members who agree, change a value of it."""
    run = make_run(folder)
    pinned = run.spec.model.model_copy(update={"untrained": untrained})
    run.spec = run.spec.model_copy(update={"model": pinned})

    def write_model(step_dir: Path, round_number: int) -> None:
        Run.write_model(run, step_dir, round_number)
        values = [0.5, 1.0, 1.5, 2.0 if round_number != tampered else 2.0 + 2**-22]
        drawn = [float(round_number)] * 32
        tensors = {"model.embed.weight": (SHAPES["model.embed.weight"], drawn)}
        tensors["model.norm.weight"] = (SHAPES["model.norm.weight"], values)
        (step_dir / "model" / FULL_FILE).write_bytes(safetensors_bytes(tensors))

    run.write_model = write_model  # type: ignore[method-assign]
    run.genesis()
    for number in range(1, ROUNDS + 1):
        run.round(number)
    return run


@pytest.mark.parametrize("untrained", [("model.norm.weight",), ("model.norm.",), ("model.norm", "model.norm.")])
def test_a_tower_that_is_as_in_the_genesis_is_accepted(untrained: tuple[str, ...], tmp_path: Path) -> None:
    report = verify_step(build(tmp_path, untrained), ROUNDS)
    assert report.ok, report.to_text()
    check = next(check for check in report.checks if check.name == "untrained")
    assert check.detail == "1 tensors that are not trained, each as in the genesis"


@pytest.mark.parametrize("untrained", [("model.norm.weight",), ("model.norm.",)])
def test_a_tower_with_one_other_value_is_refused_though_members_signed_for_it(
    untrained: tuple[str, ...], tmp_path: Path
) -> None:
    run = build(tmp_path, untrained, tampered=ROUNDS)
    report = verify_step(run, ROUNDS)
    assert report.answer is Answer.REFUSED and [check.name for check in report.refusals] == ["untrained"]
    assert "'model.norm.weight' is not trained in this run" in report.to_text()
    assert struct.pack("<f", 2.0 + 2**-22) != struct.pack("<f", 2.0)  # one bit of one value
    assert verify_step(run, ROUNDS - 1).ok


def test_a_run_that_trains_all_or_a_folder_alone_is_not_asked(tmp_path: Path) -> None:
    assert "untrained" not in {check.name for check in verify_step(build(tmp_path / "all", ()), ROUNDS).checks}
    alone = verify_step(build(tmp_path / "some", ("model.norm.",), ROUNDS), ROUNDS, checkpoints_dir=None, alone=True)
    assert "untrained" not in {check.name for check in alone.checks} and status(alone, "weights") == "ok"
