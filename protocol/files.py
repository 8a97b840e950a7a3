"""Folders that came from outside: listed without following anything, hashed, and named by one digest.

A base model is pinned by `tree_digest`; a checkpoint's files are compared with the signed list by `verify`.

    >>> tree_digest({"config.json": ("0" * 64, 2)})[:8]
    '7910b05f'
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from protocol import canonical
from protocol.errors import InputError, VerificationError

MAX_FILES = 10_000
MAX_FOLDER_BYTES = 1 << 42  # 4 TiB
MAX_FOLDER_DEPTH = 16
_READ_BYTES = 1 << 20


def list_files(
    folder: Path,
    *,
    max_files: int = MAX_FILES,
    max_bytes: int = MAX_FOLDER_BYTES,
    allow_empty_dirs: bool = False,
) -> dict[str, Path]:
    """Every file under `folder`, as relative path with forward slashes -> path, sorted.

    Args:
        folder: a real directory.
        max_files: refuse more files and directories than this.
        max_bytes: refuse more bytes in all than this.
        allow_empty_dirs: whether a directory without files is tolerated; no signature covers one.

    Raises:
        InputError: no such directory.
        VerificationError: a symlink, a device, socket or pipe, an empty directory, something that cannot be read, or
            more than the limits.
    """
    found, problems = survey(folder, max_files=max_files, max_bytes=max_bytes, allow_empty_dirs=allow_empty_dirs)
    if problems:
        raise VerificationError(problems[0])
    return found


def survey(
    folder: Path,
    *,
    max_files: int = MAX_FILES,
    max_bytes: int = MAX_FOLDER_BYTES,
    allow_empty_dirs: bool = False,
) -> tuple[dict[str, Path], list[str]]:
    """As `list_files`, with every problem named instead of the first one raised.

    Returns:
        (relative path -> path of the regular files, what is wrong with the rest).

    Raises:
        InputError: no such directory.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise InputError(f"{folder}: not a directory", "give the path of a folder, not of a link to one")
    found: dict[str, Path] = {}
    problems: list[str] = []
    total = seen = 0
    waiting = [(folder, "", 0)]
    while waiting:
        directory, prefix, depth = waiting.pop()
        try:
            entries = _entries(directory)
        except OSError as error:
            problems.append(f"{prefix or folder.name}: cannot be read: {error.strerror}")
            continue
        if not entries and not allow_empty_dirs:
            problems.append(f"{prefix or folder.name}: an empty directory, which no signature covers")
        for path, name, info in ((Path(entry.path), prefix + entry.name, info) for entry, info in entries):
            seen += 1
            total += info.st_size if stat.S_ISREG(info.st_mode) else 0
            if seen > max_files or depth > MAX_FOLDER_DEPTH or total > max_bytes:
                limits = f"{max_files} files, {max_bytes} bytes, {MAX_FOLDER_DEPTH} levels"
                return found, [*problems, f"{folder.name}: more than it may hold ({limits})"]
            if stat.S_ISLNK(info.st_mode):
                problems.append(f"{name}: a symbolic link, which may point anywhere")
            elif stat.S_ISDIR(info.st_mode):
                waiting.append((path, name + "/", depth + 1))
            elif stat.S_ISREG(info.st_mode):
                found[name] = path
            else:
                problems.append(f"{name}: neither a file nor a directory")
    return dict(sorted(found.items())), problems


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces; a symlink is not followed."""
    hasher = hashlib.sha256()
    with open_regular(path) as file:
        while piece := file.read(_READ_BYTES):
            hasher.update(piece)
    return hasher.hexdigest()


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading bytes; refuses symlinks and devices, and never blocks on a pipe.

    Raises:
        VerificationError: not a regular file, gone, or not readable.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        reason = "a symbolic link, which may point anywhere" if path.is_symlink() else error.strerror
        raise VerificationError(f"{path.name}: cannot be read: {reason}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise VerificationError(f"{path.name}: not a regular file")
    return os.fdopen(descriptor, "rb")


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """The bytes of a small file.

    Raises:
        VerificationError: not a regular file, or longer than `max_bytes`.
    """
    with open_regular(path) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise VerificationError(f"{path.name}: expected at most {max_bytes} bytes")
    return data


def tree_digest(files: Mapping[str, tuple[str, int]]) -> str:
    """One digest for a folder: SHA-256 of the canonical JSON of {path: [sha256, size]}.

    Args:
        files: relative path with forward slashes -> (hex SHA-256, size in bytes).
    """
    return canonical.digest({path: [sha256, size] for path, (sha256, size) in files.items()})


def hash_folder(folder: Path) -> dict[str, tuple[str, int]]:
    """Every file of a folder as relative path -> (hex SHA-256, size in bytes): what `tree_digest` takes.

    Raises: as `list_files`.
    """
    return {name: (file_sha256(path), path.stat().st_size) for name, path in list_files(folder).items()}


def check_relative(path: str) -> None:
    """Refuse a path that could lead out of its folder, or that two systems could read in two ways.

    Raises:
        VerificationError: absolute, empty, with `..`, `.`, empty steps, backslashes or control characters.
    """
    steps = path.split("/")
    if not path or len(path) > 1024 or any(step in ("", ".", "..") for step in steps):
        raise VerificationError(f"{path[:80]!r}: not a plain relative path")
    if "\\" in path or any(character < " " or character == "\x7f" for character in path):
        raise VerificationError(f"{path[:80]!r}: a path holds neither backslashes nor control characters")


def is_signature_name(name: str) -> bool:
    """Whether a file is named as a maintainer's signature: <64 hex digits>.sig"""
    return re.fullmatch(r"[0-9a-f]{64}\.sig", name) is not None


def _entries(directory: Path) -> list[tuple[os.DirEntry[str], os.stat_result]]:
    with os.scandir(directory) as entries:
        return sorted(((entry, entry.stat(follow_symlinks=False)) for entry in entries), key=lambda pair: pair[0].name)
