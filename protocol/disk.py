"""Writing files that must not be lost: whole or not at all, made to last, with an error that says what to do."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from protocol.errors import InputError


def write_file(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write a file whole or not at all; when this returns, a power cut does not take it away.

    Args:
        path: its folder is made when it is not there.
        private: only its owner may read it.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if private else 0o666)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise disk_error(path, error) from error


def set_aside(path: Path, folder: Path) -> Path:
    """Move what is damaged into `folder`, beside what was moved there before; returns where it is now.

    Raises:
        InputError: it cannot be moved.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / path.name
        for number in range(1, 1000):
            if not os.path.lexists(target):
                break
            target = folder / f"{path.name}.{number}"
        os.replace(path, target)
        return target
    except OSError as error:
        raise disk_error(path, error) from error


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, last."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_error(path: Path, error: OSError) -> InputError:
    """What to tell a person when a file cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputError(f"{path}: the disk is full", "free some space; nothing is lost, it goes on from here")
    return InputError(
        f"{path}: cannot be written: {error.strerror or error}", "check the folder's owner and permissions"
    )
