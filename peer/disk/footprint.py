"""What Potluck keeps in a home, how much of the disk that is, and how it is removed. `potluck uninstall` calls it.

Only what is known to be Potluck's is removed, by its name and what it is: a home may be any folder of its owner's. A
run's folder is ours where a peer's lock, run card or receipts lie in it; what else lies beside those stays. Links are
taken away and never followed, so what they lead to stays.

    identity  identity.<8 letters>  exported.json     kept, and each run's receipts/: they prove an owner's credit
    trusted.json  limits.toml  traffic.json           removed, and
    runs/<16 hex>/<names of peer.disk.peer_folder>  service/<16 hex>.*

>>> import tempfile
>>> from protocol.keys import PeerIdentity
>>> home = Path(tempfile.mkdtemp())
>>> _ = (home / "identity").write_bytes(PeerIdentity.generate().to_bytes())
>>> _ = (home / "trusted.json").write_text('{"roots":{}}')
>>> [(item.path.name, item.size_bytes, item.kept) for item in look(home, everything=False)]
[('identity', 68, True), ('trusted.json', 12, False)]
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
from protocol.errors import FormatError, InputError
from protocol.keys import PeerIdentity
from protocol.trust import trusted_roots

_RUN = re.compile(r"[0-9a-f]{16}")
_IDENTITY = re.compile(r"identity(\.\w{8})?")  # those that were put aside, too
_SERVICE = re.compile(r"[0-9a-f]{16}\.(invite|log(\.\d+)?)")
_RECEIPTS = "receipts"
_MARKS = {"lock", "run-card.json", _RECEIPTS}  # of which each run's folder has one
_LEFT = re.compile(r"\.(.+)\.potluck\.new")  # by a crash while it was written: `protocol.disk.write_file`
_FILES = re.compile(
    r"(lock|run-card\.json|root\.pem|certificate|addresses\.json|ballots\.json|rounds\.jsonl|micro-batch\.json"
    r"|optimizer\.safetensors|paused\.json|traffic\.json|control)(\.new|\.damaged)?"
)
_OF_HOME = re.compile(r"limits\.toml|traffic\.json")
_FOLDERS = re.compile(r"step-\d{6}|base-model|data|states|outbox|receipts|damaged")


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


def others(home: Path, items: list[Item]) -> list[Path]:
    """What lies in a home, and in what of it is ours, and is not Potluck's: it stays."""
    known = {item.path for item in items}
    ours = [run for run in _entries(home / "runs") if _is_run(run) and run not in known]
    folders = [home, *(folder for folder in (home / "runs", home / "service") if not folder.is_symlink()), *ours]
    found = {path for folder in folders for path in _entries(folder)}
    return sorted(found - known - set(folders))


def _items(home: Path, everything: bool) -> Iterator[Item]:
    for path in _entries(home):
        if (_IDENTITY.fullmatch(path.name) and _is_identity(path)) or (path.name == "exported.json" and _is_file(path)):
            yield _item(path, kept=not everything)
        elif (path.name == "trusted.json" and _is_trust(path)) or _is_left(path) or _is_of_home(path):
            yield _item(path, kept=False)
    if not (home / "service").is_symlink():
        for path in _entries(home / "service"):
            if _SERVICE.fullmatch(path.name) and _is_file(path):
                yield _item(path, kept=False)
    runs = [run for run in _entries(home / "runs") if _is_run(run)]
    if (home / "runs").is_symlink():
        if runs:
            yield _item(home / "runs", kept=False)
        return
    for run in runs:
        entries = [] if run.is_symlink() else _entries(run)
        receipts = not everything and any(_entries(run / _RECEIPTS))
        if all(map(_is_of_run, entries)) and (run.is_symlink() or not receipts):
            yield _item(run, kept=False)
            continue
        for path in filter(_is_of_run, entries):
            yield _item(path, kept=receipts and path.name == _RECEIPTS)


def _is_file(path: Path) -> bool:
    """A file, or a link, which is taken away alone."""
    return path.is_symlink() or path.is_file()


def _is_left(path: Path) -> bool:
    """What `write_file` had not made whole."""
    return bool(_LEFT.fullmatch(path.name)) and _is_file(path)


def _is_of_home(path: Path) -> bool:
    return bool(_OF_HOME.fullmatch(path.name)) and _is_file(path)


def _is_identity(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            PeerIdentity.from_bytes(file.read(69))
    except (FormatError, OSError):
        return False
    return True


def _is_trust(path: Path) -> bool:
    try:
        trusted_roots(path.parent)
    except (InputError, AttributeError):
        return False
    return True


def _is_run(path: Path) -> bool:
    """A folder of a run, or a link to one; an empty one was left by a peer that got no further."""
    names = {entry.name for entry in _entries(path)}
    return bool(_RUN.fullmatch(path.name)) and path.is_dir() and (not names or bool(_MARKS & names))


def _is_of_run(path: Path) -> bool:
    if _is_left(path):
        return True
    if path.is_symlink():
        return bool(_FILES.fullmatch(path.name) or _FOLDERS.fullmatch(path.name))
    return bool((_FOLDERS if path.is_dir() else _FILES).fullmatch(path.name))


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
