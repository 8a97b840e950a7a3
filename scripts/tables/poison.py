"""What hostile members of seven do to a run, what each way of averaging leaves of it, and what that costs honest runs.

In memory: seven members train the demo's model with real local work, codecs, aggregator and outer steps
(`lab.poisoned_rounds`). The hostile ones work as the others do and send something else. Rows: how the run
averages, `sync.clip` and `sync.aggregate`; columns: the held-out loss at the end. "speeds" is an honest run whose
members do 4, 2, 2, 1, 1, 1 and 1 times the same work.

    scripts/bench poison --rounds 10 --ways 'mean;mean 1;centered 1;trimmed 2' --hostile 2 --arms 'int4;LoRA, int2'

A second table says what each way costs a reducer: one part of 65,536 values of one sender, on one thread.

Goals: an attack ends within 10 % of the same run's clean loss; clean runs lose less than 0.5 % against a plain mean.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TypeAlias, get_args

import torch

from lab.poisoned_rounds import ATTACKS, Community
from lab.small_community import real_inputs
from lab.training_fixtures import Bench
from peer.training.codecs.codec import CHUNK_VALUES
from peer.training.robust import Kind, aggregator

Way: TypeAlias = dict[str, Any]
WAYS = "mean;mean 2;mean 1;centered 1;trimmed 2"
COST_SENDERS = (4, 8, 32)
MEMBERS = 7
SPEEDS = (4, 2, 2, 1, 1, 1, 1)
STEPS = 2  # of each member in a round
SHOWN = ("negated x1", "negated x10", "noise x10", "spikes x10", "inner product", "a little")
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


def way(text: str) -> Way:
    """`sync.aggregate` and `sync.clip`, as in "centered 2"."""
    kind, _, clip = text.partition(" ")
    if kind not in get_args(Kind):
        raise SystemExit(f"error: --ways: expected one of {', '.join(get_args(Kind))}, got {kind!r}")
    return {"how": kind, "clip": float(clip or 0)}


def measure(bench: Bench, rounds: int, how: Way, hostile: int) -> dict[str, float]:
    """{what: loss} of one row."""
    alike, speeds = Community(bench, [STEPS] * MEMBERS), Community(bench, SPEEDS)
    found = {"clean": alike.train(rounds=rounds, **how), "speeds": speeds.train(rounds=rounds, **how)}
    for attack in SHOWN:
        found[attack] = alike.train(rounds=rounds, attack=ATTACKS[attack], hostile=hostile, **how)
    return found


def missed(found: dict[str, float], plain: dict[str, float]) -> list[str]:
    """The columns of a row that miss their goals."""
    attacked = [attack for attack in SHOWN if found[attack] >= GOAL * found["clean"]]
    return attacked + [honest for honest in ("clean", "speeds") if found[honest] >= LOST * plain[honest]]


def cost_ms(how: Way, senders: int) -> float:
    """A part and a sender; the least of five."""
    parts = [torch.randn(CHUNK_VALUES, generator=torch.Generator().manual_seed(seed)) for seed in range(senders)]
    took = []
    for _ in range(5):
        own = [part.clone() for part in parts]  # an aggregator may overwrite them
        began = time.perf_counter()
        aggregator(how["clip"], how["how"]).average(own, [1000] * senders)
        took.append(time.perf_counter() - began)
    return 1e3 * min(took) / senders


def tell_costs(ways: dict[str, Way]) -> None:
    """The second table, in ratios to the first way."""
    print("\n| ms a part and sender | " + " | ".join(f"of {senders}" for senders in COST_SENDERS) + " |")
    print("|---" * (len(COST_SENDERS) + 1) + "|")
    plain: list[float] = []
    for text, how in ways.items():
        found = [cost_ms(how, senders) for senders in COST_SENDERS]
        plain = plain or found
        cells = (f"{own:.3f}, x{own / least:.1f}" for own, least in zip(found, plain, strict=True))
        print(f"| {text} | {' | '.join(cells)} |", flush=True)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench poison", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="of whole updates; a fragment's run has as many turns")
    parser.add_argument("--ways", default=WAYS, help="divided by semicolons; the first is the plain one")
    parser.add_argument("--hostile", type=int, default=1, help="how many of the seven")
    parser.add_argument("--arms", default=";".join(ARMS), help="divided by semicolons")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    ways = {text: way(text) for text in options.ways.split(";")}
    columns = ["clean", "speeds", *SHOWN]
    print(f"\n| {options.hostile} of {MEMBERS}, {options.rounds} rounds | average | {' | '.join(columns)} | missed |")
    print("|---" * (len(columns) + 3) + "|")
    results: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        inputs = real_inputs(Path(folder) / "inputs")
        for name in options.arms.split(";"):
            bench = arm(name, Path(folder) / name.replace(", ", "-"), inputs.model, inputs.text)
            rounds = options.rounds * bench.spec.sync.fragments
            rows = results[name] = {}
            for text, how in ways.items():
                rows[text] = measure(bench, rounds, how, options.hostile)
                losses = " | ".join(f"{rows[text][what]:.3f}" for what in columns)
                failed = ", ".join(missed(rows[text], next(iter(rows.values()))))
                print(f"| {name} | {text} | {losses} | {failed} |", flush=True)
    tell_costs(ways)
    if options.json:
        options.json.write_text(json.dumps(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
