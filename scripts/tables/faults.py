"""Real peers broken at chosen instants of a round, stage x kind, and what the others made of it.

Five peers and a coordinator (three in the WAN lab, where cables are cut), a process each, with a tiny model and rounds
of a second: see `lab.fault_scenarios`. A row says what the survivors saw, how many attempts at a round came to nothing,
when the next round was agreed, how much state had to be handed over, and when the victim took part again. Afterwards
every round must have one state, and no claim may have been credited twice.

    scripts/bench faults --only freeze --json faults.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lab.fault_scenarios import LAB_NAMES, SCENARIOS, FaultCommunity, Row, Scenario
from lab.outcomes import counted_twice, divergences
from lab.small_community import Inputs, tiny_inputs
from lab.wan.lab import Host, WanLab, available
from lab.warm_start import WarmStart

HOME = Host(delay_ms=20, jitter_ms=2, up_mbit=20, down_mbit=100)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench faults", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="scenarios whose stage or kind has this in it")
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    options = parser.parse_args(arguments)
    wanted = [item for item in SCENARIOS if options.only in f"{item.stage} {item.kind}"]
    rows: list[Row] = []
    twice: list[Any] = []
    with tempfile.TemporaryDirectory() as folder, WarmStart() as starter:
        inputs = tiny_inputs(Path(folder) / "inputs")
        for lab in (False, True):
            scenarios = [item for item in wanted if item.lab == lab]
            if lab and scenarios and (reason := available()):
                names = ", ".join(f"{item.stage}: {item.kind}" for item in scenarios)
                sys.stderr.write(f"skipped, there is no WAN lab here ({reason}): {names}\n")
            elif scenarios:
                made, found = play(scenarios, Path(folder) / ("lab" if lab else "here"), inputs, starter, lab=lab)
                rows += made
                twice += found
    print(f"\nreal processes, tiny model, rounds of a second (3 s over home lines), {time.strftime('%Y-%m-%d')}\n")
    print(Row.header())
    for row in rows:
        print(row.to_markdown())
    good = all(row.one_state for row in rows) and not twice
    print(f"\nclaims credited twice: {len(twice)}; goal: none, and one state everywhere")
    if options.json:
        options.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=2) + "\n")
    return 0 if good else 1


def play(
    scenarios: list[Scenario], folder: Path, inputs: Inputs, starter: WarmStart, *, lab: bool
) -> tuple[list[Row], list[tuple[int, str]]]:
    """The rows, and what was credited twice."""
    folder.mkdir()
    with ExitStack() as stack:
        lines = stack.enter_context(WanLab(dict.fromkeys(("host", *LAB_NAMES), HOME))) if lab else None
        community = stack.enter_context(FaultCommunity(folder, inputs, starter, lines))
        rows = []
        for scenario in scenarios:
            sys.stderr.write(f"{scenario.stage}: {scenario.kind} …\n")
            rows.append(community.play(scenario))
        assert not divergences(community.every_part)
        return rows, counted_twice(community.run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
