"""ARCHITECTURE.md names every room and module of the product, and nothing that is not there.

The tree is the last fenced block of the page. A line that begins with a folder is a room; the indented lines below it
name its files, before a colon: modules without `.py`, other files whole. A room of `ROOMS` names all of them.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
ROOMS = ("commands", "protocol", "peer", "coordinator")
GENERATED = re.compile(r"_pb2(_grpc)?\.pyi?$|^py\.typed$|^__init__\.py$")


def tree() -> dict[str, list[str]]:
    """Room -> what its lines name; for a file at the top: no names."""
    block = (REPOSITORY / "ARCHITECTURE.md").read_text(encoding="utf-8").split("```")[-2]
    rooms: dict[str, list[str]] = {}
    for line in block.strip("\n").splitlines():
        if line.startswith(" "):
            names, colon, _ = line.partition(":")
            assert colon, f"expected `names: what they are`, got {line!r}"
            rooms[list(rooms)[-1]] += names.split()
        else:
            rooms[line.split()[0].rstrip("/")] = []
    return rooms


def files(room: Path) -> set[str]:
    """As the tree names them; none where there is no such folder."""
    found = {path.name for path in room.glob("*") if path.is_file() and not GENERATED.search(path.name)}
    return {name.removesuffix(".py") for name in found}


def product_rooms() -> set[str]:
    folders = {path.parent for room in ROOMS for path in (REPOSITORY / room).rglob("*.py")}
    return {folder.relative_to(REPOSITORY).as_posix() for folder in folders}


def test_the_tree_names_every_room_and_nothing_else() -> None:
    rooms = tree()
    assert {room for room in rooms if room.split("/")[0] in ROOMS} == product_rooms()
    assert [room for room in rooms if not (REPOSITORY / room).exists()] == []


@pytest.mark.parametrize("room", sorted(room for room in tree() if room.split("/")[0] in ROOMS))
def test_a_room_names_each_of_its_modules_once(room: str) -> None:
    named = tree()[room]
    there = files(REPOSITORY / room)
    assert sorted(named) == sorted(set(named)), "a module is named twice"
    assert set(named) - there == set(), "named in ARCHITECTURE.md, and not there"
    assert there - set(named) == set(), "there, and not named in ARCHITECTURE.md"
