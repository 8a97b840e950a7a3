"""Where a run's model comes from: a folder, another run's checkpoint, or a hub."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from coordinator.model_source import prepare_model
from coordinator.run_config import ModelSource
from peer.training.genesis import count_parameters
from peer.training.loading import load_causal_lm
from peer.training.model_check import outline
from protocol.errors import InputError, NetworkError
from protocol.files import list_files
from protocol.run_spec import Method
from tests.kit.builders import build_run
from tests.kit.hub_server import Hub, serve

COMMIT = "a" * 40


def source(**where: str) -> ModelSource:
    return ModelSource(license="MIT", **where)


def test_a_folder_is_found_from_where_run_toml_lies(glass_dir: Path, tmp_path: Path) -> None:
    assert prepare_model(source(path=glass_dir.name), glass_dir.parent, tmp_path) == glass_dir
    with pytest.raises(InputError, match="no such model folder"):
        prepare_model(source(path="elsewhere"), glass_dir.parent, tmp_path)


@pytest.fixture
def hub(glass_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # this hub is on loopback
    folder = tmp_path / "hub"
    shutil.copytree(glass_dir, folder)
    for extra in ("pytorch_model.bin", "modeling_evil.py", "onnx/model.safetensors", "README.md", "training_args.bin"):
        (folder / extra).parent.mkdir(exist_ok=True)
        (folder / extra).write_bytes(b"not wanted")
    return Hub("owner/glass", COMMIT, folder)


def test_a_hub_model_is_fetched_without_anything_that_runs(hub: Hub, tmp_path: Path, glass_dir: Path) -> None:
    with serve(hub):
        folder = prepare_model(source(hub="owner/glass", revision=COMMIT), tmp_path, tmp_path / "cache", hub.url)
    names = set(list_files(folder))  # refuses links
    assert names == {path.name for path in glass_dir.iterdir()} == hub.served()
    assert all((folder / name).read_bytes() == (glass_dir / name).read_bytes() for name in names)
    assert load_causal_lm(folder).dtype == torch.float32


def test_what_was_fetched_needs_no_network_again(hub: Hub, tmp_path: Path) -> None:
    wanted = source(hub="owner/glass", revision=COMMIT)
    with serve(hub):
        first = prepare_model(wanted, tmp_path, tmp_path / "cache", hub.url)
        asked = len(hub.requests)
        assert prepare_model(wanted, tmp_path, tmp_path / "cache", hub.url) == first
    assert len(hub.requests) == asked
    assert prepare_model(wanted, tmp_path, tmp_path / "cache", hub.url) == first


def test_an_unknown_model_or_revision_is_refused(hub: Hub, tmp_path: Path) -> None:
    with serve(hub), pytest.raises(InputError, match="no such model or revision"):
        prepare_model(source(hub="owner/glass", revision="b" * 40), tmp_path, tmp_path, hub.url)
    with serve(hub), pytest.raises(InputError, match="no such model or revision"):
        prepare_model(source(hub="no/such/model", revision=COMMIT), tmp_path, tmp_path, hub.url)


def test_a_hub_model_without_safetensors_is_refused(hub: Hub, tmp_path: Path) -> None:
    (hub.folder / "model.safetensors").unlink()
    with serve(hub), pytest.raises(InputError, match=r"no \*\.safetensors file"):
        prepare_model(source(hub="owner/glass", revision=COMMIT), tmp_path, tmp_path / "cache", hub.url)
    assert "pytorch_model.bin" not in hub.served()


def test_without_a_network_the_message_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import _http

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(_http.time, "sleep", lambda _: None)  # its five retries wait 23 s in all
    with pytest.raises(NetworkError, match="cannot be fetched from the hub") as caught:
        prepare_model(source(hub="owner/glass", revision=COMMIT), tmp_path, tmp_path, "http://127.0.0.1:9")
    assert "model.path" in caught.value.hint


def test_another_runs_checkpoint_is_held_against_the_state_it_states(tmp_path: Path) -> None:
    run = build_run(tmp_path)
    step = run.step(1)
    relative = os.path.relpath(step, tmp_path)
    assert prepare_model(source(checkpoint=relative), tmp_path, tmp_path / "cache") == step / "model"
    weights = step / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(InputError, match="not those of the state") as caught:
        prepare_model(source(checkpoint=relative), tmp_path, tmp_path / "cache")
    assert "potluck verify" in caught.value.hint
    (step / "model" / "checkpoint.json").write_text("{}")
    with pytest.raises(InputError, match="not a sound checkpoint"):
        prepare_model(source(checkpoint=relative), tmp_path, tmp_path / "cache")


def test_an_adapters_checkpoint_is_no_base(tmp_path: Path) -> None:
    step = tmp_path / "step-000003"
    (step / "model").mkdir(parents=True)
    (step / "model" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="an adapter, not a whole model"):
        prepare_model(source(checkpoint="step-000003"), tmp_path, tmp_path / "cache")


def test_counting_loads_no_weights(glass_dir: Path) -> None:
    assert {parameter.device.type for parameter in outline(glass_dir).parameters()} == {"meta"}
    assert count_parameters(Method(), glass_dir) == (852_608, 852_608)
    total, trainable = count_parameters(Method(kind="lora", rank=4, targets=("q_proj",)), glass_dir)
    assert trainable == 4 * 4 * (128 + 128) and total == 852_608 + trainable
