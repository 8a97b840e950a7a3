"""Files that are unpacked while they are read, from their beginning to their end: `.gz`, and `.zst`.

What follows the first bytes of such a file cannot be found without reading it, so it is one chunk (`chunks`).
"""

from __future__ import annotations

import gzip
import importlib.util
import zlib
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from protocol.errors import InputError
from protocol.installed import this_installation
from protocol.shown import shown

ENDINGS = (".gz", ".zst")


class DamagedFile(InputError):
    """It cannot be unpacked to its end."""


def is_compressed(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in ENDINGS


def ending(name: str) -> str:
    """Of what is in the file.

    >>> ending("wiki/part-1.jsonl.gz"), ending("wiki/part-1.JSONL")
    ('.jsonl', '.jsonl')
    """
    path = PurePosixPath(name)
    return (PurePosixPath(path.stem) if is_compressed(name) else path).suffix.lower()


def unpacked(handle: BinaryIO, name: str) -> BinaryIO:
    """The content of a compressed file, of which only `read` and `seek` to where it begins are there.

    Raises:
        InputError: what unpacks it is not installed.
    """
    if name.lower().endswith(".gz"):
        return cast(BinaryIO, _Unpacked(handle, name, _gzip))
    if importlib.util.find_spec("zstandard") is None:
        raise InputError(
            f"{name}: this needs zstandard", f"{this_installation().add('data')}; or unpack the file first"
        )
    return cast(BinaryIO, _Unpacked(handle, name, _zstandard))


def _gzip(handle: BinaryIO) -> Any:
    return gzip.GzipFile(fileobj=handle)


def _zstandard(handle: BinaryIO) -> Any:
    import zstandard

    return zstandard.ZstdDecompressor().stream_reader(handle, read_across_frames=True, closefd=False)


class _Unpacked:
    def __init__(self, handle: BinaryIO, name: str, begin: Callable[[BinaryIO], Any]) -> None:
        self._handle, self._name, self._begin = handle, name, begin
        self._file = begin(handle)

    def read(self, size: int) -> bytes:
        try:
            return cast(bytes, self._file.read(size))
        except (OSError, EOFError, zlib.error) as error:
            raise self._damaged(error) from error
        except Exception as error:  # zstandard's own, which is not there to be named
            if type(error).__module__.partition(".")[0] != "zstandard":
                raise
            raise self._damaged(error) from error

    def seek(self, position: int) -> None:
        if position:
            raise ValueError("a compressed file is read from its beginning")
        self._handle.seek(0)
        self._file = self._begin(self._handle)

    def _damaged(self, error: Exception) -> DamagedFile:
        return DamagedFile(f"{self._name}: cannot be unpacked: {shown(error)}", "fetch or write it again")
