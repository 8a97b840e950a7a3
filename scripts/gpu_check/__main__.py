"""Command line of `scripts/gpu-check`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from scripts.gpu_check import course


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu-check",
        description="What a card does with the tensor code, as tables; it ends by itself, and needs no network.",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    parser.add_argument("--small", action="store_true", help="tiny shapes: does every section run to its end?")
    parser.add_argument("--only", help=f"sections, with commas between: {', '.join(course.NAMES)}")
    parser.add_argument("--seconds", type=float, default=420.0, help="for everything; what is left then is not run")
    parser.add_argument("--json", type=Path, help="write all rows there too, after each section")
    options = parser.parse_args(arguments)
    names = options.only.split(",") if options.only else list(course.NAMES)
    unknown = [name for name in names if name not in course.NAMES]
    if unknown:
        parser.error(f"no section {unknown[0]!r}; there are {', '.join(course.NAMES)}")
    try:
        return course.run(names, options.device, options.small, options.seconds, options.json)
    except ImportError as error:
        print(f"error: {error}\nhint: PYTHON=/path/to/python scripts/gpu-check, one with torch", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
