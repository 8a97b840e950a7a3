"""The way to a loss over home links, against stock hivemind and OpenDiLoCo, in one run.

Arms (`wan/arms`): ideal (all batches on one machine, no network), stock hivemind.Optimizer, OpenDiLoCo's recipe,
Potluck's presets. Lines (`wan/scale`): 20/100 Mbit/s and 40 ms; 10/50 Mbit/s, 80 ms, 0.5 % loss; loopback. A LoRA and a
full fine-tune, four peers, the same host, model (the demo's), data, token budget, local step and evaluation for all;
learning rates from one small grid. How the pacing stands for a 1B LoRA and a 0.5B full fine-tune on cards of 1.5k
tokens/s is derived in `wan/scale`.

    scripts/bench wan --quick                                 one line, one seed, a short budget
    scripts/bench wan --grid-only --json rates.json           tune the learning rates, without a network
    scripts/bench wan --rates rates.json --json wan.json --plot wan.png
    scripts/bench wan --rates rates.json --methods lora --links 20/100 --arms ideal,potluck-int8 --seeds 1
    scripts/bench wan --compress 1 --units 4096 --methods lora --arms ideal,potluck    in real time: our preset itself

The time to the loss is counted from when all peers stand ready to the loss that the ideal arm has after 80 % of the
budget. The ideal arm's own time is counted, not waited for: its steps are as long as a card of the four takes for its
share.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scripts.wan.scale import LINES, VARIANTS, Scale

KINDS = ("lora", "full")
QUICK_TEXT = 1_000_000  # characters
POINTS = 40  # of the ideal arm's curve
# learning rates to begin with; `--grid` tunes them for each arm
RATES: dict[str, float] = {"lora": 3e-3, "full": 1e-3}


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    os.environ["HF_HUB_OFFLINE"] = "1"
    from lab.wan.lab import available

    if reason := available():
        sys.stderr.write(f"error: there is no WAN lab here: {reason}\nhint: run it as root on Linux\n")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        return Show(options, Path(folder)).run()


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options, `--quick` filled in."""
    from scripts.wan.arms import ARMS

    def chosen(known: Sequence[str]) -> Any:
        def read(text: str) -> list[str]:
            names = text.split(",")
            for name in names:
                if name not in known:
                    raise argparse.ArgumentTypeError(f"{name!r}: expected some of {', '.join(known)}")
            return names

        return read

    parser = argparse.ArgumentParser(prog="scripts/bench wan", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small run of everything, in under ten minutes")
    parser.add_argument("--arms", type=chosen(ARMS), default=list(ARMS), help=", ".join(ARMS))
    parser.add_argument("--links", type=chosen(list(LINES)), default=list(LINES), help=", ".join(LINES))
    parser.add_argument("--methods", type=chosen(KINDS), default=list(KINDS), help=", ".join(KINDS))
    parser.add_argument(
        "--variants", type=chosen(list(VARIANTS)), default=list(VARIANTS), help="all but plain on the first link only"
    )
    parser.add_argument("--seeds", type=lambda text: [int(item) for item in text.split(",")], default=[1, 2])
    parser.add_argument("--steps", type=int, default=1000, help="local steps of each peer that the budget is worth")
    parser.add_argument("--compress", type=float, default=8.0, help="by how much all times are shorter than in reality")
    parser.add_argument(
        "--units", type=int, help="by how many units each MLP of the model is wider (lora: 0, full: 2048, if not given)"
    )
    parser.add_argument(
        "--patience", type=float, default=6.0, help="end an arm after so many times the ideal arm's time"
    )
    parser.add_argument("--grid", action="store_true", help="tune the learning rates first")
    parser.add_argument("--grid-only", action="store_true", help="tune the learning rates, and nothing else")
    parser.add_argument("--grid-steps", type=int, help="of a tuning run; default: --steps")
    parser.add_argument("--rates", type=Path, help="take the learning rates from what --json wrote before")
    parser.add_argument("--json", type=Path, help="write the figures there, after each run")
    parser.add_argument(
        "--resume", action="store_true", help="keep the runs that --json has written; make the missing ones"
    )
    parser.add_argument("--plot", type=Path, help="draw the losses there")
    options = parser.parse_args(arguments)
    if options.quick:
        options.links, options.variants, options.seeds = options.links[:1], options.variants[:1], options.seeds[:1]
        options.steps, options.patience = 50, 5.5
        if options.arms == list(ARMS):
            options.arms = ["ideal", "hivemind-256", "opendiloco-50", "potluck-int8"]
    if "ideal" not in options.arms:
        options.arms.insert(0, "ideal")  # it sets the target
    return options


class Show:
    """One run of the bench."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        from lab.small_community import real_inputs
        from scripts.wan.model import MORE_UNITS, inputs_of
        from scripts.wan.report import Outcome

        self._options, self._folder = options, folder
        demo = real_inputs(folder / "inputs")
        if options.quick:  # every process reads the text at its start
            demo.text.write_text(demo.text.read_text()[:QUICK_TEXT])
        more = {kind: MORE_UNITS[kind] if options.units is None else options.units for kind in options.methods}
        self._inputs = {kind: inputs_of(more[kind], demo, folder) for kind in options.methods}
        self._dataset: Any = None
        self._scales: dict[str, Scale] = {}
        self._grid: dict[str, dict[str, dict[str, float]]] = {}
        self._rates = {kind: dict.fromkeys(options.arms, RATES[kind]) for kind in options.methods}
        self._outcomes: list[Outcome] = []
        if options.resume and options.json and options.json.exists():
            self._outcomes = [Outcome(**item) for item in json.loads(options.json.read_text())["outcomes"]]

    def run(self) -> int:
        options = self._options
        for kind in options.methods:
            spec = self._task("ideal", kind, RATES[kind], options.seeds[0]).spec
            self._scales[kind] = Scale(kind, spec.model.trainable, options.compress)
            print(self._scales[kind].tell())
        if options.rates:
            told = json.loads(options.rates.read_text())["rates"]
            for kind in options.methods:
                self._rates[kind] |= {arm: told[kind][arm] for arm in options.arms if arm in told.get(kind, {})}
        if options.grid or options.grid_only:
            self._tune()
        if not options.grid_only:
            self._ideal()
            self._race()
            self._tell()
        return 0

    def _task(self, arm: str, kind: str, lr: float, seed: int) -> Any:
        from lab.small_community import run_config
        from scripts.wan.arms import batches_of
        from scripts.wan.training import Task, sections

        folder = self._folder / f"task-{arm}-{kind}-{lr:g}-{seed}"
        folder.mkdir(exist_ok=True)
        config = run_config(self._inputs[kind], **sections(kind, lr, seed, batches_of(arm)), sync={"round_tokens": 1})
        task = Task.make(folder, config)
        if self._dataset is None:
            self._dataset = task.open().dataset
        return task

    # ---- the parts ---------------------------------------------------------------------------------------------------

    def _tune(self) -> None:
        """Each arm without its network, at each rate of the grid: the lowest final loss names the rate."""
        from scripts.wan.arms import GRID, simulate

        options = self._options
        steps, jobs = options.grid_steps or options.steps, []
        for kind in options.methods:
            jobs += [(kind, arm, lr) for arm in options.arms for lr in GRID[kind]]
        started = time.monotonic()
        for number, (kind, arm, lr) in enumerate(jobs):
            task = self._task(arm, kind, lr, 0)
            losses = simulate(arm, kind, task, steps, steps, self._dataset)
            self._grid.setdefault(kind, {}).setdefault(arm, {})[f"{lr:g}"] = losses[-1][1]
            left_s = (time.monotonic() - started) / (number + 1) * (len(jobs) - number - 1)
            say(
                f"[tuning {number + 1}/{len(jobs)}] {kind}, {arm}, lr {lr:g}: {losses[-1][1]:.4f}; "
                f"{left_s / 60:.0f} min left"
            )
            found = self._grid[kind][arm]
            self._rates[kind][arm] = float(min(found, key=lambda rate: found[rate]))
            self._save()
        for kind, rates in self._rates.items():
            print(f"{kind}: " + ", ".join(f"{arm} {rate:g}" for arm, rate in rates.items()))

    def _ideal(self) -> None:
        from scripts.wan.arms import simulate
        from scripts.wan.report import Outcome

        options = self._options
        for kind in options.methods:
            for seed in options.seeds:
                if ("ideal", kind, "none", "plain", seed) in self._made():
                    continue
                say(f"[ideal] {kind}, seed {seed}: {options.steps} steps")
                lr, scale = self._rates[kind]["ideal"], self._scales[kind]
                task = self._task("ideal", kind, lr, seed)
                curve = simulate("ideal", kind, task, options.steps, max(1, options.steps // POINTS), self._dataset)
                points = [(step * scale.step_s, loss) for step, loss in curve]
                tokens = options.steps * scale.tokens_per_step * 4
                self._outcomes.append(
                    Outcome("ideal", kind, "none", "plain", seed, lr, points[-1][0], tokens, 0, 0, 1.0, 0.0, points)
                )

    def _race(self) -> None:
        from lab.warm_start import WarmStart
        from scripts.wan.plan import courses
        from scripts.wan.race import race

        options = self._options
        plan = courses(
            options.arms, options.methods, options.links, options.variants, options.seeds,
            rates=self._rates, scales=self._scales, steps=options.steps, patience=options.patience,
        )  # fmt: skip
        made = self._made()
        plan = [item for item in plan if (item.arm, item.kind, item.line, item.variant, item.seed) not in made]
        with WarmStart() as starter:
            for number, course in enumerate(plan):
                left_s = sum(item.expected_s for item in plan[number:])
                say(
                    f"[{number + 1}/{len(plan)}] {course}: about {course.expected_s / 60:.1f} min; "
                    f"{left_s / 60:.0f} min to the end"
                )
                task = self._task("judge", course.kind, course.lr, course.seed)
                judge = task.open(self._dataset)
                try:
                    outcome = race(course, self._inputs[course.kind], self._folder / f"run-{number}", judge, starter)
                except AssertionError as error:  # one arm that does not start costs one row, not the night
                    say(f"    failed: {error}")
                    continue
                self._outcomes.append(outcome)
                say(
                    f"    {outcome.wall_s:.0f} s, {outcome.tokens:,} of {course.budget:,} tokens, "
                    f"loss {outcome.points[-1][1]:.4f}, busy {outcome.busy:.1%}, "
                    f"up {outcome.up_bytes / 1e3:.0f} kB a peer, late {outcome.late:.1%}"
                )
                for problem in outcome.problems[:3]:
                    say(f"    {problem}")
                self._save()

    def _made(self) -> set[tuple[str, str, str, str, int]]:
        return {(item.arm, item.kind, item.line, item.variant, item.seed) for item in self._outcomes}

    def _save(self) -> None:
        if self._options.json:
            value = {
                "scales": {kind: asdict(scale) for kind, scale in self._scales.items()},
                "rates": self._rates,
                "grid": self._grid,
                "outcomes": [asdict(item) for item in self._outcomes],
            }
            self._options.json.write_text(json.dumps(value, indent=1) + "\n")

    def _tell(self) -> None:
        from scripts.wan.report import draw, table

        options = self._options
        print(
            f"\n{options.steps} steps of each of four peers, {len(options.seeds)} seed(s), "
            f"{time.strftime('%Y-%m-%d')}\n"
        )
        print("\n".join(table(self._outcomes)))
        if options.plot:
            draw(self._outcomes, options.plot, options.compress)
            print(f"\n{options.plot}")
        self._save()


def say(line: str) -> None:
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
