"""What a round costs a member besides training and the update's own bytes, in communities of 4, 16 and 64.

Light members: the whole protocol between real processes, an update of 16 kB, no training, all in one group. Processor
time is what each member's process and its p2pd used from one agreement to the next; *exchange* is what of it fell
between the hand-over of its work and the agreement, the rest is gossip while it works. Control is every byte on its
streams but for parts of updates, averages and states. *Busy* is the machine's share that they took; near 100 % they
miss each other's deadlines, so where there are many, their clocks are slowed down (`--slower`): times are by theirs.

    scripts/bench control --members 4,16,64 --slower 1,2,16 --rounds 20 --json control.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from lab.light.community import run
from lab.light.log import Cost
from lab.light.plan import Plan

MAX_GROUP = 64
WARM_UP = 3  # rounds in which members still find each other
SPARE_TIMES = 4.0  # a round may take so many times what it should, on a busy machine


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench control", description=__doc__.splitlines()[0])
    parser.add_argument("--members", default="4,16,64", help="sizes of community, at most 64")
    parser.add_argument("--slower", default="1,2,16", help="how many times slower the clock of each size goes")
    parser.add_argument("--rounds", type=int, default=20, help="that are measured")
    parser.add_argument("--round-s", type=float, default=20.0, help="seconds of work in a round")
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    options = parser.parse_args(arguments)
    costs = []
    print(f"rounds of {options.round_s:g} s of work, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}")
    print("                                     processor time, ms                  control, kB")
    print(
        "members  round, s  group  attempts  python   p2pd   both  exchange     sent  received  exchange  streams  busy"
    )
    for members, slower in zip(options.members.split(","), options.slower.split(","), strict=True):
        rounds = WARM_UP + options.rounds
        plan = Plan(int(members), MAX_GROUP, rounds, options.round_s, step_s=1.0, slower=float(slower))
        with tempfile.TemporaryDirectory() as folder:
            logs = run(plan, Path(folder), SPARE_TIMES * plan.rounds * options.round_s)
            memory = json.loads((Path(folder) / "memory.json").read_text())
        costs.append(Cost.between(logs, WARM_UP, plan.rounds))
        print(_row(costs[-1], plan.slower), flush=True)
        python_mb, p2pd_mb = (sum(sizes) / plan.members for sizes in zip(*memory, strict=True))
        print(f"         memory of each, MB: {python_mb:.0f} python, {p2pd_mb:.0f} p2pd", flush=True)
        if options.json:
            options.json.write_text(json.dumps([dataclasses.asdict(cost) for cost in costs], indent=1) + "\n")
    return 0


def _row(cost: Cost, slower: float) -> str:
    both_s = cost.python_s + cost.p2pd_s
    busy = cost.members * both_s / (cost.round_s * slower * (os.cpu_count() or 1))
    return (
        f"{cost.members:7} {cost.round_s:9.1f} {cost.group:6.1f} {cost.attempts:9.2f} {1000 * cost.python_s:7.0f} "
        f"{1000 * cost.p2pd_s:6.0f} {1000 * both_s:6.0f} {1000 * cost.exchange_s:9.0f} {cost.sent / 1000:8.1f} "
        f"{cost.received / 1000:9.1f} {cost.exchange_bytes / 1000:9.1f} {sum(cost.opened.values()):8.0f} {busy:5.0%}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
