"""The speed that `potluck doctor` expects, against what training really does on this computer.

For each model: the estimate from passes of one layer, then `LocalWork` for some seconds, as a peer runs it (precision
and micro-batch searched), its first steps left out. Models have random weights; the text is the demo's.

    scripts/bench doctor --seconds 10

Goal: each estimate is within a factor of 2.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from lab.small_community import real_inputs
from lab.training_fixtures import Bench, write_llama
from peer.doctor.speed import Measurement
from peer.training.memory import base_parameters
from peer.training.model_shape import ModelShape

GOAL = 2.0
SEARCH_STEPS = 20  # more than the search for a micro-batch of 4 takes
MODELS = (
    # width, layers, method, sequence length
    (64, 4, "full", 32),
    (256, 4, "full", 64),
    (256, 4, "lora", 64),
    (512, 11, "full", 128),
    (512, 11, "lora", 128),
)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench doctor", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of training, for each model")
    options = parser.parse_args(arguments)
    worst = 1.0
    print(f"{'model':24} {'expected':>10} {'measured':>10} {'ratio':>7}   tokens/s; {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        inputs = real_inputs(Path(folder) / "inputs")
        for width, layers, kind, length in MODELS:
            place = Path(folder) / f"{width}-{layers}-{kind}"
            base = write_llama(place / "base", inputs.model, width=width, layers=layers)
            sections = {"data": {"sequence_length": length}, "method": {"kind": kind}}
            bench = Bench(place, inputs.model, inputs.text, base, **sections)
            expected, measured = _expected(bench, base), _measured(bench, place, options.seconds)
            worst = max(worst, expected / measured, measured / expected)
            print(f"{f'{width} x {layers}, {kind}':24} {expected:10.0f} {measured:10.0f} {expected / measured:7.2f}")
    print(f"the worst is off by a factor of {worst:.2f}; goal: at most {GOAL:g}")
    return 0 if worst <= GOAL else 1


def _expected(bench: Bench, base: Path) -> float:
    config = json.loads((base / "config.json").read_text())
    shape = ModelShape.from_config(config, base_parameters(bench.spec))
    assert shape is not None, "these models say what they are"
    return Measurement(bench.spec, shape, torch.device("cpu"), bench.spec.inner.micro_batch).run().tokens_per_s


def _measured(bench: Bench, folder: Path, seconds: float) -> float:
    work = bench.work(wanted="auto", sizes=folder / "micro-batch.json")
    for _ in range(SEARCH_STEPS):
        work.step()
    before, began = work.tokens, time.perf_counter()
    while time.perf_counter() - began < seconds:
        work.step()
    return (work.tokens - before) / (time.perf_counter() - began)
