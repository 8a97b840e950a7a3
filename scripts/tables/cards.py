"""Several cards in one peer, against one card that is as fast as all of them together.

    scripts/bench cards                    four turns of each arm: three minutes

Cards are stand-ins on the CPU. Held ones compute what any does, and then sleep until a card of their speed would have
been done, so what is left is what it costs to divide the work: the queue, the gradients' sum, parameters for all. Free
ones compute as fast as they can, with a thread each, against one card with as many threads. The arms take turns; each
turn gives a ratio, the table shows their median and quartiles. Each turn begins at the same base and makes the same
draws; how far the updates are apart is told, too.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lab.small_community import real_inputs
from lab.training_fixtures import Bench
from peer.training.passes import Failed, Passed, Passes
from peer.training.update import Update
from peer.training.work import LocalWork

SEQUENCES_PER_S = 24.0  # of the one held card: the machine computes some more
BATCH = 16  # sequences in an optimizer step
ARMS = {"two alike": (0.5, 0.5), "3 to 1": (0.75, 0.25), "four, 4:2:1:1": (0.5, 0.25, 0.125, 0.125)}
GOAL = 0.95


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench cards", description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=4, help="measurements of each arm")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps in one measurement")
    options = parser.parse_args(arguments)
    speeds: dict[int, float] = {}
    hold(speeds)
    print("\n| cards | method | of one card's tokens/s | quartiles | updates apart |\n|---|---|---|---|---|")
    reached = []
    with tempfile.TemporaryDirectory() as scratch:
        for method in ("diloco", "gradient"):
            bench = make(Path(scratch), method)
            for name, parts in ARMS.items():
                torch.set_num_threads(1)
                one, several = work_on(bench, (1.0,), speeds), work_on(bench, parts, speeds)
                reached.append(race(f"{name}, held", method, bench, (one, several), options))
            torch.set_num_threads(2)
            one, several = work_on(bench, (0.0,), speeds), work_on(bench, (0.0, 0.0), speeds)
            race("two of a thread, free", method, bench, (one, several), options)
    return 0 if min(reached) >= GOAL else 1


def make(folder: Path, method: str) -> Bench:
    inputs = real_inputs(folder / "inputs")
    inner = {"lr": 1e-3, "micro_batch": 2, "batch": BATCH}
    (folder / method).mkdir()
    data = {"sequence_length": 128}
    return Bench(folder / method, inputs.model, inputs.text, inner=inner, sync={"method": method}, data=data)


def work_on(bench: Bench, parts: Sequence[float], speeds: dict[int, float]) -> LocalWork:
    """The work of a peer with a card for each part of `SEQUENCES_PER_S`; 0: as fast as it can."""
    models = [bench.model() for _ in parts]
    speeds |= {id(model): part * SEQUENCES_PER_S for model, part in zip(models, parts, strict=True)}
    return LocalWork(models, bench.dataset, bench.spec, "peer")


def hold(speeds: dict[int, float]) -> None:
    """Let each pass take as long as a card of its model's speed (sequences a second) needs."""
    attempt = Passes.attempt

    def held(self: Passes, rows: Sequence[Any]) -> Passed | Failed:
        began = time.perf_counter()
        passed = attempt(self, rows)
        if speed := speeds.get(id(self.model), 0.0):
            time.sleep(max(0.0, len(rows) / speed - (time.perf_counter() - began)))
        return passed

    Passes.attempt = held  # type: ignore[method-assign]


def race(
    name: str, method: str, bench: Bench, works: tuple[LocalWork, LocalWork], options: argparse.Namespace
) -> float:
    """Take turns; print a row, and return the median ratio."""
    ratios, apart = [], 0.0
    for turn in range(options.turns + 1):
        pair = [turn_of(work, bench, options.steps) for work in works[:: 1 if turn % 2 else -1]]
        (alone_s, alone), (together_s, together) = pair[:: 1 if turn % 2 else -1]
        if turn:  # speeds are learnt in the first
            ratios.append(together.tokens / together_s / (alone.tokens / alone_s))
        if alone.batches == together.batches:  # a gradient's round ends with a whole attempt
            apart = max(apart, float((together.vector - alone.vector).norm() / alone.vector.norm()))
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"| {name} | {method} | {middle:.3f} | {low:.3f} to {high:.3f} | {apart:.1e} |", flush=True)
    return middle


def turn_of(work: LocalWork, bench: Bench, steps: int) -> tuple[float, Update]:
    """(seconds, update) of a round of so many steps from the genesis."""
    work.begin(bench.genesis)
    began = time.perf_counter()
    while work.sequences < steps * BATCH:
        work.step()
    update = work.finish()
    return time.perf_counter() - began, update
