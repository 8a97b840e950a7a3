"""The files that members may fetch, by digest and nothing else: genesis, base model, data. `service` reads from it.

>>> import tempfile
>>> folder = Path(tempfile.mkdtemp()); _ = (folder / "a.txt").write_bytes(b"hello")
>>> shelf = Shelf(); files = shelf.add_folder(folder)
>>> files[0].path, b"".join(shelf.read(files[0].sha256, offset=1))
('a.txt', b'ello')
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import InputError
from protocol.files import hash_folder, open_regular
from protocol.rpc import PART_BYTES


@dataclass(frozen=True)
class ShelfFile:
    path: str  # relative, forward slashes
    sha256: str  # hex
    size_bytes: int


class Shelf:
    """Digest -> file; filled at start, read by many threads."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[Path, int]] = {}

    def add_folder(self, folder: Path) -> list[ShelfFile]:
        """Offer every file of a folder; returns what it holds. Raises: as `files.list_files`."""
        result = []
        for name, (sha256, size_bytes) in hash_folder(folder).items():
            self.add_file(folder / name, sha256, size_bytes)
            result.append(ShelfFile(name, sha256, size_bytes))
        return result

    def add_file(self, path: Path, sha256: str, size_bytes: int) -> None:
        """Offer one file whose digest is known."""
        self._files[sha256] = (path, size_bytes)

    def read(self, sha256: str, offset: int) -> Iterator[bytes]:
        """The bytes from `offset` on, at most 1 MiB at a time.

        Raises:
            InputError: no such file is offered, or the offset lies beyond its end.
        """
        if sha256 not in self._files:
            raise InputError(f"no file with digest {sha256[:64]!r} is offered", "fetch the run description anew")
        path, size_bytes = self._files[sha256]
        if offset > size_bytes:
            raise InputError(f"offset {offset} lies beyond the file's {size_bytes} bytes")
        return self._pieces(path, offset, size_bytes)

    def _pieces(self, path: Path, offset: int, size_bytes: int) -> Iterator[bytes]:
        with open_regular(path) as file:
            file.seek(offset)
            left = size_bytes - offset
            while left and (piece := file.read(min(PART_BYTES, left))):
                left -= len(piece)
                yield piece
