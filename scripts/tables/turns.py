"""Whether a run that is larger than a group is fair: 24 light members in groups of 8.

Real processes without training (`lab.light`). A member's share is its part of all seats in the rounds. Done is what its
trainer handed over up to the last round that it was in, counted what its claims in the agreements say of that: what a
late update counts less is lost, and so is what was dropped. What was done since waits for the next turn. Weight is what
the agreements gave it.

    scripts/bench turns --members 24 --max-group 8 --rounds 60

Goal: each in its share of the rounds within 20 %, nothing lost, one state a round.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from lab.light.community import run
from lab.light.log import Turns
from lab.light.plan import Plan

GOAL = 0.2  # of a member's share
ROUND_MOST_S = 20.0  # on a busy machine


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench turns", description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=24)
    parser.add_argument("--max-group", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--round-s", type=float, default=1.5, help="seconds of work in a round")
    parser.add_argument("--keep", type=Path, help="leave the members' logs in this folder")
    options = parser.parse_args(arguments)
    plan = Plan(options.members, options.max_group, options.rounds, options.round_s)
    with tempfile.TemporaryDirectory() as folder:
        kept = options.keep or Path(folder)
        kept.mkdir(parents=True, exist_ok=True)
        found = Turns.of(run(plan, kept, ROUND_MOST_S * plan.rounds))
    print(f"{plan.members} members in groups of {plan.max_group}, {plan.rounds} rounds, {time.strftime('%Y-%m-%d')}")
    print("member  in rounds  share    off by  tokens done  counted    lost  waiting   weight")
    for turn in found.turns:
        lost = 1 - turn.counted / turn.done if turn.done else 0.0
        print(
            f"{turn.index:6} {turn.taken:10} {turn.due:6.1f} {turn.off:+9.0%} {turn.done:12} {turn.counted:8} "
            f"{lost:7.1%} {turn.waiting:8} {turn.weight:8}"
        )
    print(
        f"worst {found.worst:.0%} off its share; {found.lost:.1%} of the work lost; "
        f"{len(found.divided)} rounds with two states"
    )
    print(
        f"{sum(found.groups.values()) / len(found.groups):.1f} in a round, {found.attempts:.2f} attempts, "
        f"{found.round_s:.1f} s"
    )
    print(f"goal: within {GOAL:.0%}, nothing lost, one state a round")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
