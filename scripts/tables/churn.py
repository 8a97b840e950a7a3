"""What is left of a community's throughput when a random peer is killed or frozen every half minute.

Eight peers, a process each, whose training is slowed to a fixed speed, so that they fit on two cores. Blocks with and
without faults take turns in one run, so that what else the machine does falls on both. A killed peer is started again
by the same command some seconds later, a frozen one (SIGSTOP, its p2pd too) is woken. What a block came to is the
tokens of its agreed rounds for each second that a peer was there, from the first agreed round of the block to the last:
what the surviving peers could have done is what they do in the quiet blocks.

    scripts/bench churn --minutes 15 --seed 1 --json churn.json

Goal: at least 97 %, no round with two states, no work counted twice.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from lab import pacing
from lab.outcomes import counted_twice, divergences, wrongly_credited
from lab.processes import Community, LabProcess
from lab.small_community import run_config, tiny_inputs
from lab.warm_start import WarmStart

GOAL = 0.97
AWAY_S = (4.0, 8.0)  # a killed peer, before it is started again
FROZEN_S = (5.0, 20.0)
START_S = 120.0


@dataclass
class Presence:
    """When a peer was there: spans of Unix seconds, the last one open."""

    spans: list[list[float]] = field(default_factory=list)

    def come(self) -> None:
        self.spans.append([time.time(), float("inf")])

    def go(self) -> None:
        self.spans[-1][1] = time.time()

    def seconds(self, start: float, end: float) -> float:
        return sum(max(0.0, min(to, end) - max(since, start)) for since, to in self.spans)


@dataclass(frozen=True)
class Block:
    """What a stretch of the run came to."""

    faults: bool
    injected: int
    rounds: int
    seconds: float
    tokens: int
    peer_seconds: float

    @property
    def each(self) -> float:
        """Agreed tokens for each second of a peer that was there."""
        return self.tokens / self.peer_seconds if self.peer_seconds else 0.0


class Churn:
    """The community, and who is there."""

    def __init__(self, run: Community, options: argparse.Namespace) -> None:
        self.run, self.options, self.dice = run, options, random.Random(options.seed)
        self.names = [f"peer-{number}" for number in range(1, options.peers + 1)]
        self.present = {name: Presence() for name in self.names}
        self.parts: dict[str, LabProcess] = {}
        self.ends: list[tuple[float, str, str]] = []  # (when, whose, kind) of faults that are to be undone
        self.injected: list[tuple[float, str, str]] = []
        for name in self.names:
            run.more_environment[name] = pacing.environment(options.tokens_per_s)

    def start(self, name: str) -> None:
        self.parts[name] = self.run.peer(name)
        self.present[name].come()

    @property
    def peers(self) -> list[LabProcess]:
        """All processes of peers that ever were."""
        return [part for part in self.run.parts if part.name != "host"]

    def commits(self) -> dict[int, tuple[float, int]]:
        """Round -> when the first peer had it, and its tokens."""
        found: dict[int, tuple[float, int]] = {}
        for part in self.peers:
            for number, event in part.committed().items():
                earlier = found.get(number, (float("inf"), 0))
                found[number] = min(earlier, (event["time"], event["tokens"]))
        return found

    def all_together(self) -> None:
        """Wait for a round of all."""
        now = time.time()
        for part in self.parts.values():
            part.wait_for("committed", lambda e: e["time"] > now and e["members"] == len(self.names), timeout_s=START_S)

    def block(self, seconds: float, *, faults: bool) -> Block:
        """Let it run for a while, with faults or without."""
        start, before = time.time(), len(self.injected)
        next_fault = start + self.options.every_s / 2
        while (now := time.time()) < start + seconds:
            if faults and now >= next_fault:
                next_fault += self.options.every_s
                self._break_one()
            self._mend(now)
            time.sleep(0.1)
        end = time.time()
        while self.ends:
            self._mend(time.time())
            time.sleep(0.1)
        rounds = sorted(value for value in self.commits().values() if start <= value[0] <= end)
        if len(rounds) < 2:
            raise AssertionError(f"{len(rounds)} rounds in {seconds:.0f} s: too few to measure; give it more minutes")
        first, last = rounds[0][0], rounds[-1][0]
        there = sum(item.seconds(first, last) for item in self.present.values())
        tokens = sum(count for _, count in rounds[1:])
        return Block(faults, len(self.injected) - before, len(rounds) - 1, last - first, tokens, there)

    def _break_one(self) -> None:
        hit = {name for _, name, _ in self.ends}
        name = self.dice.choice([name for name in self.names if name not in hit])
        kind = self.dice.choice(self.options.kinds)
        away = self.dice.uniform(*(AWAY_S if kind == "kill" else FROZEN_S))
        if kind == "kill":
            self.parts[name].kill()
        else:
            self._signal(name, signal.SIGSTOP)
        self.present[name].go()
        self.injected.append((time.time(), name, kind))
        self.ends.append((time.time() + away, name, kind))

    def _mend(self, now: float) -> None:
        for item in [item for item in self.ends if item[0] <= now]:
            self.ends.remove(item)
            _, name, kind = item
            if kind == "kill":
                self.start(name)
            else:
                self._signal(name, signal.SIGCONT)
                self.present[name].come()

    def _signal(self, name: str, number: int) -> None:
        """To a peer and its p2pd: as if its machine slept."""
        process = psutil.Process(self.parts[name].pid)
        for pid in [child.pid for child in process.children() if child.name().startswith("p2pd")] + [process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench churn", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15.0, help="with faults; as long again without")
    parser.add_argument("--block-minutes", type=float, default=5.0, help="before faults and quiet change")
    parser.add_argument("--peers", type=int, default=8)
    parser.add_argument("--tokens-per-s", type=float, default=320.0, help="of each peer")
    parser.add_argument("--round-seconds", type=float, default=5.0, help="of work in a round")
    parser.add_argument("--every-s", type=float, default=30.0, help="between two faults")
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=["kill", "freeze"], help="kill,freeze")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args(arguments)
    tokens = int(options.peers * options.tokens_per_s * options.round_seconds)
    with tempfile.TemporaryDirectory() as folder, WarmStart() as starter:
        inputs = tiny_inputs(Path(folder) / "inputs")
        # what is missing of a round when a peer vanishes is done by the others; nobody waits for its tokens for long
        sync = {"round_tokens": tokens, "round_seconds": 1.2 * options.round_seconds, "min_peers": 2}
        inner = {"micro_batch": 2, "batch": 2}
        (Path(folder) / "run").mkdir()
        with Community(Path(folder) / "run", run_config(inputs, sync=sync, inner=inner), starter=starter) as run:
            return measure(Churn(run, options), options)


def measure(churn: Churn, options: argparse.Namespace) -> int:
    """Start everyone, play the blocks, and print the table."""
    host = churn.run.host()
    for name in churn.names:
        churn.start(name)
    churn.all_together()
    count = max(1, round(options.minutes / options.block_minutes))
    blocks = []
    for number in range(2 * count):
        churn.all_together()
        blocks.append(churn.block(60 * options.minutes / count, faults=number % 2 == 1))
        sys.stderr.write(f"{blocks[-1]}\n")
    churn.all_together()
    for part in churn.parts.values():
        part.stop()
    host.stop(signal.SIGINT)
    twice, wrong = counted_twice(churn.run), wrongly_credited(churn.run, churn.peers)
    found = tell(blocks, options) | {
        "divergences": len(divergences(churn.peers)),
        "counted_twice": len(twice) + len(wrong),
        "faults": [(kind, name) for _, name, kind in churn.injected],
    }
    print(f"rounds with two states: {found['divergences']}; work counted twice: {found['counted_twice']}")
    print(f"goal: {GOAL:.0%} of what the surviving peers could do; none; none")
    if options.json:
        found["blocks"] = [dataclasses.asdict(block) for block in blocks]
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 1 if found["divergences"] or found["counted_twice"] else 0


def tell(blocks: list[Block], options: argparse.Namespace) -> dict[str, Any]:
    """Print the two kinds of blocks, and what is left; returns the shares."""
    print(
        f"\n{options.peers} peers of {options.tokens_per_s:g} tokens/s, rounds of {options.round_seconds:g} s, "
        f"one {' or '.join(options.kinds)} every {options.every_s:g} s, seed {options.seed}, "
        f"{time.strftime('%Y-%m-%d')}"
    )
    print(
        f"{'blocks':8} {'faults':>7} {'rounds':>7} {'minutes':>8} {'tokens/s':>9} {'peers there':>12} "
        f"{'tokens per peer-s':>18}"
    )
    sums = {}
    for faults, name in ((False, "quiet"), (True, "faults")):
        chosen = [block for block in blocks if block.faults == faults]
        seconds, there = sum(block.seconds for block in chosen), sum(block.peer_seconds for block in chosen)
        tokens, rounds = sum(block.tokens for block in chosen), sum(block.rounds for block in chosen)
        sums[name] = (tokens / seconds, tokens / there)
        injected = sum(block.injected for block in chosen)
        print(
            f"{name:8} {injected:7d} {rounds:7d} {seconds / 60:8.1f} {tokens / seconds:9.0f} {there / seconds:12.2f} "
            f"{tokens / there:18.1f}"
        )
    whole, share = (sums["faults"][i] / sums["quiet"][i] for i in (0, 1))
    print(f"kept of the fault-free throughput: {whole:.1%}; of what the surviving peers could do: {share:.1%}")
    return {"kept": whole, "kept_of_surviving": share}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
