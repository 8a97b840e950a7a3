"""The loss plot of a run: held-out loss over rounds, with the tokens behind them. `publisher` draws it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from protocol.disk import write_file


def draw_losses(path: Path, name: str, points: Sequence[tuple[int, int, float]]) -> None:
    """Write a PNG.

    Args:
        points: (round, agreed tokens up to it, held-out loss in nats per token), by round.

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # 0.5 s to import
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    rounds = [point[0] for point in points]
    losses = [point[2] for point in points]
    axes.plot(rounds, losses, marker="o", color="#c2410c", linewidth=2)
    for index in {0, len(points) - 1} if points else ():
        axes.annotate(f"{losses[index]:.3f}", (rounds[index], losses[index]), (0, 8), textcoords="offset points")
    axes.set_xlabel("round")
    axes.set_ylabel("held-out loss (nats per token)")
    axes.set_title(f"{name}: trained together")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.15)
    axes.grid(alpha=0.3)
    if len(points) > 1:
        tokens = {point[0]: point[1] for point in points}
        above = axes.secondary_xaxis("top")
        above.set_ticks(rounds if len(rounds) <= 8 else rounds[:: -(-len(rounds) // 8)])
        above.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(tokens.get(round(value), 0))))
        above.set_xlabel("tokens")
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    write_file(path, buffer.getvalue())


def _short(number: int) -> str:
    """
    >>> _short(950), _short(81_920), _short(2_500_000)
    ('950', '82k', '2.5M')
    """
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            scaled = number / size
            return f"{scaled:.1f}{unit}" if scaled < 10 else f"{scaled:.0f}{unit}"
    return str(number)
