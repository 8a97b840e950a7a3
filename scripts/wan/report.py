"""The table and the plot of `scripts/bench wan`. Pure but for the file that is drawn.

>>> crossing([(0.0, 5.0), (10.0, 4.0), (20.0, 3.0)], 3.5)
20.0
>>> crossing([(0.0, 5.0)], 3.5) is None
True
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OURS = "potluck"
TARGET_SHARE = 0.8  # of the ideal arm's budget, at which its loss is the target
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Outcome:
    """What one run of one arm came to.

    Args:
        up_bytes, down_bytes: through a peer's interface, mean of the peers.
        busy: share of the wall time that a training thread works.
        late: share of it that steps took longer than they should: above a few hundredths, the machine was too slow.
        points: (seconds since all peers stood ready, held-out loss).
        problems: what the processes complained of.
    """

    arm: str
    kind: str
    line: str
    variant: str
    seed: int
    lr: float
    wall_s: float
    tokens: int
    up_bytes: float
    down_bytes: float
    busy: float
    late: float
    points: Points
    problems: Sequence[str] = field(default_factory=list)

    @property
    def bytes_per_token(self) -> float:
        """Of a peer, both ways, for each token that all peers trained on."""
        return (self.up_bytes + self.down_bytes) / max(1, self.tokens)


def crossing(points: Points, target: float) -> float | None:
    """When there first was a model with this loss: between two exchanges there is none, so nothing is interpolated."""
    return next((at for at, loss in points if loss <= target), None)


def sooner(points: Points, ours: Points) -> tuple[float, float] | None:
    """When `ours` was as good as the other arm ever got, and how many times sooner that was; None: never.

    >>> sooner([(0.0, 5.0), (60.0, 4.5), (90.0, 4.6)], [(0.0, 5.0), (10.0, 4.7), (20.0, 4.4)])
    (20.0, 3.0)
    """
    at, best = min(points, key=lambda point: point[1])
    found = crossing(ours, best)
    return (found, at / found) if found and at else None


def value_at(points: Points, at: float) -> float:
    """A curve's value, on straight lines between its points."""
    for (first, loss), (second, next_loss) in itertools.pairwise(points):
        if first <= at <= second:
            return loss + (next_loss - loss) * (at - first) / (second - first)
    return points[-1][1]


def targets(outcomes: Iterable[Outcome]) -> dict[tuple[str, int], float]:
    """(kind, seed) -> the loss to reach."""
    ideal = [item for item in outcomes if item.arm == "ideal"]
    return {(item.kind, item.seed): value_at(item.points, TARGET_SHARE * item.points[-1][0]) for item in ideal}


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """Rows for people, seeds averaged."""
    goal = targets(outcomes)
    final = {(item.kind, item.seed): item.points[-1][1] for item in outcomes if item.arm == "ideal"}
    ideal_s = {
        key: crossing(item.points, goal[key])
        for item in outcomes
        if item.arm == "ideal"
        for key in [(item.kind, item.seed)]
    }
    groups: dict[tuple[str, str, str, str], list[Outcome]] = {}
    for item in outcomes:
        groups.setdefault((item.kind, item.line, item.variant, item.arm), []).append(item)
    ours = {(item.kind, item.line, item.variant, item.seed): item.points for item in outcomes if item.arm == OURS}
    rows = [
        "| method | line | peers | arm | lr | whole run, s | s to the loss | of ideal's | kB up | kB down "
        "| bytes/token | busy | final loss | against ideal | ours as good after, s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (kind, line, variant, arm), items in groups.items():
        reached = [(crossing(item.points, goal[kind, item.seed]), ideal_s[kind, item.seed]) for item in items]
        times = [(at, best) for at, best in reached if at is not None and best]
        ratio = f"{statistics.mean(at / best for at, best in times):.2f}" if times else "–"
        against = statistics.mean(item.points[-1][1] / final[kind, item.seed] - 1 for item in items)
        cells = [
            kind, line, variant, arm, f"{items[0].lr:g}", _mean(items, lambda item: item.wall_s, ".0f"),
            _times([at for at, _ in reached]), ratio,
            _mean(items, lambda item: item.up_bytes / 1e3, ".0f"),
            _mean(items, lambda item: item.down_bytes / 1e3, ".0f"),
            _mean(items, lambda item: item.bytes_per_token, ".2f"), _mean(items, lambda item: item.busy, ".1%"),
            _mean(items, lambda item: item.points[-1][1], ".4f"), f"{against:+.2%}",
            _as_good(items, ours) if arm not in ("ideal", OURS) else "",
        ]  # fmt: skip
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def _as_good(items: Sequence[Outcome], ours: Mapping[tuple[str, str, str, int], Points]) -> str:
    found = [sooner(item.points, ours.get((item.kind, item.line, item.variant, item.seed), [])) for item in items]
    times = [item for item in found if item]
    if not times:
        return ""
    at, ratio = (statistics.mean(values) for values in zip(*times, strict=True))
    return f"{at:.0f} ({ratio:.1f} times sooner)"


def _times(found: Sequence[float | None]) -> str:
    reached = [at for at in found if at is not None]
    if not reached:
        return "not reached"
    missed = f" ({len(reached)} of {len(found)})" if len(reached) < len(found) else ""
    spread = f" ({min(reached):.0f} to {max(reached):.0f})" if len(reached) > 1 else ""
    return f"{statistics.mean(reached):.0f}{missed or spread}"


def _mean(items: Sequence[Outcome], of: Any, form: str) -> str:
    return format(statistics.mean(of(item) for item in items), form)


def draw(outcomes: Sequence[Outcome], path: Path, compress: float) -> None:
    """Held-out loss against time: a panel for each method, line and variant."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ideal = [item for item in outcomes if item.arm == "ideal"]
    panels = list(dict.fromkeys((item.kind, item.line, item.variant) for item in outcomes if item.arm != "ideal"))
    panels = panels or [(item.kind, item.line, item.variant) for item in ideal[:1]]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(6 * columns, 4.2 * rows), squeeze=False)
    arms = list(dict.fromkeys(item.arm for item in outcomes))
    goal = targets(outcomes)
    for number, (kind, line, variant) in enumerate(panels):
        at = axes[number // columns][number % columns]
        shown = [item for item in ideal if item.kind == kind]
        shown += [item for item in outcomes if (item.kind, item.line, item.variant) == (kind, line, variant)]
        for item in shown:
            first = next(other.seed for other in shown if other.arm == item.arm) == item.seed
            at.plot(
                [seconds * compress / 3600 for seconds, _ in item.points], [loss for _, loss in item.points],
                drawstyle="default" if item.arm == "ideal" else "steps-post", color=f"C{arms.index(item.arm)}",
                label=item.arm if first else None, linewidth=1.3,
            )  # fmt: skip
        for (of, _), loss in goal.items():
            if of == kind:
                at.axhline(loss, color="grey", linewidth=0.6, linestyle=":")
        at.set(title=f"{kind}, {line}, {variant}", xlabel="hours of the real case", ylabel="held-out loss")
        at.legend(fontsize=7)
    for number in range(len(panels), rows * columns):
        axes[number // columns][number % columns].axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
