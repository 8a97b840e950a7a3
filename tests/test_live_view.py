"""The live view: what it shows of each state, at each size, in both languages; its keys; the terminal after it."""

from __future__ import annotations

import datetime
import io
import os
import pty
import re
import select
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from commands.watching import lines
from peer.limits.gate import Permission, Readings
from peer.limits.limits import OwnLimits
from peer.round.report import STAGES
from peer.round.turns import Waiting
from peer.screen.keys import Keys
from peer.screen.live import LiveView, is_for_people
from peer.screen.messages import Reason, text
from peer.screen.view import KEYS, LONG_AGO_S, help_view, line, state, view
from protocol import words
from protocol.errors import NetworkError
from tests.kit.standings import OnePeer, picture
from tests.test_words import check_chinese

NOON = datetime.datetime(2026, 12, 2, 12, 0).astimezone()
WARM = Readings(now=NOON, temperature_c=64.0, power_w=181.0, month_bytes=8_200_000_000)
SIZES = [(80, 24), (40, 20), (120, 40)]


def working() -> OnePeer:
    peer = OnePeer(WARM, limits=OwnLimits(month_gb=10))
    peer.has_trained()
    peer.credit, peer.granted_at, peer.now = (18_000, 18, 18), 1000.0, 1200.0
    return peer


def paused() -> OnePeer:
    peer = working()
    peer.watch.gate.verdict = Permission(Waiting("too-hot", {"degrees": "60"}))
    peer.watch.gate.limits = OwnLimits(temperature_c=60)
    return peer


def waiting() -> OnePeer:
    peer = working()
    peer.standing_now.waiting(Reason("wants-more-peers", missing=2, least=3))
    return peer


def uncredited() -> OnePeer:
    peer = working()
    peer.now += LONG_AGO_S
    return peer


CASES = {"working": working, "paused": paused, "waiting": waiting, "uncredited": uncredited}
SAID = {
    "working": "working",
    "paused": text("held", "en", reason=text("too-hot", "en", degrees="60"), until=""),
    "waiting": text("wants-more-peers", "en", missing=2, least=3),
    "uncredited": "working",
}


@pytest.mark.parametrize(("known", "shown"), [("temperature_c", "64 °C"), ("power_w", "181 W")])
def test_a_card_that_tells_one_thing_is_shown_with_that(known: str, shown: str) -> None:
    status = working().status()
    status |= {name: None for name in ("temperature_c", "power_w") if name != known}
    (line,) = (line for line in picture(lambda: view(status, 80, 24, "en"), 80) if line.startswith("card"))
    assert line.split(maxsplit=1)[1] == shown


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_it_fits_and_says_what_matters(case: str, size: tuple[int, int], language: str) -> None:
    status, (width, height) = CASES[case]().status(), size
    drawn = picture(lambda: view(status, width, height, language, details=width == 120), width)
    assert len(drawn) <= height and max(map(cell_len, drawn)) <= width
    whole = "".join("\n".join(drawn).split())

    def has(message: str) -> bool:
        return "".join(message.split()) in whole

    assert has(words.told(SAID[case], language)), drawn
    assert has(text("verified", language, tokens="18,000", rounds=18)) and has("2.000") and has("1.2 GB")
    assert has(text("pending", language, tokens="2,000")) and has(text("who-is-in", language, count=7))
    assert has("181 W") and has(text("traffic-month", language, total="8.2 GB"))
    late = text("credit-late", language, time=words.told("50 min", language))
    assert has(late) == (case == "uncredited"), drawn
    assert (" ! " in " ".join(drawn) or "！" in whole) == (case == "uncredited"), "not by the colour alone"
    if case != "paused":
        assert has(text("next-month-used", language, near="82%", time=""))
    for key in KEYS:
        assert f"{key} {text('key-' + ('help' if key == '?' else key), language)}" in "  ".join(drawn)
    if language == "zh":
        check_chinese(re.sub("wood|[GMk]B", "", "\n".join(drawn)))


def test_what_does_not_fit_is_left_out_by_its_rank_and_the_state_and_the_keys_stay() -> None:
    status = uncredited().status()
    for height in range(6, 24):
        drawn = picture(lambda height=height: view(status, 40, height, "en", details=True), 40)  # type: ignore[misc]
        assert len(drawn) <= height and drawn[1].endswith("working") and drawn[-1].endswith("help")
    assert "this peer" not in "\n".join(drawn) and "credit" in "\n".join(drawn)


