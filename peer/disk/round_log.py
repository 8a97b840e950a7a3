"""The rounds that a peer has seen, one JSON line each, for its owner: `rounds.jsonl` in the run folder.

    {"round":41,"members":3,"tokens":9216,"waited_s":0.2,"attempts":1,"took_part":true,
     "left_out":[["12D3Koo…ab12cd34","not heard for 12 s"]],"time":1763769600.0}

`volunteer` appends at each commit, `potluck status` reads. What does not parse is passed over: nothing depends on it.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from protocol.disk import disk_error, write_file

if TYPE_CHECKING:
    from peer.round.report import RoundReport

KEPT = 1000  # lines
MAX_FILE_BYTES = 16 << 20  # that are read
MAX_LEFT_OUT = 64  # of one round that are told
MAX_REASON_CHARS = 200


class Round(NamedTuple):
    """One round, as one peer saw it."""

    round: int
    members: int
    tokens: int
    waited_s: float  # from the end of its own work to the new state
    attempts: int
    took_part: bool
    left_out: tuple[tuple[str, str], ...]  # (peer id, why)
    time: float  # Unix seconds
    waits: bool = False  # there was no place for this peer: its work counts when its turn comes

    @classmethod
    def of(cls, report: RoundReport) -> Round:
        left_out = tuple((peer, why[:MAX_REASON_CHARS]) for peer, why in report.left_out[:MAX_LEFT_OUT])
        return cls(
            report.round, report.members, report.tokens, round(report.waited_s, 3), report.attempts,
            report.took_part, left_out, round(time.time(), 3), report.waits,
        )  # fmt: skip


class RoundLog:
    """Appends to `path`, and keeps its newest lines.

    Raises: InputError: the disk is full, or the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = len(_lines(path))

    def append(self, item: Round) -> None:
        """Add a round. Raises: InputError: it cannot be written."""
        line = json.dumps(item._asdict()).encode() + b"\n"
        if self._lines >= KEPT + KEPT // 4:
            newest = _lines(self._path)[-KEPT:]
            write_file(self._path, b"".join(newest), private=True)
            self._lines = len(newest)
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "ab") as file:
                file.write(line)
        except OSError as error:
            raise disk_error(self._path, error) from error
        self._lines += 1


def read_rounds(path: Path, most: int = KEPT) -> list[Round]:
    """The newest rounds in the file, oldest first; empty when there is none."""
    parsed = (_parse(line) for line in _lines(path))
    return list(deque((item for item in parsed if item is not None), most))


def _lines(path: Path) -> list[bytes]:
    try:
        with path.open("rb") as file:
            return [line for line in file.read(MAX_FILE_BYTES).splitlines(keepends=True) if line.endswith(b"\n")]
    except OSError:
        return []


def _parse(line: bytes) -> Round | None:
    try:
        value: dict[str, Any] = json.loads(line)
        left_out = tuple((str(peer), str(why)) for peer, why in value["left_out"])
        return Round(
            int(value["round"]), int(value["members"]), int(value["tokens"]), float(value["waited_s"]),
            int(value["attempts"]), bool(value["took_part"]), left_out, float(value["time"]),
            bool(value.get("waits", False)),
        )  # fmt: skip
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return None
