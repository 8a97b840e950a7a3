"""The examples are what they say: every run.toml is valid, and what it names can be made or is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.run_config import RunConfig
from lab import REPOSITORY
from lab.training_fixtures import CHAT_TEMPLATE
from peer.training.data import build_dataset
from peer.training.genesis import count_parameters
from peer.training.loading import load_tokenizer

EXAMPLES = REPOSITORY / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.toml")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_run_toml_is_valid(path: Path) -> None:
    assert RunConfig.load(path).run.rounds > 0


def test_prepare_writes_what_the_shakespeare_runs_name(tmp_path: Path) -> None:
    script = EXAMPLES / "shakespeare" / "prepare.py"
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, timeout=120)
    for name in ("run.toml", "run-lora.toml"):
        config = RunConfig.load(EXAMPLES / "shakespeare" / name)
        assert config.model.path and (tmp_path / config.data.path).is_file()
        total, trainable = count_parameters(config.method, tmp_path / config.model.path)
        assert (total, trainable) == {"full": (852_608, 852_608), "lora": (1_000_000, 147_392)}[config.method.kind]
    assert (tmp_path / "glassllm-en" / "LICENSE").read_text().startswith("MIT License")


def test_the_example_chats_are_read_in_all_their_shapes(glass_dir: Path) -> None:
    config = RunConfig.load(EXAMPLES / "chat" / "run.toml")
    tokenizer = load_tokenizer(glass_dir)
    tokenizer.chat_template = CHAT_TEMPLATE
    data = config.data.model_copy(update={"packing": False})
    dataset = build_dataset(data, tokenizer, EXAMPLES / "chat" / config.data.path)
    assert len(dataset.train) + len(dataset.held_out) == 6
