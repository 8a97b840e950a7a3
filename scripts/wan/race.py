"""Runs one arm of `scripts/bench wan` in the WAN lab, and says what it came to.

The lines are set when all peers stand ready, so nobody is charged for fetching the model and the text. Stock peers
begin together; Potluck's each when it is ready, so its clock starts at the mean of these times. States are kept on the
way and evaluated afterwards, when nothing else runs. An arm ends when its peers have used up the token budget, or at
`limit_s`, whichever is first.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from lab.small_community import Inputs
from lab.warm_start import WarmStart
from peer.disk.kept_states import AVERAGE
from peer.sync.averages import Average
from peer.training.state import SharedState
from scripts.wan.arms import PRESETS
from scripts.wan.others import run_others
from scripts.wan.ours import run_ours
from scripts.wan.plan import Course
from scripts.wan.report import Outcome
from scripts.wan.scale import PEERS
from scripts.wan.trace import Trace
from scripts.wan.training import Bench

MOST_EVALUATIONS = 40


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
    wanted = _some([at for at, _ in trace.states])
    for at, state in _states(trace, judge.genesis):
        if at in wanted:
            points.append((at - trace.started, judge.loss_of(state.parameters)))
    shutil.rmtree(folder)
    return Outcome(
        course.arm, course.kind, course.line, course.variant, course.seed, course.lr,
        wall_s, trace.tokens, sum(up for up, _ in sent) / PEERS, sum(down for _, down in sent) / PEERS,
        trace.busy, trace.late_s / wall_s, points, trace.problems[:20],
    )  # fmt: skip


def _some(times: list[float]) -> set[float]:
    """At most so many, evenly, the last one among them."""
    return set(times[:: -max(1, -(-len(times) // MOST_EVALUATIONS))])


def _states(trace: Trace, state: SharedState) -> Iterator[tuple[float, SharedState]]:
    """All that were kept, one after the other; averages are applied."""
    for at, path in trace.states:
        if path.suffix != AVERAGE:
            state = SharedState.load(path)
        elif path.stem == f"round-{state.round + 1:06d}" and trace.spec is not None:
            state = Average.load(path).applied_to(trace.spec, state)
        else:
            continue  # the one before was not kept in time
        yield at, state
