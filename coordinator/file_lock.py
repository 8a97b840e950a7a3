"""A folder that one process at a time may use: a lock on a file in it, which says who holds it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol.disk import disk_error
from protocol.errors import InputError


@contextmanager
def held(lock: Path, taken: Callable[[str], InputError]) -> Iterator[None]:
    """Hold a file; the system lets go of it when the process ends, however it ends.

    Args:
        taken: the error to raise where another process, whose number it gets, holds it.

    Raises:
        InputError: that, or the disk is full.
    """
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise disk_error(lock, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise taken(os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown") from error
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            raise disk_error(lock, error) from error
        yield
    finally:
        os.close(descriptor)
