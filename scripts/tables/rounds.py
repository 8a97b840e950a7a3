"""What a round costs beyond its compute, with real peers over loopback sockets.

A coordinator and three peers, each a process, train the demo's model. Waiting is the time from the end of a peer's own
micro-batch to the new agreed state: encoding, group forming, claims, all-reduce, outer step, hashing, votes, and what
the others still compute. The busy share is what is left of the round for training.

Goal: under 0.5 s of waiting per round.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scripts.demo import Demo, Failed

GOAL_S = 0.5


class Measured(Demo):
    """The demo's run without its screen, each peer's rounds noted."""

    def __init__(self, *, lora: bool, out: Path, rounds: int, wire: str) -> None:
        super().__init__(lora=lora, out=out)
        self._rounds, self._wire = rounds, wire
        self.committed: dict[str, list[dict[str, Any]]] = {}

    def prepare(self) -> None:
        super().prepare()
        path = self.example / "run.toml"
        lines = path.read_text().splitlines()
        replaced = {"rounds = ": f"rounds = {self._rounds}", "wire = ": f'wire = "{self._wire}"'}
        for start, line in replaced.items():
            lines = [line if old.startswith(start) else old for old in lines]
        path.write_text("\n".join(lines) + "\n")

    def _note(self, part: Any, event: dict[str, Any]) -> None:
        if event["event"] == "committed":
            self.committed.setdefault(part.name, []).append(event)
        if event["event"] in ("status", "ended"):
            self._read_status(event)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench rounds", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args(arguments)
    rows = []
    for name, lora, wire in (
        ("full, int8", False, "int8"),
        ("full, fp32", False, "fp32"),
        ("LoRA, int8", True, "int8"),
    ):
        with tempfile.TemporaryDirectory() as folder:
            demo = Measured(lora=lora, out=Path(folder) / "out", rounds=options.rounds, wire=wire)
            demo.console.quiet = True
            try:
                demo.prepare()
                demo.launch()
                demo.watch()
            except Failed as error:
                sys.stderr.write(f"error: {error}\n")
                return 1
            finally:
                demo.stop()
            rows.append((name, demo.committed))
    print(f"\nthree peers and a coordinator on one machine, {options.rounds} rounds each, {time.strftime('%Y-%m-%d')}")
    print(
        f"{'run':12} {'round, s':>9} {'waiting, s: median':>19} {'worst':>7} {'busy share':>11} "
        f"{'attempts a round':>17} {'states':>7}"
    )
    for name, committed in rows:
        print(_row(name, committed))
    print(f"goal: median under {GOAL_S} s; one state a round")
    return 0


def _row(name: str, committed: dict[str, list[dict[str, Any]]]) -> str:
    events = [event for peer in committed.values() for event in peer if event["took_part"] and event["round"] > 1]
    waits = [event["waited_s"] for event in events]
    lengths = [
        later["time"] - earlier["time"] for peer in committed.values() for earlier, later in itertools.pairwise(peer)
    ]
    states: dict[int, set[str]] = {}
    for event in events:
        states.setdefault(event["round"], set()).add(event["state"])
    busy = 1 - statistics.mean(waits) / statistics.mean(lengths)
    attempts = statistics.mean(event["attempts"] for event in events)
    most = max(len(found) for found in states.values())
    return (
        f"{name:12} {statistics.median(lengths):9.2f} {statistics.median(waits):19.2f} {max(waits):7.2f} "
        f"{busy:11.1%} {attempts:17.2f} {most:7d}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
