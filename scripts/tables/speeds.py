"""Peers of unlike speeds against as many of the mean speed: agreed tokens per second, and the way to a loss.

Two communities train the demo's model on the plays, at the same time on one machine, so that what else it does falls on
both: one with peers at 4:2:1, one with three at the mean of these. Their training is slowed to fixed speeds; all else
is real. Tokens per second are counted from the first agreed round to the last, against what the peers' speeds add up
to; the held-out loss is the host's own evaluation of each agreed state.

    scripts/bench speeds --minutes 8 --target-loss 3.4

Goal: the two within 5 %.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab import pacing
from lab.outcomes import counted_twice, divergences
from lab.processes import Community, LabProcess
from lab.small_community import Inputs, real_inputs, run_config
from lab.warm_start import WarmStart

GOAL = 0.05
START_S = 120.0


@dataclass(frozen=True)
class Arm:
    """What one community came to."""

    name: str
    possible: float  # tokens/s that its peers' speeds add up to
    tokens_per_s: float
    rounds: int
    waited_s: float  # by a peer in a round, mean
    first_loss: float
    last_loss: float
    target_s: float | None  # from the first agreed round to the target loss; None: not reached

    def row(self) -> str:
        target = "not reached" if self.target_s is None else f"{self.target_s:.0f}"
        return (
            f"{self.name:10} {self.rounds:7d} {self.possible:13.0f} {self.tokens_per_s:9.0f} "
            f"{self.tokens_per_s / self.possible:8.1%} {self.waited_s:10.2f} {self.first_loss:11.4f} "
            f"{self.last_loss:10.4f} {target:>10}"
        )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench speeds", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument(
        "--speeds", type=lambda text: [float(item) for item in text.split(":")], default=[4.0, 2.0, 1.0]
    )
    parser.add_argument("--tokens-per-s", type=float, default=2100.0, help="of each community, all peers together")
    parser.add_argument("--round-seconds", type=float, default=10.0, help="of work in a round")
    parser.add_argument("--target-loss", type=float, default=3.4, help="held-out, nats per token")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args(arguments)
    unit = options.tokens_per_s / sum(options.speeds)
    unlike = [unit * speed for speed in options.speeds]
    equal = [sum(unlike) / len(unlike)] * len(unlike)
    with tempfile.TemporaryDirectory() as folder, WarmStart() as starter, ExitStack() as stack:
        inputs = real_inputs(Path(folder) / "inputs")
        name = ":".join(f"{speed:g}" for speed in options.speeds)
        runs = []
        for arm, speeds in ((name, unlike), ("equal", equal)):
            run = stack.enter_context(open_run(Path(folder) / f"run-{len(runs)}", inputs, options, starter))
            runs.append((arm, run, *start(run, speeds)))
        for _, _, _, peers in runs:
            for peer in peers:
                peer.wait_for("committed", members=len(peers), timeout_s=START_S)
        time.sleep(60 * options.minutes)
        arms = [measure(arm, host, peers, options) for arm, _, host, peers in runs]
        for _, run, host, peers in runs:
            for peer in peers:
                peer.stop()
            host.stop(signal.SIGINT)
            assert not divergences(peers) and not counted_twice(run)
    return tell(arms, options)


def open_run(folder: Path, inputs: Inputs, options: argparse.Namespace, starter: WarmStart) -> Community:
    """The demo's run with an open end, its losses evaluated at each round."""
    folder.mkdir()
    tokens = int(options.tokens_per_s * options.round_seconds)
    config = run_config(
        inputs,
        data={"sequence_length": 128, "held_out": 0.02, "held_out_sequences": 64},
        sync={"round_tokens": tokens, "min_peers": len(options.speeds)},
        inner={"lr": 4e-3, "micro_batch": 2, "batch": 8},
        publish={"every_rounds": 2, "max_worse": 1.0},
    )
    return Community(folder, config, starter=starter)


def start(run: Community, speeds: list[float]) -> tuple[LabProcess, list[LabProcess]]:
    """The host, and a peer of each speed."""
    host = run.host()
    for number, speed in enumerate(speeds):
        run.more_environment[f"peer-{number}"] = pacing.environment(speed)
    return host, [run.peer(f"peer-{number}") for number in range(len(speeds))]


def measure(name: str, host: LabProcess, peers: list[LabProcess], options: argparse.Namespace) -> Arm:
    """From the first round of all to the last."""
    rounds = peers[0].committed()
    begin = min(number for number, event in rounds.items() if event["members"] == len(peers))
    counted = [event for number, event in sorted(rounds.items()) if number >= begin]
    if len(counted) < 3:
        raise AssertionError(f"{name}: {len(counted)} rounds: too few to measure; give it more minutes")
    seconds = counted[-1]["time"] - counted[0]["time"]
    waits = [e["waited_s"] for peer in peers for n, e in peer.committed().items() if n > begin and e["took_part"]]
    losses = evaluations(host)
    reached = [item["time"] for item in losses if item["held_out_loss"] <= options.target_loss]
    return Arm(
        name,
        options.tokens_per_s,
        sum(event["tokens"] for event in counted[1:]) / seconds,
        len(counted) - 1,
        sum(waits) / len(waits),
        losses[0]["held_out_loss"],
        losses[-1]["held_out_loss"],
        min(reached) - counted[0]["time"] if reached else None,
    )


def evaluations(host: LabProcess) -> list[dict[str, Any]]:
    """What the host has evaluated so far."""
    told = [event["status"]["evaluations"] for event in list(host.events) if event["event"] == "status"]
    return list(told[-1]) if told else []


def tell(arms: list[Arm], options: argparse.Namespace) -> int:
    print(
        f"\nthe demo's model on the plays, three peers each, {options.minutes:g} minutes, rounds of "
        f"{options.round_seconds:g} s of work, {time.strftime('%Y-%m-%d')}"
    )
    print(
        f"{'speeds':10} {'rounds':>7} {'possible t/s':>13} {'agreed':>9} {'share':>8} {'waited, s':>10} "
        f"{'first loss':>11} {'last loss':>10} {f's to {options.target_loss:g}':>10}"
    )
    for arm in arms:
        print(arm.row())
    ratio = arms[0].tokens_per_s / arms[1].tokens_per_s
    print(f"agreed tokens per second, {arms[0].name} against equal: {ratio:.3f}; goal: within {GOAL:.0%}")
    if options.json:
        options.json.write_text(json.dumps({"ratio": ratio, "arms": [asdict(arm) for arm in arms]}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
