"""The lock of a run folder: held while a peer uses it, and says which process that is.

    lock    {"pid":4711,"start":"8812345"}      start: when the process began, as the system counts it

`peer_folder` takes it, `local_peers` reads it. The kernel lets go of it when its holder ends, however it ends; a
process that has got an old holder's pid is told apart by its start, and never gets a signal that is meant for a peer.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "lock"
    >>> holder(path) is None
    True
    >>> lock = RunLock(path)
    >>> holder(path).pid == os.getpid()
    True
    >>> lock.close()
    >>> holder(path) is None
    True
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from protocol.disk import disk_error
from protocol.errors import InputError, RefusedError

MAX_LOCK_BYTES = 1024
WRITTEN_S = 2.0  # between taking the lock and saying who did
TRIES, TRY_AGAIN_S = 5, 0.1  # whoever looks who holds the lock has it for an instant
PS_S = 10.0


class Process(NamedTuple):
    """A process, and not another one that got its number later."""

    pid: int
    start: str

    def signal(self, number: int) -> bool:
        """Send a signal; False when the process is gone."""
        if start_of(self.pid) != self.start:
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        except PermissionError as error:
            raise RefusedError(f"process {self.pid} belongs to another user", "ask as its owner") from error
        return True


class RunLock:
    """Taken until `close`, or until this process ends.

    Raises:
        InputError: another process has it, or the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise disk_error(path, error) from error
        try:
            self._take()
            me = Process(os.getpid(), start_of(os.getpid()))
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(me._asdict()).encode(), 0)
        except BlockingIOError as error:
            self.close()
            raise InputError(
                f"another peer of this run is using {path.parent}",
                "stop it first (`potluck leave`), or give this one another --home",
            ) from error
        except OSError as error:
            self.close()
            raise disk_error(path, error) from error

    def _take(self) -> None:
        for left in reversed(range(TRIES)):
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if not left:
                    raise
                time.sleep(TRY_AGAIN_S)

    def close(self) -> None:
        os.close(self._descriptor)


def holder(path: Path) -> Process | None:
    """Who holds the lock; None: nobody.

    Raises:
        InputError: somebody does who does not say who it is, or the file cannot be read.
    """
    deadline = time.monotonic() + WRITTEN_S
    while True:
        data = _read_held(path)
        if data is None:
            return None
        process = _parse(data)
        if process is not None and start_of(process.pid) == process.start:
            return process
        if time.monotonic() > deadline:
            raise InputError(
                f"{path}: held by a process that does not say which it is", "end it where it was started, by Ctrl-C"
            )
        time.sleep(0.05)


def start_of(pid: int) -> str:
    """When a process began, in the system's own words; empty when there is none or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return ""
    except ProcessLookupError:
        return ""
    asked = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, timeout=PS_S, check=False
    )
    return asked.stdout.strip()


def _read_held(path: Path) -> bytes | None:
    """What the holder wrote; None when nobody holds the lock."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise disk_error(path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return os.pread(descriptor, MAX_LOCK_BYTES, 0)
    finally:
        os.close(descriptor)


def _parse(data: bytes) -> Process | None:
    try:
        value = json.loads(data)
        return Process(int(value["pid"]), str(value["start"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
