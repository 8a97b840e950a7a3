"""Base models to spoil, and how one is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from coordinator.run_config import DataSource
from peer.training.model_check import check_model
from protocol.errors import InputError
from protocol.run_spec import Method

FULL, LORA = Method(), Method(kind="lora", rank=2, targets=("q_proj", "v_proj"))


def data(kind: str = "text", length: int = 64) -> DataSource:
    return DataSource(path="data", license="MIT", kind=kind, sequence_length=length)  # type: ignore[arg-type]


def configure(folder: Path, **values: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def shard(folder: Path) -> Path:
    """The same model in several files."""
    whole = folder / "model.safetensors"
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="100KB")
    whole.unlink(missing_ok=True)
    return folder


def refused(folder: Path, method: Method = FULL, wanted: DataSource | None = None) -> InputError:
    with pytest.raises(InputError) as caught:
        check_model(folder, method, wanted or data())
    assert "\n" not in caught.value.message and caught.value.hint, "one line, and what to do"
    return caught.value
