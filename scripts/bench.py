"""Runs the benchmarks, one table each. `scripts/bench` calls it.

    scripts/bench                       every table that takes minutes, with its defaults
    scripts/bench alone --pairs 20      one table, with its options

A table is a module scripts/tables/NAME.py, with `main(arguments: list[str]) -> int` that prints it.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys

import scripts.tables

LONG = (
    "attackers",
    "chat",
    "churn",
    "poison",
    "wan",
)  # half an hour, half an hour, half an hour, a third of one, a day: only when they are named


def tables() -> list[str]:
    """Names of all tables, in the order in which they are run."""
    return sorted(module.name for module in pkgutil.iter_modules(scripts.tables.__path__))


def main(arguments: list[str]) -> int:
    if arguments and arguments[0] in ("-h", "--help"):
        print(__doc__.strip() + "\n\ntables: " + ", ".join(tables()))
        return 0
    if arguments and arguments[0] not in tables():
        print(f"error: no table {arguments[0]!r}\nhint: tables are {', '.join(tables())}", file=sys.stderr)
        return 2
    names = arguments[:1] or [name for name in tables() if name not in LONG]
    return max(importlib.import_module(f"scripts.tables.{name}").main(arguments[1:]) for name in names)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
