"""What a run is said to need of memory, from config.json alone, against what a peer's process really takes.

Six models of five architectures and different proportions, random weights: each trained in full, and with an adapter on
a base in fp32 and in bf16; three with activations recomputed; and SmolLM2-135M where its package is installed. A
process of its own each does two rounds alone, as `tests/kit/memory_probe.py` has it, one step of two sequences in each.
"Predicted" is what `join` says (for as many sequences), "measured" all pages that the process has, its libraries' and
mapped weights' too, and hivemind's daemon.

    scripts/bench shapes                 all
    scripts/bench shapes --only deep     one of them

Goal: within 15 % of what was measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import smollm2
from lab.small_community import Inputs, tiny_inputs

GOAL = 0.15
DAEMON_BYTES = 90 << 20  # p2pd and the swarm's threads, which the probe does not start
SEQUENCES, TOKENS = 2, 256  # of a pass; in a sequence
METHODS: dict[str, dict[str, Any]] = {
    "full": {"kind": "full"},
    "LoRA": {"kind": "lora", "rank": 16},
    "LoRA, bf16 base": {"kind": "lora", "rank": 16, "base": "bf16"},
}


@dataclass(frozen=True)
class Model:
    """One of them; sizes as transformers names them."""

    name: str
    kind: str
    sizes: dict[str, Any]
    recompute: tuple[str, ...] = field(default=())  # methods that are tried with recomputed activations too
    methods: tuple[str, ...] = tuple(METHODS)

    def write(self, folder: Path, tokenizer: Path) -> Path:
        if self is REAL:
            return smollm2.convert(folder)
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        from peer.training.loading import load_tokenizer
        from peer.training.quiet import no_progress_bars

        torch.manual_seed(0)
        config = AutoConfig.for_model(self.kind, bos_token_id=2, eos_token_id=3, pad_token_id=None, **self.sizes)
        with no_progress_bars():
            AutoModelForCausalLM.from_config(config).save_pretrained(str(folder))
        load_tokenizer(tokenizer).save_pretrained(str(folder))
        return folder


def sizes(width: int, layers: int, inner: int, heads: int, keys: int, vocabulary: int, *, tied: bool) -> dict[str, Any]:
    return {
        "hidden_size": width, "num_hidden_layers": layers, "intermediate_size": inner, "num_attention_heads": heads,
        "num_key_value_heads": keys, "vocab_size": vocabulary, "tie_word_embeddings": tied, "head_dim": width // heads,
    }  # fmt: skip


MODELS = (
    Model("plain", "llama", sizes(512, 8, 1408, 8, 4, 32_000, tied=False), recompute=("full",)),
    Model("no gate", "gpt2", {"n_embd": 384, "n_layer": 6, "n_head": 6, "vocab_size": 50_257}),
    Model("large vocabulary", "qwen2", sizes(640, 6, 1920, 10, 2, 100_000, tied=True)),
    Model("wide", "qwen3", sizes(1024, 4, 3072, 16, 8, 16_000, tied=False)),
    Model(
        "four norms",
        "gemma3_text",
        sizes(640, 8, 2048, 4, 1, 48_000, tied=True) | {"query_pre_attn_scalar": 160},
        recompute=("full",),
    ),
    Model("deep", "llama", sizes(256, 24, 704, 4, 4, 8_000, tied=True), recompute=("LoRA, bf16 base",)),
)

REAL = Model("SmolLM2-135M", "llama", {}, methods=("LoRA", "LoRA, bf16 base"))


def measure(model: Model, method: str, inputs: Inputs, folder: Path, recompute: bool) -> dict[str, Any]:
    """MiB: said, and measured in a process of its own; of that, what it is before there is a model."""
    from lab.training_fixtures import make_genesis, make_spec
    from peer.training.memory import base_parameters, memory_needed_bytes
    from peer.training.model_shape import ModelShape
    from tests.kit.memory_probe import Probes

    base = folder / "base-model"
    spec = make_spec(
        base, inputs.text, method=METHODS[method], sync={"wire": "int8"}, data={"sequence_length": TOKENS},
        inner={"micro_batch": SEQUENCES, "batch": SEQUENCES},
    )  # fmt: skip
    make_genesis(spec, base, folder / "genesis")
    (folder / "run-spec.json").write_bytes(spec.to_bytes())
    (folder / "data").symlink_to(inputs.text)
    shape = ModelShape.from_config(json.loads((base / "config.json").read_text()), base_parameters(spec))
    assert shape is not None
    said = memory_needed_bytes(spec, shape, sequences=SEQUENCES, recomputing=recompute)
    with Probes(alone=True) as probes:
        stages = probes.take(folder, recompute=recompute, steps=1)
    most = max(stage["resident"] for stage in stages.values())
    return {
        "model": model.name,
        "method": method + (", recomputed" if recompute else ""),
        "parameters": round(base_parameters(spec) / 1e6),
        "said": said >> 20,
        "measured": (most + DAEMON_BYTES) >> 20,
        "imports": stages["imports"]["resident"] >> 20,
        "stages": {name: stage["resident"] >> 20 for name, stage in stages.items()},
    }


def line(row: dict[str, Any]) -> str:
    off = row["said"] / row["measured"] - 1
    return (
        f"| {row['model']} | {row['parameters']} | {row['method']} | {row['said']} | {row['measured']} | {off:+.0%} |"
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench shapes", description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="name of one model")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args(arguments)
    started, found = time.monotonic(), []
    print("\n| model | M parameters | | predicted, MiB | measured, MiB | off |\n" + "|---" * 6 + "|")
    with tempfile.TemporaryDirectory() as name:
        inputs = tiny_inputs(Path(name) / "inputs")
        for number, model in enumerate((*MODELS, *(() if smollm2.missing() else (REAL,)))):
            if options.only not in (None, model.name):
                continue
            base = model.write(Path(name) / f"model-{number}", inputs.model)
            ways = [(method, False) for method in model.methods] + [(method, True) for method in model.recompute]
            for method, recompute in ways:
                folder = Path(tempfile.mkdtemp(dir=name))
                (folder / "base-model").symlink_to(base)
                row = measure(model, method, inputs, folder, recompute)
                found.append(row)
                print(line(row), flush=True)
    if smollm2.missing():
        print(f"\n{REAL.name} was left out: {smollm2.INSTALL}")
    worst = max(abs(row["said"] / row["measured"] - 1) for row in found)
    print(f"\nworst {worst:.0%}, goal at most {GOAL:.0%} ({time.monotonic() - started:.0f} s)")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
