"""Writing files that must not be lost: whole or not at all, made to last, with an error that says what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from protocol.errors import InputError, PotluckError


def write_file(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write a file whole or not at all; when this returns, a power cut does not take it away.

    Until it is whole it is called `.<name>.potluck.new`. What a crash left under that name is removed, and neither
    written into nor followed: it may be readable by others, or a link.

    Args:
        path: its folder is made when it is not there.
        private: only its owner may read it.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.potluck.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        descriptor = os.open(temporary, flags, 0o600 if private else 0o666)
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


class writing(contextlib.AbstractContextManager[None]):
    """In the block, whatever fails because of the disk is told as one error, whoever was writing.

    That is OSErrors, and what compiled libraries make of them: safetensors has a class of its own, tokenizers raises a
    bare Exception, each with "(os error 28)" at the end; shutil puts "[Errno 28]" into words; SQLite has codes. All
    else passes.

    Args:
        path: what is named when the error names no file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, PotluckError):
            return
        found = _as_os_error(error, self._path)
        if found is not None and found.errno in _OF_A_DISK:
            named = found.filename2 or found.filename
            raise disk_error(Path(named) if isinstance(named, str) else self._path, found) from error


def check_room(folder: Path, size_bytes: int) -> None:
    """Check that so much can be written into a folder that is there.

    Raises:
        InputError: less is free.
    """
    free = shutil.disk_usage(folder).free
    if free < size_bytes:
        raise InputError(
            f"{folder}: the disk is full: {size_bytes / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} MB are free",
            "free some space, or choose a folder on another disk",
        )


def is_full(error: Exception, path: Path) -> bool:
    """Whether `path` could not be written for want of room."""
    found = _as_os_error(error, path)
    return found is not None and found.errno in (*_FULL, errno.EFBIG)


def disk_error(path: Path, error: Exception) -> InputError:
    """What to tell a person when a file cannot be written."""
    found = _as_os_error(error, path) or OSError(str(error))
    if found.errno in _FULL:
        return InputError(f"{path}: the disk is full", "free some space; nothing is lost, it goes on from here")
    if found.errno == errno.EFBIG:
        return InputError(
            f"{path}: a file may not grow so large here",
            "raise the limit (`ulimit -f`), or choose a disk that takes larger files",
        )
    return InputError(
        f"{path}: cannot be written: {found.strerror or found}", "check the folder's owner and permissions"
    )


_FULL = (errno.ENOSPC, errno.EDQUOT)
_OF_A_DISK = (*_FULL, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)
_TRIED_BYTES = 1 << 20
_NUMBER = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")
_SQLITE_FULL, _SQLITE_VAGUE = 13, (10, 14)  # IOERR, CANTOPEN: what a full disk comes to as well


def _as_os_error(error: BaseException, path: Path) -> OSError | None:
    """What the system said, in whatever words it comes; None: nothing that hangs on a disk."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    code = getattr(getattr(error, "orig", error), "sqlite_errorcode", None)  # SQLAlchemy keeps SQLite's error as `orig`
    if isinstance(code, int) and code & 0xFF == _SQLITE_FULL:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if isinstance(code, int) and code & 0xFF in _SQLITE_VAGUE:
        return _try(path if path.is_dir() else path.parent)
    match = _NUMBER.search(str(error))
    return OSError(int(match[1] or match[2]), os.strerror(int(match[1] or match[2]))) if match else None


def _try(folder: Path) -> OSError:
    """Why a file cannot be written into a folder, found out by trying; an I/O error if one can."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_TRIED_BYTES))
    except OSError as error:
        return error
    return OSError(errno.EIO, os.strerror(errno.EIO))