def test_only_the_credit_that_is_late_is_red_and_values_are_not_dim() -> None:
    console = Console(width=80, height=24, force_terminal=True, color_system="standard")
    for peer, is_late in ((working(), False), (uncredited(), True)):
        drawn = [part for part in console.render(view(peer.status(), 80, 24, "en")) if part.style]
        red = [part.text for part in drawn if part.style and part.style.color and part.style.color.name == "red"]
        assert [part.startswith("!") for part in red] == [True] * is_late
        assert all(part.style and not part.style.dim for part in drawn if part.text.startswith("!"))


def test_a_stranger_s_words_paint_nothing() -> None:
    status = working().status() | {"name": "a\x1b[2Jb[bold]c", "left_out": [["x\x1b[2J", "y\x1b[31m"]]}
    drawn = "\n".join(picture(lambda: view(status, 80, 24, "en"), 80))
    assert "\x1b" not in drawn and "[bold]" in drawn


@pytest.mark.parametrize("reduce_only", [False, True])
def test_the_state_follows_the_stages_of_a_round(reduce_only: bool) -> None:
    peer = OnePeer(WARM, reduce_only=reduce_only)
    seen = []
    for stage in STAGES:
        peer.standing_now.stage(stage)
        seen.append(state(peer.status())[1])
    first, last = STAGES.index("group"), STAGES.index("kept")
    quiet = text("between-rounds" if reduce_only else "working", "en")
    averaging = text("averaging", "en")
    assert seen == [averaging if first <= number < last else quiet for number in range(len(STAGES))]
    assert "tokens/s" not in "\n".join(picture(lambda: view(peer.status(), 80, 24, "en"), 80)) or not reduce_only


def test_credit_is_the_ledger_s_and_beside_it_what_is_not_there_yet() -> None:
    peer = OnePeer(WARM)
    peer.credit = 112_776, 18, 18
    peer.commit(18, 5000)
    peer.now = 50.0
    peer.commit(19, 4000)
    told = peer.status()["credit"]
    assert (told["tokens"], told["pending"], told["pending_since"]) == (112_776, 4000, 50.0)
    peer.credit = 116_776, 19, 19
    assert (peer.status()["credit"]["pending"], peer.status()["credit"]["pending_since"]) == (0, None)


def test_credit_that_is_on_hold_is_not_late() -> None:
    peer = OnePeer(WARM, hold=4)
    for number in range(1, 5):
        peer.now = 10.0 * number
        peer.commit(number, 1000)
    assert (peer.status()["credit"]["pending"], peer.status()["credit"]["pending_since"]) == (4000, None)
    peer.commit(5, 1000)
    assert peer.status()["credit"]["pending_since"] == 10.0, "round 1 is due"


def test_a_pipe_gets_one_line_for_each_round_and_reason(capsys: pytest.CaptureFixture[str]) -> None:
    peer = working()
    answers: Iterator[Any] = iter([1, 1, NetworkError("busy"), 2, 3, 3, 4])

    def look() -> dict[str, Any] | None:
        step = next(answers)
        if isinstance(step, Exception):
            raise step
        if step == 2:
            peer.round += 1
        if step == 3:
            peer.standing_now.waiting(Reason("wants-a-beginner"))
        return None if step == 4 else {"state": peer.status()}

    words.choose("en")
    lines(look, as_json=False, wait_s=0.0)
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == "round 20, working, members 3, 1,234 tokens/s, credit 18,000 and 2,000 pending"
    assert second == first.replace("20", "21", 1) and text("wants-a-beginner", "en") in third
    assert line(peer.status(), "zh").startswith("轮次 21")


