"""Whether documents are kept apart is found out at the host's first start, told, pinned, and kept at later starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coordinator.launch import open_run
from coordinator.run_config import RunConfig
from coordinator.run_data import Telling
from coordinator.run_folder import RunFolder
from protocol.data_spec import PinnedDataSet
from protocol.run_spec import RunSpec
from tests.kit.architectures import ARCHITECTURES, write_model

RUN = """
[run]
name = "wood"
[model]
path = "model"
license = "MIT"
[[data]]
name = "wood"
path = "wood.jsonl"
kind = "jsonl"
license = "MIT"
[sequences]
sequence_length = 32
held_out = 0.1
{asked}
[sync]
round_tokens = 4000
"""
TOLD = "this model does not keep documents apart: each also sees those before it in its sequence"


def started(folder: Path) -> tuple[RunSpec, list[str]]:
    told: list[str] = []
    config = RunConfig.load(folder / "run.toml")
    run = open_run(folder / "run.toml", config, RunFolder(folder / "run"), Telling(told.append))
    run.close()
    return run.card.spec, told


@pytest.mark.parametrize(
    ("kind", "asked", "apart"),
    [
        ("llama", "", True),
        ("mamba", "", False),
        ("mamba", "documents_apart = true", False),
        ("llama", "documents_apart = false", False),
    ],
)
def test_a_run_keeps_documents_apart_where_its_model_can(kind: str, asked: str, apart: bool, tmp_path: Path) -> None:
    architecture = next(item for item in ARCHITECTURES if item.kind == kind)
    write_model(tmp_path / "model", architecture.config())
    lines = [json.dumps({"text": f"When everyone brings wood, fire {number} burns."}) for number in range(200)]
    (tmp_path / "wood.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "run.toml").write_text(RUN.format(asked=asked))
    spec, told = started(tmp_path)
    assert isinstance(spec.data, PinnedDataSet) and spec.data.documents_apart is apart
    assert (TOLD in told) is (kind == "mamba")
    again, _ = started(tmp_path)
    assert again == spec and RunSpec.from_bytes(spec.to_bytes()) == spec
    assert ("documents_apart" in json.loads(spec.to_bytes())["data"]) is apart, "older runs keep their digests"


def test_a_run_of_one_file_has_no_such_rule(tmp_path: Path) -> None:
    text = RUN.replace('[[data]]\nname = "wood"', "[data]").replace("[sequences]\n", "").replace("{asked}", "")
    (tmp_path / "run.toml").write_text(text)
    assert RunConfig.load(tmp_path / "run.toml").sequences is None
