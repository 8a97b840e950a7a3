"""The outbox loses no report: not to a restart, a kill, a full disk, or an answer that never came."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import pytest

from peer.disk.outbox import Outbox
from protocol.errors import CoordinatorAway, FormatError, InputError
from protocol.rpc import ReportAnswer


@dataclass
class Desk:
    """A coordinator as the outbox sees it: notes what comes, and answers as told."""

    away_after: int = 10**9
    refuse: set[bytes] = field(default_factory=set)
    heard: list[bytes] = field(default_factory=list)

    def report(self, certificate: str, agreement: bytes) -> ReportAnswer:
        if len(self.heard) >= self.away_after:
            raise CoordinatorAway("gone")
        self.heard.append(agreement)
        return ReportAnswer(agreement not in self.refuse, "no such round" if agreement in self.refuse else "")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*") if path.is_file())


def test_reports_leave_oldest_round_first(tmp_path: Path) -> None:
    outbox, desk = Outbox(tmp_path), Desk()
    for number in (10, 2, 1, 300):
        outbox.put(number, b"round %d" % number)
    assert outbox.drain(desk, "certificate") == 4
    assert desk.heard == [b"round 1", b"round 2", b"round 10", b"round 300"]
    assert len(outbox) == 0 and names(tmp_path) == []


def test_report_put_twice_is_sent_once(tmp_path: Path) -> None:
    outbox, desk = Outbox(tmp_path), Desk()
    for _ in range(3):
        outbox.put(1, b"agreement")
    outbox.drain(desk, "certificate")
    assert desk.heard == [b"agreement"]


def test_what_was_not_answered_is_sent_again_after_a_restart(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    for number in range(4):
        outbox.put(number, b"round %d" % number)
    with pytest.raises(CoordinatorAway):
        outbox.drain(Desk(away_after=2), "certificate")
    again, desk = Outbox(tmp_path), Desk()
    assert len(again) == 2 and again.drain(desk, "certificate") == 2
    assert desk.heard == [b"round 2", b"round 3"]


def test_finally_refused_report_is_set_aside_with_the_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outbox, desk = Outbox(tmp_path), Desk(refuse={b"round 1"})
    for number in (1, 2):
        outbox.put(number, b"round %d" % number)
    assert outbox.drain(desk, "certificate") == 2
    assert len(outbox) == 0
    (name,) = [name for name in names(tmp_path / "refused") if name.endswith(".json")]
    assert (tmp_path / "refused" / name).read_bytes() == b"round 1"
    assert (tmp_path / "refused" / f"{name}.reason").read_text() == "no such round\n"
    assert "no such round" in caplog.text


def test_damaged_report_is_set_aside_and_the_others_are_sent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outbox, desk = Outbox(tmp_path), Desk()
    for number in (1, 2):
        outbox.put(number, b"round %d" % number)
    (tmp_path / names(tmp_path)[0]).write_bytes(b"round")
    assert outbox.drain(desk, "certificate") == 1
    assert desk.heard == [b"round 2"] and len(names(tmp_path / "damaged")) == 1
    assert "damaged" in caplog.text


def test_half_written_report_of_a_killed_process_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "000000001-0123456789abcdef.json.new").write_bytes(b"half")
    outbox, desk = Outbox(tmp_path), Desk()
    outbox.drain(desk, "certificate")
    assert desk.heard == [] and names(tmp_path) == []


def test_full_disk_is_said_in_plain_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = Outbox(tmp_path)

    def full(descriptor: int) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="the disk is full") as caught:
        outbox.put(1, b"agreement")
    assert "free some space" in caught.value.hint
    monkeypatch.undo()
    assert names(tmp_path) == []
    outbox.put(1, b"agreement")
    assert len(outbox) == 1


def test_oversize_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="at most"):
        Outbox(tmp_path).put(1, bytes((8 << 20) + 1))


def test_every_report_that_was_put_outlives_a_kill(tmp_path: Path) -> None:
    """SIGKILL while a process puts one report after another: what `put` returned for is there, and all of it whole."""
    program = (
        "import sys; from pathlib import Path; from peer.disk.outbox import Outbox\n"
        "outbox = Outbox(Path(sys.argv[1]))\n"
        "for number in range(10**6):\n"
        "    outbox.put(number, b'%d' % number * 5000)\n"
        "    print(number, flush=True)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        last = -1
        for line in child.stdout:
            last = int(line)
            if last == 25:
                child.send_signal(signal.SIGKILL)
                break
        rest = child.stdout.read().split()
        last = int(rest[-1]) if rest else last
    desk = Desk()
    Outbox(tmp_path).drain(desk, "certificate")
    assert desk.heard[: last + 1] == [b"%d" % number * 5000 for number in range(last + 1)]
    assert len(desk.heard) in (last + 1, last + 2) and not (tmp_path / "damaged").exists()
