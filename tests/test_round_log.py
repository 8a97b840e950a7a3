"""The rounds that a peer keeps for its owner: bounded, readable, and in the way of nothing when they are damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from peer.disk import round_log
from peer.disk.round_log import Round, RoundLog, read_rounds
from peer.round.report import RoundReport
from peer.screen.rounds import describe
from protocol.errors import InputError


def a_round(number: int) -> Round:
    return Round.of(RoundReport(number, 3, 9216, 0.25, 1, True, (("12D3Kooab12cd34", "no data for 12 s"),)))


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    log, items = RoundLog(tmp_path / "rounds.jsonl"), [a_round(number) for number in range(1, 8)]
    for item in items:
        log.append(item)
    assert read_rounds(tmp_path / "rounds.jsonl") == items
    assert read_rounds(tmp_path / "rounds.jsonl", 2) == items[-2:]
    assert describe(items[-1]) == "round 7: 3 members, 9216 tokens; left out …ab12cd34: no data for 12 s"
    assert "ab12cd34" in describe(items[-1], "zh") and describe(items[-1], "zh") != describe(items[-1])


def test_only_the_newest_rounds_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round_log, "KEPT", 20)
    for first in range(0, 100, 10):  # started again and again
        log = RoundLog(tmp_path / "rounds.jsonl")
        for number in range(first, first + 10):
            log.append(a_round(number))
    kept = [item.round for item in read_rounds(tmp_path / "rounds.jsonl", 1000)]
    assert kept == list(range(kept[0], 100)) and 20 <= len(kept) <= 26


def test_lines_that_are_none_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    RoundLog(path).append(a_round(1))
    whole = path.read_bytes()
    path.write_bytes(b"\xff\n[]\n{}\n" + whole + b'{"round":' + b"[" * 5000 + b"\n" + whole[:20])
    assert [item.round for item in read_rounds(path)] == [1]
    path.unlink()
    path.mkdir()
    assert read_rounds(path) == []
    with pytest.raises(InputError, match=r"rounds\.jsonl"):
        RoundLog(path).append(a_round(2))
