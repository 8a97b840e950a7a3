"""The files of a base model: what is refused by name, before anything is copied, and what is the same model."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from coordinator.base_model import copy_model
from lab.training_fixtures import write_tiny_llama
from peer.training.genesis import count_parameters
from peer.training.loading import load_causal_lm
from peer.training.model_check import check_model
from protocol.errors import InputError
from tests.kit.base_models import FULL, data, refused, shard


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, glass_dir: Path) -> Path:
    """A tiny Llama whose head is its own: 64 positions, 1024 rows of embeddings, as many tokens."""
    return write_tiny_llama(tmp_path_factory.mktemp("made"), glass_dir)


@pytest.fixture
def base(made: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(made, tmp_path / "base"))


def _adapter(folder: Path) -> None:
    """As trainers leave one beside its base."""
    config = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "base_model_name_or_path": str(folder)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({"base_model.model.lora_A.weight": torch.zeros(2, 32)}, folder / "adapter_model.safetensors")


def _adapter_alone(folder: Path) -> None:
    _adapter(folder)
    (folder / "config.json").unlink()
    (folder / "model.safetensors").unlink()


def _into_cache(folder: Path) -> None:
    inside = folder / "snapshots" / ("a" * 40)
    inside.mkdir(parents=True)
    for path in folder.glob("*.*"):
        path.rename(inside / path.name)


def _lost_shard(folder: Path) -> None:
    (shard(folder) / "model-00002-of-00003.safetensors").unlink()


def _lost_index(folder: Path) -> None:
    (shard(folder) / "model.safetensors.index.json").unlink()


def _index(folder: Path, change: Callable[[dict[str, str]], None]) -> None:
    path = shard(folder) / "model.safetensors.index.json"
    value = json.loads(path.read_text())
    change(value["weight_map"])
    path.write_text(json.dumps(value))


def _link(name: str, to: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(to)

    return make


def _rename(to: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "model.safetensors").rename(folder / to) and None


SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "adapter beside": (_adapter, r"holds an adapter \(adapter_config.json\) beside a whole model"),
    "adapter alone": (_adapter_alone, r"an adapter .*not a whole model"),
    "lost shard": (_lost_shard, r"names 1 of 3 files that are not there, model-00002-of-00003.safetensors among"),
    "lost index": (_lost_index, r"3 weight files, .* and no model.safetensors.index.json"),
    "index of no tensor": (
        lambda folder: _index(folder, lambda names: names.update({"more.weight": min(names.values())})),
        r"lacks the tensor more.weight, which model.safetensors.index.json says it holds",
    ),
    "index of a far file": (
        lambda folder: _index(folder, lambda names: names.update({"more.weight": "../x.safetensors"})),
        r"index.json: names other files than safetensors beside it",
    ),
    "index of nonsense": (
        lambda folder: (shard(folder) / "model.safetensors.index.json").write_text("[]"),
        r"not an index of weight files",
    ),
    "other name": (_rename("weights.safetensors"), r"in model.safetensors, got weights.safetensors"),
    "pickle": (_rename("pytorch_model.bin"), r"a pickle, which can run code"),
    "other format": (_rename("model-q4.gguf"), r"only model-q4.gguf, a format that is not for training"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), r"no config.json"),
    "hub cache": (_into_cache, r"a hub's cache, not a model folder"),
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        r"not a tokenizer that transformers can load",
    ),
    "link to nothing": (_link("tokenizer.json", "nowhere"), r"tokenizer.json: a link to a file that is not there"),
    "weights linked to nothing": (_link("model.safetensors", "../blobs/0"), r"a link to a file that is not there"),
    "pointer": (
        lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid 0\n"),
        r"model.safetensors: a Git LFS pointer",
    ),
    "cut short": (lambda folder: os.truncate(folder / "model.safetensors", 5000), r"model.safetensors: damaged"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_folder_that_is_no_sound_model_is_refused_by_name(how: str, base: Path) -> None:
    spoil, told = SPOILED[how]
    spoil(base)
    assert re.search(told, refused(base).message)


@pytest.mark.parametrize("how", ["adapter beside", "adapter alone", "lost shard", "pointer"])
def test_a_volunteer_is_told_the_same_of_such_a_folder(how: str, base: Path) -> None:
    spoil, told = SPOILED[how]
    spoil(base)
    with pytest.raises(InputError, match=told):
        load_causal_lm(base)


def test_shards_and_links_make_the_same_model(base: Path, made: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in shard(base).iterdir():
        (linked / path.name).symlink_to(path)
    assert str(check_model(linked, FULL, data())) == str(check_model(made, FULL, data()))
    assert count_parameters(FULL, linked) == count_parameters(FULL, made)


def test_weights_that_no_loader_takes_are_named_and_not_copied(base: Path, tmp_path: Path) -> None:
    shutil.copy(base / "model.safetensors", base / "consolidated.safetensors")
    assert str(check_model(base, FULL, data())).endswith("left out: consolidated.safetensors")
    copy_model(base, tmp_path / "copy")
    assert [path.name for path in (tmp_path / "copy").glob("*.safetensors")] == ["model.safetensors"]
