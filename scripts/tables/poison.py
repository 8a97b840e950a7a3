"""What one hostile member of seven does to a run, what clipping leaves of it, and what that costs honest runs.

In memory: seven members train the demo's model with real local work, codecs, aggregator and outer steps
(`lab.poisoned_rounds`). The hostile one works as the others do and sends something else. Rows: how the run
averages; columns: the held-out loss at the end, without clipping (`sync.clip` 0) and with it. "speeds" is an honest run
whose members do 4, 2, 2, 1, 1, 1 and 1 times the same work.

    scripts/bench poison --rounds 10 --clips 2,3 --arms 'int4;LoRA, int2'

Goals: an attack ends within 10 % of the same run's clean loss; clean runs lose less than 0.5 %.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from coordinator.presets import NEW
from lab.poisoned_rounds import ATTACKS, Community
from lab.small_community import real_inputs
from lab.training_fixtures import Bench

MEMBERS = 7
SPEEDS = (4, 2, 2, 1, 1, 1, 1)
STEPS = 2  # of each member in a round
SHOWN = ("negated x10", "noise x10", "spikes x10")
GOAL, LOST = 1.10, 1.005
LORA = {"kind": "lora", "rank": 8, "alpha": 16.0}
ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "fp16": {},
    "int8": {},
    "int4": {},
    "int2": {},
    "int2, a third": {"sync": {"wire": "int2", "fragments": 3}, "outer": {"lr": 1.3}},
    "topk": {},
    "LoRA, int4": {"method": LORA, "sync": {"wire": "int4"}, "inner": {"lr": 1e-2}},
    "LoRA, int2": {"method": LORA, "sync": {"wire": "int2"}, "inner": {"lr": 1e-2}},
    "gradients, fp16": {"sync": {"method": "gradient", "wire": "fp16"}, "outer": {"lr": 4e-3}},
}


def arm(name: str, folder: Path, model: Path, text: Path) -> Bench:
    """The run of one row."""
    sections = {"sync": {"wire": name}} | ARMS[name] if not ARMS[name] else ARMS[name]
    inner = {"lr": 4e-3, "micro_batch": 4, "batch": 4} | sections.get("inner", {})
    data = {"sequence_length": 32, "held_out_sequences": 64}
    return Bench(folder, model, text, base=model, **sections | {"inner": inner, "data": data})


def measure(bench: Bench, rounds: int, clips: list[float]) -> dict[str, dict[float, float]]:
    """{what: {clip: loss}} of one row."""
    alike = Community(bench, [STEPS] * MEMBERS)
    found = {"clean": {clip: alike.train(rounds=rounds, clip=clip) for clip in clips}}
    speeds = Community(bench, SPEEDS)
    found["speeds"] = {clip: speeds.train(rounds=rounds, clip=clip) for clip in clips}
    for attack in SHOWN:
        found[attack] = {clip: alike.train(rounds=rounds, clip=clip, attack=ATTACKS[attack]) for clip in clips}
    return found


def kept(found: dict[str, dict[float, float]], clip: float) -> bool:
    """Whether a row meets the goals with this clip."""
    attacked = all(found[attack][clip] < GOAL * found["clean"][clip] for attack in ("negated x10", "noise x10"))
    return attacked and all(found[honest][clip] < LOST * found[honest][0.0] for honest in ("clean", "speeds"))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench poison", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="of whole updates; a fragment's run has as many turns")
    parser.add_argument("--clips", default=f"{NEW['sync']['clip']:g},3")
    parser.add_argument("--arms", default=";".join(ARMS), help="divided by semicolons")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    clips = [0.0, *map(float, options.clips.split(","))]
    columns = ["clean", "speeds", *SHOWN]
    print(f"\n| {MEMBERS} members, {options.rounds} rounds | clip | " + " | ".join(columns) + " | goals |")
    print("|---" * (len(columns) + 3) + "|")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        inputs = real_inputs(Path(folder) / "inputs")
        for name in options.arms.split(";"):
            bench = arm(name, Path(folder) / name.replace(", ", "-"), inputs.model, inputs.text)
            rounds = options.rounds * bench.spec.sync.fragments
            found = results[name] = measure(bench, rounds, clips)
            for clip in clips:
                losses = " | ".join(f"{found[what][clip]:.3f}" for what in columns)
                verdict = "" if not clip else "kept" if kept(found, clip) else "missed"
                print(f"| {name} | {clip:g} | {losses} | {verdict} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
