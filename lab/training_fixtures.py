"""Small real models, texts and run specs for the tests of the tensor code.

The tests of the swarm and of the coordinator may use them too: everything here runs in well under a second, save the
conversion of glassllm (one second, once a session: see `glass_dir` in conftest.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from coordinator.run_config import RunConfig
from peer.training.data import Dataset, load_dataset
from peer.training.genesis import build_genesis, count_parameters, untrained_tensors
from peer.training.loading import load_tokenizer
from peer.training.model import TrainableModel, load_trainable
from peer.training.state import SharedState
from peer.training.work import LocalWork
from protocol.files import file_sha256
from protocol.run_spec import LEAST_HOLD, Audit, RunSpec

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)


def write_tiny_gpt2(folder: Path, glass_dir: Path, seed: int = 0) -> Path:
    """A random GPT-2: tied embeddings, Conv1D layers, biases, dropout in its config; with glassllm's tokenizer."""
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=1024, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=2, eos_token_id=3)
    return _write(GPT2LMHeadModel(config), folder, glass_dir)


def write_tiny_llama(folder: Path, glass_dir: Path, seed: int = 0) -> Path:
    """A random Llama with embeddings that are not tied; with glassllm's tokenizer."""
    return write_llama(folder, glass_dir, width=32, layers=2, seed=seed)


def write_llama(folder: Path, glass_dir: Path, *, width: int, layers: int, seed: int = 0) -> Path:
    """The same in any size: 512 wide and 11 layers deep it has 30 M parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=max(64, width // 4),
        tie_word_embeddings=False,
        bos_token_id=2,
        eos_token_id=3,
    )
    return _write(LlamaForCausalLM(config), folder, glass_dir)


def _write(model: Any, folder: Path, glass_dir: Path) -> Path:
    model.save_pretrained(folder)
    load_tokenizer(glass_dir).save_pretrained(folder)
    return folder


def make_config(model_dir: Path, data_path: Path, **sections: Any) -> RunConfig:
    """A run.toml in memory; `sections` are merged into the defaults, one dict a section."""
    value: dict[str, Any] = {
        "run": {"name": "test", "seed": 7},
        "model": {"path": str(model_dir), "license": "MIT"},
        "data": {"path": str(data_path), "license": "MIT", "sequence_length": 32, "held_out": 0.05},
        "method": {"kind": "full"},
        "sync": {"method": "diloco", "round_tokens": 1000, "wire": "fp32"},
        "inner": {"lr": 1e-3, "micro_batch": 4, "batch": 4},
        "outer": {},
    }
    for name, section in sections.items():
        value[name] = value.get(name, {}) | section
    return RunConfig.model_validate(value)


def make_spec(model_dir: Path, data_path: Path, **sections: Any) -> RunSpec:
    """A pinned spec with the model's real counts; the model's digest is made up.

    Args:
        sections: of run.toml.
    """
    if sections.get("audit", {}).get("share"):
        sections["credit"] = {"hold_rounds": LEAST_HOLD} | sections.get("credit", {})
    config = make_config(model_dir, data_path, **sections)
    total, trainable = count_parameters(config.method, model_dir)
    return config.pin(
        model_digest="0" * 64,
        model_name="glass",
        parameters=total,
        trainable=trainable,
        untrained=untrained_tensors(config.method, model_dir),
        data_digest=file_sha256(data_path),
        data_size_bytes=data_path.stat().st_size,
    )


def audited(spec: RunSpec, audit: Audit) -> RunSpec:
    """A run whose work is replayed."""
    hold = max(spec.credit.hold_rounds, LEAST_HOLD if audit.share else 0)
    return RunSpec.model_validate(spec.model_dump() | {"audit": audit.model_dump(), "credit": {"hold_rounds": hold}})


def make_genesis(spec: RunSpec, model_dir: Path, out: Path) -> Any:
    """The genesis state, its `model/` folder written to `out`."""
    return build_genesis(spec, model_dir, out)


class Bench:
    """A tiny run in one process: spec, genesis, and workers on models of their own."""

    def __init__(self, tmp_path: Path, glass_dir: Path, plays: Path, base: Path | None = None, **sections: Any) -> None:
        self.base_dir = base or write_tiny_llama(tmp_path / "base", glass_dir)
        self.spec: RunSpec = make_spec(self.base_dir, plays, **sections)
        self.genesis: SharedState = make_genesis(self.spec, self.base_dir, tmp_path / "genesis")
        self.folder = tmp_path / "genesis"
        self.dataset: Dataset = load_dataset(self.spec, self.model().tokenizer, plays)

    def model(self) -> TrainableModel:
        return load_trainable(self.spec, self.folder, self.base_dir)

    def work(self, peer_id: str = "peer", **options: Any) -> LocalWork:
        work = LocalWork(self.model(), self.dataset, self.spec, peer_id, **options)
        work.begin(self.genesis)
        return work
