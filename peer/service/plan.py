"""What a service runs: one peer, of one run, in one home.

The invite holds an admission code. So it lies in a file that only its owner may read, and what stands in units, in
process lists and in `--dry-run` is the path of that file.

    <home>/service/<run digest, 16 hex>.invite
    <home>/service/<run digest, 16 hex>.log      on macOS, where nothing else keeps and rotates what a peer says
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from peer.service.steps import Delete, Write
from protocol.errors import InputError
from protocol.invite import Invite

STOP_S = 90  # that leaving may take before the peer is killed, which harms nobody
NICE = 10
# what `potluck join` ends with where another start would not help: the run is over or its owner left; the answer is no;
# left, and the run waits for this peer; left by a signal before training began
ENDED, REFUSED, LEFT = 0, 1, (4, 130, 143)
# what Python is given to be `potluck`. In the middle of an upgrade it may not find all of it, and would end with 1,
# which means no, and nothing would start the peer again: so that is a failure like others
START = (
    "-P",
    "-c",
    "import os, sys; sys.excepthook = lambda kind, *rest: "
    "(sys.__excepthook__(kind, *rest), issubclass(kind, Exception) and os._exit(5)); "  # as PartFailed
    "from potluck import main; main()",
)
_NAME = re.compile(r"potluck-(?P<run>[0-9a-f]{16})-(?P<home>[0-9a-f]{8})")


@dataclass(frozen=True)
class ServicePlan:
    """One service."""

    invite: Invite
    home: Path  # absolute
    program: tuple[str, ...]  # that `potluck` is, by absolute path
    options: tuple[str, ...] = ()  # of `potluck join`
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for text in (*self.program, *self.options, str(self.home), *self.environment.values()):
            if not text.isprintable() or text.endswith("\\") or (text == self.program[0] and set(text) & set("\"'\\")):
                raise InputError(f"{text!r}: a unit cannot hold this", "use names without quotes and line ends")

    @property
    def name(self) -> str:
        return service_name(self.home, self.invite.run)

    @property
    def join(self) -> tuple[str, ...]:
        """The arguments of `potluck join`."""
        return (str(self.keep_invite.path), "--yes", "--home", str(self.home), *self.options)

    @property
    def keep_invite(self) -> Write:
        return Write(invite_file(self.home, self.invite.run), f"{self.invite}\n".encode(), secret=True)

    @property
    def log(self) -> Path:
        return log_file(self.home, self.invite.run)


def service_name(home: Path, run: str) -> str:
    return f"potluck-{run[:16]}-{home_mark(home)}"


def home_mark(home: Path) -> str:
    """What names of services have of a home, so that two homes may be in one run."""
    return hashlib.sha256(str(home).encode()).hexdigest()[:8]


def invite_file(home: Path, run: str) -> Path:
    return home / "service" / f"{run[:16]}.invite"


def log_file(home: Path, run: str) -> Path:
    return home / "service" / f"{run[:16]}.log"


def forget(home: Path, run: str) -> Delete:
    """The step that deletes a service's invite."""
    return Delete(invite_file(home, run))


def runs_among(names: Iterable[str], home: Path) -> list[str]:
    """Of names of services those of a home: the first 16 hex digits of their runs.

    >>> runs_among(["potluck-00112233445566ff-" + home_mark(Path("/h")), "potluck-x", "cron"], Path("/h"))
    ['00112233445566ff']
    """
    found = (_NAME.fullmatch(name) for name in sorted(names))
    return [match["run"] for match in found if match is not None and match["home"] == home_mark(home)]
