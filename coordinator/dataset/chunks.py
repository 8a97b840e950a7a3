r"""Files in stretches that are prepared on their own: of lines by bytes, of tables by groups of rows.

A stretch owns the lines that begin in it, so each line is in one, whole, wherever the files are cut.

>>> import io
>>> file = io.BytesIO(b"one\r\ntwo\nthree")
>>> [list(owned_lines(file, start, start + 5)) for start in (0, 5, 10)]
[[b'one\r\n'], [b'two\n', b'three'], []]
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Literal, NamedTuple

from coordinator.dataset import columns
from coordinator.dataset.compressed import is_compressed
from coordinator.dataset.sources import SourceFile
from peer.training.data_file import MAX_LINE_BYTES

CHUNK_BYTES = 8 << 20
_READ_BYTES = 1 << 20
_TO_THE_END = 2**53 - 1  # JSON has no larger numbers


class Chunk(NamedTuple):
    """What one process prepares at a time."""

    source: int  # its place in run.toml
    file: SourceFile
    start: int  # bytes; of a table: groups of rows
    end: int
    size_bytes: int  # of the file, about
    kind: Literal["lines", "parquet", "arrow"] = "lines"


def chunks_of(source: int, file: SourceFile, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """A file's chunks, in order.

    Raises:
        InputError: a table that cannot be read.
    """
    kind = columns.kind_of(file.name)
    if kind == "lines" and is_compressed(file.name):
        yield Chunk(source, file, 0, _TO_THE_END, file.size_bytes)
    elif kind == "lines":
        for start in range(0, file.size_bytes, chunk_bytes):
            end = min(start + chunk_bytes, file.size_bytes)
            yield Chunk(source, file, start, end, end - start)
    else:
        found = list(columns.groups(file, kind, chunk_bytes))
        whole = max(1, sum(size for _, _, size in found))  # before it was compressed
        for first, last, size in found:
            yield Chunk(source, file, first, last, file.size_bytes * size // whole, kind)


def owned_lines(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    """The lines that begin at `start` or later, and before `end`, with their ends; the last may go on behind `end`.

    Of a line with more than MAX_LINE_BYTES come so many and one more; the rest of it is not read beyond `end`.
    """
    file.seek(max(0, start - 1))  # the line that the byte before is in is another chunk's
    position = max(0, start - 1)
    is_own, length, parts = start == 0, 0, list[bytes]()
    while block := file.read(_READ_BYTES):
        for piece in _split(block):
            length += len(piece)
            if is_own and length - len(piece) <= MAX_LINE_BYTES:
                parts.append(piece)
            position += len(piece)
            if piece.endswith(b"\n"):
                if is_own:
                    yield b"".join(parts)[: MAX_LINE_BYTES + 1]
                is_own, length, parts = True, 0, []
                if position >= end:
                    return
        if position >= end and (not is_own or length > MAX_LINE_BYTES):
            break  # where this line ends is no concern of ours
    if is_own and parts:
        yield b"".join(parts)[: MAX_LINE_BYTES + 1]


def _split(block: bytes) -> list[bytes]:
    """At line feeds alone."""
    pieces = [piece + b"\n" for piece in block.split(b"\n")]
    pieces[-1] = pieces[-1][:-1]
    return pieces if pieces[-1] else pieces[:-1]
