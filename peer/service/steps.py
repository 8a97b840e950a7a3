"""What installing a service does, as a list that can be shown before it is done: files that are written and deleted,
commands that are run. `Shell` is the only place where a command is started.

>>> list(map(described, [Write(Path("/a/b"), b"x"), Delete(Path("/a/c")), Call(("systemctl", "--user", "start", "d"))]))
['write /a/b', 'delete /a/c', 'run: systemctl --user start d']
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from protocol.disk import disk_error, write_file
from protocol.errors import InputError

COMMAND_S = 180.0  # stopping waits for the peer to leave
_NO_BUS = "Failed to connect to bus"


class Write(NamedTuple):
    """A file that only its owner may read."""

    path: Path
    data: bytes
    secret: bool = False  # it holds an admission code: not shown


class Delete(NamedTuple):
    """A file, if it is there."""

    path: Path


class Call(NamedTuple):
    """A command."""

    command: tuple[str, ...]
    may_fail: bool = False


Step = Write | Delete | Call


class Finished(NamedTuple):
    """A command that has ended."""

    code: int
    output: str = ""  # both streams


class Runner(Protocol):
    """Runs commands; `Shell`, or what a test has instead."""

    def run(self, command: Sequence[str]) -> Finished: ...

    def show(self, command: Sequence[str]) -> int:
        """One whose output goes to the terminal, until it ends; returns its exit code."""


class Shell:
    """This computer's own."""

    def run(self, command: Sequence[str]) -> Finished:
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=COMMAND_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InputError(f"{shlex.join(command)}: {error}") from error
        return Finished(done.returncode, done.stdout)

    def show(self, command: Sequence[str]) -> int:
        try:
            return subprocess.run(command, check=False).returncode
        except OSError as error:
            raise InputError(f"{shlex.join(command)}: {error}") from error


def described(step: Step) -> str:
    """One line about it, for a person."""
    match step:
        case Write(path):
            return f"write {path}"
        case Delete(path):
            return f"delete {path}"
        case Call(command):
            return f"run: {shlex.join(command)}"


def carry_out(steps: Iterable[Step], runner: Runner) -> None:
    """Do them in order. Raises: InputError: one cannot be done; those before it are."""
    for step in steps:
        match step:
            case Write(path, data):
                write_file(path, data, private=True)
            case Delete(path):
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    raise disk_error(path, error) from error
            case Call(command, may_fail):
                done = runner.run(command)
                if done.code and not may_fail:
                    raise _failed(command, done)


def _failed(command: Sequence[str], done: Finished) -> InputError:
    said = (done.output.strip().splitlines() or [f"exit code {done.code}"])[-1]
    hint = ""
    if _NO_BUS in done.output:
        hint = "log in as this user itself, not by su or sudo: only then does systemd serve it"
    elif command[0] == "launchctl":
        hint = "log in on this Mac's own screen once: agents belong to that session"
    return InputError(f"{shlex.join(command)}: {said}", hint)
