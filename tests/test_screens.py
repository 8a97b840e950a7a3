"""What a peer's owner reads: every message in both languages, the reasons, and what the peer does just now."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from peer.limits.gate import Readings
from peer.link.notices import Notices
from peer.participation import Participation, PeerConfig
from peer.round.report import RoundReport
from peer.screen import messages
from peer.screen.json_lines import JsonScreen
from peer.screen.terminal import TerminalScreen
from peer.screen.view import view
from peer.sync.shelf import Head
from peer.training.state import SharedState
from protocol import words
from protocol.keys import PeerIdentity
from protocol.leaving import LeaveSignals
from protocol.status import Alarm
from tests.kit.standings import OnePeer, picture

REPORT = RoundReport(41, 3, 9216, 0.25, 1, True, (("12D3Kooab12cd34", "not heard for 12 s"),))


def a_head() -> Head:
    import torch

    return Head(SharedState(41, (("w", (4,)),), torch.zeros(4)))


@pytest.mark.parametrize(
    ("language", "line"), [("en", "round 41: 3 members, 9216 tokens"), ("zh", "第 41 轮：3 名成员")]
)
def test_a_round_is_told_on_one_line_with_whom_it_left_out(
    language: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = TerminalScreen(language, yes=True)
    screen._console.width = 200
    screen.committed(a_head(), REPORT)
    said = capsys.readouterr().err.strip()
    assert said.startswith(line) and said.endswith(words.told("not heard for 12 s", language)) and "ab12cd34" in said


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_view_says_why_nothing_goes_on_and_whom_the_newest_round_left_out(language: str) -> None:
    peer = OnePeer(Readings(now=datetime.datetime.now().astimezone()))

    def drawn() -> str:
        return "".join("".join(picture(lambda: view(peer.status(), 200, 24, language), 200)).split())

    def said(message: str) -> bool:
        return "".join(message.split()) in drawn()

    assert not said(messages.text("left-out", language))
    peer.standing_now.committed(a_head(), REPORT)
    assert said(messages.text("left-out", language)) and "41" in drawn() and "ab12cd34" in drawn()
    peer.standing_now.waiting("only 1 of 3 peers", paused=True)
    assert said(messages.text("paused", language, reason="only 1 of 3 peers"))
    reason = messages.Reason("too-few", found=1, count=3)
    peer.standing_now.waiting(reason)
    assert said(messages.text("too-few", language, found=1, count=3))
    peer.standing_now.waiting(reason, paused=True)
    assert said(words.told(reason, language)) and said(reason) == (language == "en")
    peer.standing_now.waiting("")
    assert said(messages.text("working", language))


def test_scripts_hear_of_each_reason_once(capsys: pytest.CaptureFixture[str]) -> None:
    screen = JsonScreen()
    for _ in range(3):
        screen.waiting("")
        screen.problem("coordinator-needed", reason="no coordinator at 127.0.0.1:1")
        screen.problem("clock-ahead", offset="5 min 12 s", how="ntp")
        screen.problem("clock-ahead", offset="5 min 13 s", how="ntp")
    for _ in range(3):
        screen.waiting("alone")
    for _ in range(3):
        screen.paused("alone")
    screen.waiting("")
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event.get("key") for event in events][:3] == ["coordinator-needed", "clock-ahead", "coordinator-needed"]
    reasons = [(event["event"], event["reason"]) for event in events[6:]]
    assert reasons == [("waiting", "alone"), ("paused", "alone"), ("waiting", "")]
    screen.committed(a_head(), REPORT)
    (told,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert told["left_out"] == [["12D3Kooab12cd34", "not heard for 12 s"]]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_first_credit_brings_the_advice_to_export_the_key_on_one_line_and_once(
    language: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    screen, me = TerminalScreen(language, yes=True), PeerIdentity.generate()
    screen._console.width = 400
    card = SimpleNamespace(run="a" * 64, spec=SimpleNamespace(run=SimpleNamespace(rounds=0)))
    granted: list[tuple[int, int, int]] = []
    admitted, receipts = SimpleNamespace(card=card), SimpleNamespace(credit=lambda: granted[-1])
    folder, leaving = SimpleNamespace(write=None), LeaveSignals(lambda: None)
    others: Any = (None, me, admitted, folder, receipts, PeerConfig(tmp_path), screen, leaving)
    peer = Participation(*others)
    for granted[:] in ([(0, 0, 0)], [(4096, 1, 7)], [(8192, 2, 8)]):
        peer.credited()
    (line,) = capsys.readouterr().err.splitlines()
    command = f"potluck identity export FILE --home {tmp_path}"
    assert line == messages.text("identity-not-exported", language, tokens="4,096", command=command)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_an_owner_is_told_once_that_the_run_gets_worse_and_that_it_no_longer_does(
    language: str, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = TerminalScreen(language, yes=True)
    screen._console.width = 300
    notices = Notices(screen.problem)
    alarm = Alarm(round=30, held_out_loss=44.8, published_round=10, published_loss=3.38, held_back=2)
    for said in (None, alarm, alarm, alarm.model_copy(update={"held_back": 3}), None, None):
        notices.alarm(said)
    lines = capsys.readouterr().err.splitlines()
    values = {"round": 30, "published": 10, "before": "3.3800"}
    assert lines == [
        messages.text("run-worse", language, now="44.8000", **values),
        messages.text("run-better", language),
    ]
