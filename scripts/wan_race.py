"""Runs one arm of `scripts/bench wan` in the WAN lab, and says what it came to.

The lines are set when all peers stand ready, so nobody is charged for fetching the model and the text. Stock peers begin
together; Potluck's each when it is ready, so its clock starts at the mean of these times. States are kept on the way and
evaluated afterwards, when nothing else runs. An arm ends when its peers have used up the token budget, or at `limit_s`,
whichever is first.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from small_community import Inputs
from wan_arms import PRESETS
from wan_others import run_others
from wan_ours import run_ours
from wan_plan import Course
from wan_report import Outcome
from wan_scale import PEERS
from wan_training import Bench
from warm_start import WarmStart

from peer.training.state import SharedState

MOST_EVALUATIONS = 60


def race(course: Course, inputs: Inputs, folder: Path, judge: Bench, starter: WarmStart) -> Outcome:
    """Run one arm, evaluate what it made.

    Raises:
        AssertionError: its processes did not get ready.
    """
    folder.mkdir(parents=True)
    ours = course.arm in PRESETS
    trace = run_ours(course, inputs, folder, starter) if ours else run_others(course, inputs, folder)
    wall_s = trace.ended - trace.started
    sent = [
        (after.bytes_up - before.bytes_up, after.bytes_down - before.bytes_down)
        for before, after in trace.counters.values()
    ]
    points = [(0.0, judge.loss_of(judge.genesis.parameters))]
    for at, path in _some(trace.states):
        points.append((at - trace.started, judge.loss_of(SharedState.load(path).parameters)))
    shutil.rmtree(folder)
    return Outcome(
        course.arm, course.kind, course.line, course.variant, course.seed, course.lr,
        wall_s, trace.tokens, sum(up for up, _ in sent) / PEERS, sum(down for _, down in sent) / PEERS,
        trace.busy, trace.late_s / wall_s, points, trace.problems[:20],
    )  # fmt: skip


def _some(states: list[tuple[float, Path]]) -> list[tuple[float, Path]]:
    """At most so many, evenly, the last one among them."""
    step = max(1, -(-len(states) // MOST_EVALUATIONS))
    return states[::-1][::step][::-1]
