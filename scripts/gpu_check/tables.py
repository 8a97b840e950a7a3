"""Rows of a section, and how they are shown: a markdown table each, a line as soon as it is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Args:
        label: the first column.
        values: column -> number, word or None; columns that are missing stay empty.
        why_not: why there are none: "failed: ...", "not installed: ...", "not run: ...".
    """

    label: str
    values: Mapping[str, Any]
    why_not: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"label": self.label, **self.values} | ({"why_not": self.why_not} if self.why_not else {})


def head(title: str, columns: Sequence[str]) -> str:
    """What stands above a section's rows."""
    return f"\n## {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def line(row: Row, columns: Sequence[str]) -> str:
    """A row of the table; the first column is the label.

    >>> line(Row("full", {"s": 0.123456, "same": True}), ("what", "s", "same", "loss"))
    '| full | 0.1235 | yes | |'
    >>> line(Row("nf4", {}, "not installed: bitsandbytes"), ("what", "s", "loss"))
    '| nf4 | not installed: bitsandbytes | |'
    """
    cells = [shown(row.values.get(column)) for column in columns[1:]]
    if row.why_not:
        cells[0] = row.why_not.replace("|", "/").replace("\n", " ")
    return "".join(f"| {cell} " if cell else "| " for cell in (row.label, *cells)) + "|"


def shown(value: Any) -> str:
    """
    >>> [shown(value) for value in (12345.6, 3.14159, 0.99999123, 1.5e-7, True, None, "int4", 7)]
    ['12,346', '3.142', '0.999991', '1.5e-07', 'yes', '', 'int4', '7']
    """
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        near_one = 0.99 < abs(value) < 1 and value != 1
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6f}" if near_one else f"{value:.4g}"
    return "" if value is None else str(value)


def failed(error: BaseException) -> str:
    """Why a measurement came to nothing: the first line of what was raised."""
    text = str(error).strip().partition("\n")[0]
    return f"failed: {type(error).__name__}{': ' if text else ''}{text[:160]}"
