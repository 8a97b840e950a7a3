"""What a hostile case is, and what several kinds of them do to a run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.kit.builders import Run

ANYONE, OTHER_KEY, HOST = "anyone", "another key", "the host"
EMBED, NORM = "model.embed.weight", "model.norm.weight"
NAN, INFINITY = float("nan"), float("inf")
Make = Callable[[Run, Path], Any]  # (run, the folder step-000003 or the receipt file)


@dataclasses.dataclass(frozen=True)
class Case:
    """One hostile checkpoint folder or receipt."""

    what: str
    by: str
    make: Make


class Cases(list[Case]):
    """Those of one kind, in the order in which they are added."""

    def add(self, what: str, by: str) -> Callable[[Make], Make]:
        def register(make: Make) -> Make:
            self.append(Case(what, by, make))
            return make

        return register


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def info_of(step: Path) -> dict[str, Any]:
    return json.loads((step / "model/checkpoint.json").read_bytes())


def values_of(count: int, value: float = 0.5) -> list[float]:
    return [value] * count


GOOD = {EMBED: ((8, 4), values_of(32)), NORM: ((4,), values_of(4))}
