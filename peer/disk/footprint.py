"""What Potluck keeps in a home, how much of the disk that is, and how it is removed. `potluck uninstall` calls it.

Only what is known to be Potluck's is removed, by name: a home may be any folder of its owner's. Links are taken away
and never followed, so what they lead to stays.

    identity*  exported.json         kept, and each run's receipts/: they are what proves an owner's credit
    trusted.json                     removed, and
    runs/<16 hex>/  service/<16 hex>.*

>>> import tempfile
>>> home = Path(tempfile.mkdtemp())
>>> _ = (home / "trusted.json").write_text("{}"); _ = (home / "identity").write_bytes(bytes(68))
>>> [(item.path.name, item.size_bytes, item.kept) for item in look(home, everything=False)]
[('identity', 68, True), ('trusted.json', 2, False)]
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from protocol.disk import disk_error

_RUN = re.compile(r"[0-9a-f]{16}")
_IDENTITY = re.compile(r"identity(\.\w+)?|exported\.json")  # those that were put aside, too
_SERVICE = re.compile(r"[0-9a-f]{16}\.(invite|log(\.\d+)?)")
_RECEIPTS = "receipts"


class Item(NamedTuple):
    """A file, or a folder with all that is in it."""

    path: Path
    size_bytes: int
    kept: bool
    link: bool = False  # what it leads to is not touched


def look(home: Path, *, everything: bool) -> list[Item]:
    """What of a home is Potluck's.

    Args:
        everything: identity and receipts are to go as well.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return list(_items(home, everything))
    except OSError as error:
        raise disk_error(home, error) from error


def remove(home: Path, items: list[Item]) -> None:
    """Remove those that are not kept, and folders that are empty then. Raises: InputError: one cannot be removed."""
    for item in items:
        if item.kept:
            continue
        try:
            if item.link or not item.path.is_dir():
                item.path.unlink(missing_ok=True)
            else:
                shutil.rmtree(item.path)  # which follows no links
        except OSError as error:
            raise disk_error(item.path, error) from error
    folders = {item.path.parent for item in items if item.path.parent != home and not item.path.parent.is_symlink()}
    for folder in (*sorted(folders), home / "runs", home / "service", home):
        with contextlib.suppress(OSError):  # it is not empty, a link, or gone
            folder.rmdir()


def others(home: Path, items: list[Item]) -> list[str]:
    """Names in a home that are not Potluck's, and stay."""
    known = {item.path.relative_to(home).parts[0] for item in items} | {"runs", "service"}
    return sorted(set(os.listdir(home)) - known) if home.is_dir() else []


def _items(home: Path, everything: bool) -> Iterator[Item]:
    for path in _entries(home):
        if _IDENTITY.fullmatch(path.name):
            yield _item(path, kept=not everything)
        elif path.name == "trusted.json":
            yield _item(path, kept=False)
    if not (home / "service").is_symlink():
        for path in _entries(home / "service"):
            if _SERVICE.fullmatch(path.name):
                yield _item(path, kept=False)
    if (home / "runs").is_symlink():
        yield _item(home / "runs", kept=False)
        return
    for run in _entries(home / "runs"):
        if not _RUN.fullmatch(run.name):
            continue
        receipts = not everything and not run.is_symlink() and any(_entries(run / _RECEIPTS))
        if not receipts:
            yield _item(run, kept=False)
            continue
        for path in _entries(run):
            yield _item(path, kept=path.name == _RECEIPTS)


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder; nothing, where there is none."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _item(path: Path, *, kept: bool) -> Item:
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        return Item(path, 0, kept, link=True)
    if not stat.S_ISDIR(found.st_mode):
        return Item(path, found.st_size, kept)
    size_bytes = 0
    for folder, _, names in os.walk(path):
        size_bytes += sum(os.lstat(os.path.join(folder, name)).st_size for name in names)
    return Item(path, size_bytes, kept)
