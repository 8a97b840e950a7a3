"""What a small community needs: a model, a text and a run.toml, for the fault scenarios and for the benchmarks.

inputs = tiny_inputs(folder)                     a random Llama of 0.09 M parameters, 200 kB of the plays
inputs = real_inputs(folder)                     the demo's glassllm of 0.85 M, all plays
config = run_config(inputs, sync={"round_seconds": 1.2})
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import REPOSITORY

TINY_BYTES = 200_000


@dataclass(frozen=True)
class Inputs:
    """Files of a run."""

    model: Path
    text: Path


def real_inputs(folder: Path) -> Inputs:
    """The demo's own."""
    prepare = shakespeare()
    folder.mkdir(parents=True, exist_ok=True)
    assert prepare.main([str(folder)]) == 0
    return Inputs(folder / prepare.MODEL, folder / prepare.TEXT)


def tiny_inputs(folder: Path) -> Inputs:
    """A model whose rounds take nothing but the time of the protocol."""
    from lab.training_fixtures import write_tiny_llama

    real = real_inputs(folder)
    text = folder / "plays.txt"
    text.write_text(real.text.read_text()[:TINY_BYTES])
    return Inputs(write_tiny_llama(folder / "tiny", real.model), text)


def llama_inputs(folder: Path, *, hidden: int, layers: int) -> Inputs:
    """A random Llama of about 12 x layers x hidden^2 parameters, beside its embeddings."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from peer.training.loading import load_tokenizer

    real = real_inputs(folder)
    text, model = folder / "plays.txt", folder / f"llama-{hidden}x{layers}"
    text.write_text(real.text.read_text()[:TINY_BYTES])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        max_position_embeddings=64,
        bos_token_id=2,
        eos_token_id=3,
    )
    LlamaForCausalLM(config).save_pretrained(model)
    load_tokenizer(real.model).save_pretrained(model)
    return Inputs(model, text)


def run_config(inputs: Inputs, **sections: dict[str, Any]) -> dict[str, Any]:
    """A run.toml as a dict; `sections` are merged in."""
    config: dict[str, dict[str, Any]] = {
        "run": {"name": "small", "seed": 7},
        "model": {"path": str(inputs.model), "license": "MIT"},
        "data": {"path": str(inputs.text), "license": "CC0-1.0", "sequence_length": 32, "held_out_sequences": 16},
        "method": {"kind": "full"},
        "sync": {"method": "diloco", "wire": "int8"},
        "inner": {"lr": 1e-3, "micro_batch": 4, "batch": 4},
        "publish": {"every_rounds": 1_000_000},
    }
    for name, section in sections.items():
        config[name] = config.get(name, {}) | section
    return config


def tiny_run(folder: Path, real_model: Path, text: Path, name: str, **sync: Any) -> dict[str, Any]:
    """`run_config` for a test: a tiny model beside the run, with the tokenizer of the real one."""
    from lab.training_fixtures import write_tiny_llama

    return run_config(Inputs(write_tiny_llama(folder / "tiny", real_model), text), run={"name": name}, sync=sync)


def shakespeare() -> Any:
    """The example's `prepare.py` as a module: examples are scripts, and no package."""
    spec = importlib.util.spec_from_file_location("prepare", REPOSITORY / "examples" / "shakespeare" / "prepare.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
