"""Which Potluck this is: its version, and the commit that it was made of.

A build writes the commit into `protocol/commit.txt` (setup.py, which imports this module and nothing else of ours); a
checkout has none, and is asked itself. Reads files only, and starts no git.

>>> Release("0.1.0", "ab12cd34" * 5), Release("0.1.0", "ab12cd34" * 5, checkout=True), Release("0.1.0", "")
(potluck 0.1.0, commit ab12cd34ab12, potluck 0.1.0, checkout ab12cd34ab12, potluck 0.1.0, commit unknown)
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from protocol import __version__

STAMP = "commit.txt"  # beside this module, in what was built
MAX_RELEASE_CHARS = 100  # of one as another side names it
_SHOWN = 12  # hex digits of a commit
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_MOST_BYTES = 8 << 20  # of one file of git's
_REFERENCES = 5  # that one may lead to the next


class Release(NamedTuple):
    """A version and where it comes from."""

    version: str
    commit: str  # 40 hex digits; empty: not known
    checkout: bool = False  # run from one: its files may have been changed since that commit

    def __str__(self) -> str:
        if not self.commit:
            return f"potluck {self.version}, commit unknown"
        return f"potluck {self.version}, {'checkout' if self.checkout else 'commit'} {self.commit[:_SHOWN]}"

    def __repr__(self) -> str:
        return str(self)


def this_release() -> Release:
    """The one that runs here."""
    here = Path(__file__).resolve().parent
    stamped = _text(here / STAMP).strip()
    if _COMMIT.fullmatch(stamped):
        return Release(__version__, stamped)
    commit = commit_of(here.parent)
    return Release(__version__, commit, checkout=bool(commit))


def commit_of(checkout: Path) -> str:
    """The commit that a checkout, or a worktree of one, is at; empty when it is none, or has no commit yet."""
    git = checkout / ".git"
    if git.is_file():  # a worktree or a submodule
        git = checkout / _text(git).removeprefix("gitdir:").strip()
    shared = git / (_text(git / "commondir").strip() or ".")
    said = _text(git / "HEAD").strip()
    for _ in range(_REFERENCES):
        if not said.startswith("ref:"):
            break
        name = said.removeprefix("ref:").strip()
        said = _text(git / name).strip() or _text(shared / name).strip() or _packed(shared, name)
    return said if _COMMIT.fullmatch(said) else ""


def _packed(git: Path, name: str) -> str:
    """A reference that has no file of its own."""
    for line in _text(git / "packed-refs").splitlines():
        commit, _, reference = line.partition(" ")
        if reference == name:
            return commit
    return ""


def _text(path: Path) -> str:
    """What stands in a small file; nothing when it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES).decode(errors="replace")
    except OSError:
        return ""