@pytest.mark.parametrize(
    ("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb"), ("", "")], ids=["no colour", "dumb", "a file"]
)
def test_where_it_cannot_paint_there_is_no_live_view(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = io.TextIOWrapper(io.BytesIO(), "utf-8")
    assert is_for_people(Console(file=made, force_terminal=True))
    if variable:
        monkeypatch.setenv(variable, value)
    assert not is_for_people(Console(file=made, force_terminal=bool(variable) or None))
    assert not is_for_people(Console(file=io.TextIOWrapper(io.BytesIO(), "ascii"), force_terminal=True))


# ---- keys ------------------------------------------------------------------------------------------------------------


@contextmanager
def a_terminal() -> Iterator[tuple[int, Any]]:
    """The person's end, and the program's."""
    person, program = pty.openpty()
    with open(program, closefd=False) as source:
        yield person, source
    os.close(person)
    os.close(program)


def settings(source: Any) -> list[Any]:
    return termios.tcgetattr(source.fileno())


@pytest.fixture(autouse=True)
def paints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


class Pressing:
    """A peer that is asked; with each look at it, the person presses the next key."""

    def __init__(self, person: int, keys: str) -> None:
        self.peer, self.person, self.keys = working(), person, list(keys)
        self.asked: list[str] = []

    def ask(self, question: dict[str, Any]) -> dict[str, Any] | None:
        if question["do"] != "status":
            self.asked.append(question["do"])
        elif self.keys:
            os.write(self.person, self.keys.pop(0).encode())
        else:
            return None
        return self.peer.ask(question)

    def leave(self) -> None:
        self.asked.append("leave")


def press(keys: str, *, closes: bool = False) -> tuple[list[str], str]:
    """What a peer was asked by these keys, and what was drawn."""
    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=True, width=80, height=24, color_system=None)
    with a_terminal() as (person, source):
        before, pressing = settings(source), Pressing(person, keys)
        view = LiveView(pressing.ask, pressing.leave, "en", console, closes=closes, source=source)
        view.say("a line of somebody else's")
        view.run(threading.Event())
        assert settings(source) == before
    return pressing.asked, drawn.getvalue()


def test_keys_do_what_the_socket_does() -> None:
    asked, drawn = press("prf ")
    assert asked == ["pause", "resume", "finish"]
    assert text("asked-p", "en") in drawn and text("owner-paused", "en") in drawn and "a line of somebody" in drawn
    assert text("finishing", "en") in drawn


def test_to_leave_takes_the_key_twice_in_a_row() -> None:
    assert press("ldl")[0] == []
    asked, drawn = press("ll ")
    assert asked == ["leave"] and text("press-again", "en") in drawn


def test_help_and_details_open_and_close_and_q_closes_what_only_watches() -> None:
    asked, drawn = press("?pd ")
    assert asked == [] and text("key-r-long", "en") in drawn and "5e-05, outer 0.7" in drawn, "p closed the help"
    assert press("qp")[0] == ["pause"]
    assert press("qp", closes=True)[0] == []
    assert text("key-q-long", "en") in "\n".join(picture(lambda: help_view(80, 24, "en", closes=True), 80))


def test_the_terminal_is_given_back_after_an_error_and_pasted_text_is_no_key() -> None:
    with a_terminal() as (person, source):
        before = settings(source)
        with pytest.raises(RuntimeError, match="ours"), Keys(source) as keys:
            assert not settings(source)[3] & (termios.ICANON | termios.ECHO)
            os.write(person, b"\x1b[A")
            assert keys.read(5.0) == ""
            os.write(person, b"p")
            assert keys.read(5.0) == "p" and keys.read(0.0) == ""
            raise RuntimeError("ours")
        assert settings(source) == before
        assert not select.select([person], [], [], 0.0)[0], "no echo"


def test_ctrl_z_gives_the_terminal_back_before_it_stops_and_takes_it_again() -> None:
    with a_terminal() as (person, source):
        before, seen = settings(source), []
        with Keys(source, suspend=lambda: seen.append(settings(source))) as keys:
            own = settings(source)
            os.write(person, b"\x1a")
            assert keys.read(5.0) == "\x1a"
            keys.suspend()
            assert seen == [before] and settings(source) == own and own != before
        assert settings(source) == before


def test_without_a_terminal_there_are_no_keys_and_nothing_is_read() -> None:
    read, write = os.pipe()
    os.write(write, b"p")
    with open(read) as source, Keys(source) as keys:
        assert keys.read(0.0) == ""
        assert select.select([read], [], [], 0.0)[0]
    os.close(write)
