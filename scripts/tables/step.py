"""The local step: our loop against transformers' Trainer and a bare PyTorch loop, full, LoRA and QLoRA.

    scripts/bench step                                              the demo's model, on the CPU
    scripts/bench step --device cuda --model 500M --sequence-length 1024 --batch 8 --steps 20

Same model, text, batch, precision (CPU: fp32, CUDA: bf16 under autocast), fused AdamW and clipping in all arms, nothing
of the network in any. Each arm is a process of its own that takes turns with the others (A B C C B A ...), so that what
else the machine does falls on all; each turn gives a ratio, and the table shows their median, of wall time and of CPU
time. Our arm's turn is a round's work: take over the base, train, hand over the update. Memory is the most that the
device's allocator held; on the CPU the most that the process grew by after its imports.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lab import REPOSITORY
from lab.small_community import real_inputs

KINDS = ("full", "lora", "qlora")
ARMS = ("ours", "bare", "trainer")
READY_S = 600.0  # to load, and for one turn
VOCABULARY = 32_000


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench step", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--model", help="a transformers folder, or a size (135M, 1B) for random weights; default: the demo's"
    )
    parser.add_argument("--kinds", default=",".join(KINDS), help="which of full, lora, qlora")
    parser.add_argument("--turns", type=int, default=12, help="measurements of each arm")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps in one measurement")
    parser.add_argument("--batch", type=int, default=16, help="sequences in a step, in one pass")
    parser.add_argument("--sequence-length", type=int, default=128, help="tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the measurements there")
    options = parser.parse_args(arguments)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        inputs = prepare(Path(folder), options)
        print(
            f"\nlocal step: {inputs['name']}, {options.device}, {options.batch} x {options.sequence_length} tokens a "
            f"step, {options.threads} thread(s), {options.turns} turns of {options.steps} steps\n"
            f"{'':6} {'arm':8} {'tokens/s':>10} {'step':>10} {'memory':>10}   ours is faster by: wall, CPU (quartiles)",
            flush=True,
        )
        for kind in filter(can, options.kinds.split(",")):
            results[kind] = compare(kind, inputs, options)
            print("\n".join(row(kind, arm, results[kind], options.steps) for arm in ARMS), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    return 0


def row(kind: str, arm: str, arms: dict[str, list[dict[str, float]]], steps: int) -> str:
    """One arm's line; its ratios are of the turns, ours being 1."""
    turns = arms[arm]
    wall = statistics.median(turn["wall_s"] for turn in turns)
    speed, memory = turns[0]["tokens"] / wall, max(turn["peak_bytes"] for turn in turns)
    line = f"{kind:6} {arm:8} {speed:10,.0f} {1e3 * wall / steps:7.1f} ms {memory / 2**20:6,.0f} MiB"
    if arm == "ours":
        return line
    for clock in ("wall_s", "cpu_s"):
        low, middle, high = statistics.quantiles(
            [turn[clock] / own[clock] for turn, own in zip(turns, arms["ours"], strict=True)], n=4
        )
        line += f"   {middle:.3f} ({low:.3f} to {high:.3f})"
    return line


def can(kind: str) -> bool:
    if kind == "qlora" and importlib.util.find_spec("bitsandbytes") is None:
        print("qlora is left out: it needs bitsandbytes (pip install -e '.[qlora]')", file=sys.stderr)
        return False
    return True


def prepare(folder: Path, options: Any) -> dict[str, str]:
    """The base model's folder and the text."""
    demo = real_inputs(folder)
    base = demo.model if options.model is None else Path(options.model)
    if options.model is not None and not base.is_dir():
        base = random_llama(folder / f"random-{options.model}", demo.model, options)
    return {"base": str(base), "text": str(demo.text), "name": base.name, "folder": str(folder)}


def random_llama(out: Path, demo: Path, options: Any) -> Path:
    """A Llama of the usual proportions, 64 times as wide as deep, with about that many parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from peer.training.loading import load_tokenizer

    size = float(options.model[:-1]) * {"M": 1e6, "B": 1e9}[options.model[-1].upper()]
    depth = min(range(2, 128), key=lambda d: abs(12 * d * (64 * d) ** 2 + VOCABULARY * 64 * d - size))
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64 * depth,
        intermediate_size=64 * (8 * depth // 3),
        num_hidden_layers=depth,
        num_attention_heads=depth,
        max_position_embeddings=max(2048, options.sequence_length),
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(out)
    load_tokenizer(demo).save_pretrained(out)
    return out


def compare(kind: str, inputs: dict[str, str], options: Any) -> dict[str, list[dict[str, float]]]:
    """Every arm's turns."""
    shared = inputs | vars(options) | {"kind": kind, "json": None}
    Arm(shared | {"arm": "genesis"}).wait()
    arms = {name: Arm(shared | {"arm": name}) for name in ARMS}
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in ARMS}
    try:
        for arm in arms.values():
            arm.turn()  # warms up; the first answer also says that it has loaded
        for number in range(options.turns):
            for name in ARMS if number % 2 == 0 else reversed(ARMS):
                turns[name].append(arms[name].turn())
    finally:
        for arm in arms.values():
            arm.close()
    return turns


class Arm:
    """A process of `scripts.step_arms`: a line in, a turn done, a line out."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.name = f"{options['arm']}, {options['kind']}"
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "scripts.step_arms", json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=REPOSITORY,
        )

    def turn(self) -> dict[str, float]:
        """Seconds, tokens and the most memory so far."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()
        ended = time.monotonic() + READY_S
        ready, _, _ = select.select([self._process.stdout], [], [], ended - time.monotonic())
        line = self._process.stdout.readline() if ready else b""
        if not line:
            raise RuntimeError(f"{self.name}: no answer; what went wrong stands above")
        answer: dict[str, float] = json.loads(line)
        return answer

    def wait(self) -> None:
        """For one that ends by itself."""
        if self._process.wait(READY_S) != 0:
            raise RuntimeError(f"{self.name}: failed; what went wrong stands above")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
