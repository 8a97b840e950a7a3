"""What was found in the data: counts, bad records by line and reason, and the notes of `peer.training.notes`.

A chunk counts its lines from 1; the report of all, which hears of the chunks in order, knows how many came before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from coordinator.dataset.columns import kind_of
from peer.training.notes import Notes
from protocol import canonical
from protocol.errors import InputError

MAX_NAMED_IN_CHUNK = 1000  # bad records, by line and reason; more are counted
MAX_NAMED = 100_000


class BadRecord(NamedTuple):
    """One record that cannot be used."""

    line: int  # from 1, in its chunk; of a table: its row
    reason: str
    hint: str


@dataclass
class ChunkFindings:
    """Of one chunk."""

    lines: int = 0  # that begin in it; of a table: rows
    records: int = 0  # good ones
    tokens: int = 0  # of both sides
    bad_count: int = 0
    bad: list[BadRecord] = field(default_factory=list)  # the first of them
    notes: Notes = field(default_factory=Notes)
    problem: tuple[str, str] | None = None  # why nothing of the file can be read, and what to do

    def refuse(self, where: str, error: InputError) -> None:
        """Count a bad record, the last one that was read.

        Args:
            where: file and line, with which the error's message begins.

        Raises:
            InputError: that error, if it is not about a record but about the tokenizer, say.
        """
        if not error.message.startswith(where):
            raise error
        self.bad_count += 1
        if len(self.bad) < MAX_NAMED_IN_CHUNK:
            reason = error.message.removeprefix(where).removeprefix(":").strip()
            self.bad.append(BadRecord(int(where.rpartition(" ")[2]), reason, error.hint))

    def to_json(self) -> dict[str, Any]:
        return {
            "lines": self.lines,
            "records": self.records,
            "tokens": self.tokens,
            "bad_count": self.bad_count,
            "bad": [list(item) for item in self.bad],
            "notes": self.notes.to_json(),
            "problem": None if self.problem is None else list(self.problem),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ChunkFindings:
        """What `to_json` gave."""
        problem = value["problem"]
        return cls(
            value["lines"],
            value["records"],
            value["tokens"],
            value["bad_count"],
            [BadRecord(*item) for item in value["bad"]],
            Notes.from_json(value["notes"]),
            None if problem is None else (problem[0], problem[1]),
        )


@dataclass
class SourceFindings:
    """Of one source, in the end."""

    name: str
    files: int = 0
    records: int = 0
    tokens: int = 0
    sequences: int = 0
    size_bytes: int = 0  # of its shards
    bad: int = 0
    notes: Notes = field(default_factory=Notes)
    left_out: list[tuple[str, str]] = field(default_factory=list)  # files, and why

    def to_json(self) -> dict[str, Any]:
        value = {name: part for name, part in vars(self).items() if name not in ("notes", "left_out")}
        return value | {"notes": self.notes.sentences(), "left_out": [list(item) for item in self.left_out]}


class Named(NamedTuple):
    """A bad record as the report has it."""

    source: str
    file: str
    line: int  # from 1, in its file
    reason: str
    hint: str

    def __str__(self) -> str:
        where = "line" if kind_of(self.file) == "lines" else "row"
        return f"{self.source}: {self.file}: {where} {self.line}: {self.reason}"


class DataReport:
    """Hears of every chunk, file by file, in order."""

    def __init__(self) -> None:
        self.sources: list[SourceFindings] = []
        self.bad: list[Named] = []  # the first MAX_NAMED of all
        self._lines = 0  # of the file, before the chunk that comes next

    def begin(self, name: str) -> None:
        """The next source."""
        self.sources.append(SourceFindings(name))

    def begin_file(self) -> None:
        self.sources[-1].files += 1
        self._lines = 0

    def leave_out(self, file: str, reason: str) -> None:
        self.sources[-1].left_out.append((file, reason))

    def hear(self, file: str, found: ChunkFindings) -> list[Named]:
        """The next chunk of the file; returns its bad records by their lines in the file."""
        source = self.sources[-1]
        source.records += found.records
        source.tokens += found.tokens
        source.bad += found.bad_count
        source.notes.add(found.notes)
        named = [Named(source.name, file, self._lines + item.line, item.reason, item.hint) for item in found.bad]
        self.bad += named[: MAX_NAMED - len(self.bad)]
        self._lines += found.lines
        return named

    def bad_to_bytes(self) -> bytes:
        """JSON lines, one for each bad record that is named."""
        return b"".join(canonical.dumps(item._asdict()) + b"\n" for item in self.bad)
