"""How a LoRA run's base is held where run.toml does not say it: chosen at the first start, told, pinned, and kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from coordinator.launch import open_run
from coordinator.run_config import RunConfig
from coordinator.run_data import Telling
from coordinator.run_folder import RunFolder
from peer.training import bf16
from peer.training.quiet import no_progress_bars
from protocol.errors import RunSpecError
from protocol.run_spec import RunSpec
from tests.kit.architectures import ARCHITECTURES, write_base
from tests.kit.coordinator import write_model, write_text

RUN = """
[run]
name = "wood"
rounds = 2
[model]
path = "model"
license = "MIT"
[data]
path = "wood.txt"
kind = "text"
license = "MIT"
sequence_length = 32
held_out = 0.1
[method]
{method}
[sync]
round_tokens = 4000
"""


def saved(folder: Path, dtype: torch.dtype) -> None:
    """Save the model again, its weights in another dtype."""
    with no_progress_bars():
        AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).save_pretrained(folder)


def started(folder: Path, method: str) -> tuple[RunSpec, list[str]]:
    told: list[str] = []
    (folder / "run.toml").write_text(RUN.format(method=method))
    config = RunConfig.load(folder / "run.toml")
    run = open_run(folder / "run.toml", config, RunFolder(folder / "run"), Telling(told.append))
    run.close()
    return run.card.spec, [line for line in told if line.startswith("method.base")]


@pytest.mark.parametrize(
    ("dtype", "method", "base"),
    [
        (torch.bfloat16, 'kind = "lora"', "bf16"),
        (torch.float32, 'kind = "lora"', "fp32"),
        (torch.bfloat16, 'kind = "lora"\nuse_dora = true', "fp32"),
        (torch.bfloat16, 'kind = "lora"\nbase = "fp32"', None),
        (torch.bfloat16, 'kind = "full"', None),
    ],
)
def test_a_base_is_held_in_bf16_where_its_files_are(
    dtype: torch.dtype, method: str, base: str | None, tmp_path: Path
) -> None:
    write_model(tmp_path / "model")
    saved(tmp_path / "model", dtype)
    write_text(tmp_path / "wood.txt")
    spec, told = started(tmp_path, method)
    assert spec.method.base == (base or "fp32")
    assert [line.split(";")[0] for line in told] == ([f"method.base: {base}"] if base else [])
    assert ("base" in json.loads(spec.to_bytes())["method"]) is (base == "bf16")
    again, told = started(tmp_path, method)
    assert again == spec and not told, "a run that goes on has what it began with"
    if base == "bf16":
        assert started(tmp_path, method + '\nbase = "bf16"')[0] == spec
        with pytest.raises(RunSpecError, match="not the run in"):
            started(tmp_path, method + '\nbase = "fp32"')


def test_one_weight_that_is_wider_keeps_all_in_fp32(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    saved(folder, torch.bfloat16)
    assert bf16.changes_nothing(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.model.layers[1].mlp.up_proj.float()
    with no_progress_bars():
        model.save_pretrained(folder)
    assert not bf16.changes_nothing(folder)


@pytest.mark.parametrize(("kind", "expected"), [("llama", True), ("mamba", False), ("mamba2", False)])
def test_a_model_that_rounds_to_a_weights_dtype_stays_in_fp32(kind: str, expected: bool, tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base", next(item for item in ARCHITECTURES if item.kind == kind))
    saved(folder, torch.bfloat16)
    assert bf16.changes_nothing(folder) is expected
