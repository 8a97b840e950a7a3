"""A data file as numbered lines of UTF-8, and the files that are no such thing: named, with what to do about it.

Nothing here knows what the lines mean. By the first rules of data (`data.rules`) a file may hold NUL bytes and a byte
order mark, as it always could; what ended in a traceback is refused by all rules.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from protocol.errors import InputError

MAX_LINE_BYTES = 8 << 20
HEAD_BYTES = 4096

# (how the file begins, what that is); what NUL bytes would show is left to them
_FORMATS = (
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
    (b"BZh91AY&SY", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"(\xb5/\xfd", "Zstandard"),
    (b"7z\xbc\xaf'\x1c", "7z"),
    (b"\x04\x22M\x18", "LZ4"),
    (b"PAR1\x15", "Parquet"),
    (b"ARROW1\x00\x00", "Arrow"),
    (b"SQLite format 3\x00", "SQLite"),
    (b"\x93NUMPY", "NumPy"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
    (b"%PDF-", "PDF"),
    (b"\x80\x02", "pickle"),
    (b"\x80\x03", "pickle"),
    (b"\x80\x04", "pickle"),
    (b"\x80\x05", "pickle"),
)
BOM = b"\xef\xbb\xbf"
_PACKED = {"gzip", "zip", "bzip2", "xz", "Zstandard", "7z", "LZ4"}
_WIDE = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


def check_file(path: Path) -> None:
    """Check that there is a file, and something in it.

    Raises:
        InputError: no file, a folder, empty, or not to be read.
    """
    hint = "check data.path in run.toml; it starts from run.toml's folder"
    try:
        if os.path.isdir(path):
            raise InputError(f"{path}: a folder, not a data file", "give one file; `cat` joins several")
        if not os.path.isfile(path):  # Path's own raises for a name that is too long
            raise InputError(f"{path}: no such data file", hint)
        with path.open("rb") as file:
            first = file.read(1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}", hint) from error
    except ValueError as error:  # NUL in a path
        raise InputError(f"{str(path)!r}: not a path", hint) from error
    if not first:
        raise InputError(f"{path}: the data file is empty", "give the path of a file with data in it")


def numbered_lines(path: Path, rules: int) -> Iterator[tuple[int, str]]:
    """(number from 1, line with its end), bounded and decoded strictly.

    Args:
        rules: `data.rules`.

    Raises:
        InputError: cannot be read, not UTF-8, too long a line; from rules 2 on: NUL, a byte order mark, lines that only
            carriage returns end, or another format than text.
    """
    number = 0
    try:
        with path.open("rb") as file:
            if rules > 1:
                check_head(path, file.read(HEAD_BYTES))
                file.seek(0)
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                yield number, text_of(path, number, line, rules, first=number == 1)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "give the path of the run's data file") from error


def text_of(path: Path | str, number: int, line: bytes, rules: int = 2, *, first: bool) -> str:
    """A line as text.

    Args:
        path: as errors name the file.
        line: all of it, or its first MAX_LINE_BYTES + 1 bytes.
        first: it is the first of its file.

    Raises:
        InputError: as `numbered_lines`; begins with file and line.
    """
    if rules > 1:
        _check_line(path, number, line, first)
    if len(line) > MAX_LINE_BYTES:
        raise InputError(
            f"{path}: line {number}: expected at most {MAX_LINE_BYTES} bytes",
            "split it into shorter ones: each line of a JSONL file is one record, and a text has line ends",
        )
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: line {number}: not UTF-8: {error.reason}",
            "save the file as UTF-8: `iconv -f ENCODING -t UTF-8 OLD > NEW`",
        ) from error


def check_head(path: Path | str, head: bytes) -> None:
    """Raises: InputError: the file begins as text in another encoding does, or as no text at all."""
    for begin, encoding in _WIDE:
        if head.startswith(begin):
            raise InputError(f"{path}: line 1: {encoding}, not UTF-8", _converted(encoding))
    if head.startswith(BOM):
        raise InputError(
            f"{path}: line 1: begins with a byte order mark",
            "save the file as UTF-8 without BOM: `tail -c +4 OLD > NEW` takes it off",
        )
    for begin, name in _FORMATS:
        if head.startswith(begin):
            hint = "unpack it first" if name in _PACKED else "write its records as JSONL, or its text as UTF-8"
            raise InputError(f"{path}: a {name} file, not text", hint)
    if head[257:262] == b"ustar":
        raise InputError(f"{path}: a tar file, not text", "unpack it first")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(
            f"{path}: a pointer of Git LFS, not the data", "fetch the file itself: `git lfs pull`, in its repository"
        )


def _check_line(path: Path | str, number: int, line: bytes, first: bool) -> None:
    """Raises: InputError: NUL bytes in the line, or only carriage returns as line ends."""
    if 0 in line:
        encoding = _wide_encoding(line)
        if not first:  # where the line was cut, its first byte may belong to the one before
            encoding = encoding[:6]
        if encoding:
            raise InputError(f"{path}: line {number}: NUL bytes, as {encoding} text has them", _converted(encoding))
        raise InputError(
            f"{path}: line {number}: holds NUL bytes, as binary files do",
            "give a text file; `tr -d '\\000' < OLD > NEW` takes stray ones out",
        )
    if first and b"\r" in line and not line.endswith(b"\n"):
        raise InputError(
            f"{path}: line 1: carriage returns where line ends should be", "`tr '\\r' '\\n' < OLD > NEW` mends it"
        )


def _converted(encoding: str) -> str:
    return f"save the file as UTF-8: `iconv -f {encoding} -t UTF-8 OLD > NEW`"


def _wide_encoding(line: bytes) -> str:
    """Which encoding of two or four bytes a character has its NUL bytes where this line has them; "" if none.

    >>> _wide_encoding("wood".encode("utf-16-be")), _wide_encoding(b"wo\\0od")
    ('UTF-16BE', '')
    """
    zeros = [line[start::4].count(0) * 4 / len(line) for start in range(4)]
    filled = [share > 0.5 for share in zeros]
    if sum(filled) == 3:
        return "UTF-32LE" if filled[3] else "UTF-32BE"
    if filled in ([False, True, False, True], [True, False, True, False]):
        return "UTF-16LE" if filled[1] else "UTF-16BE"
    return ""
