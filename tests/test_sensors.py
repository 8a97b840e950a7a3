"""What this computer tells of itself: from what its programs print, and from what they do not."""

from __future__ import annotations

import asyncio
import datetime
import logging
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import cast

import psutil
import pytest

from peer.limits import sensors
from peer.limits.limits import OwnLimits
from peer.limits.rates import LineRates, Rate
from peer.limits.sensors import Cards, FullScreen, Idle, Metered, Month, Programs, Seldom, ThisComputer
from peer.net.traffic import Traffic

DAY = datetime.datetime(2026, 12, 2).astimezone()


@pytest.mark.parametrize(
    ("session", "seconds"),
    [
        ("Type=wayland\nIdleHint=yes\nIdleSinceHint=990000000", 10.0),
        ("Type=x11\nIdleHint=no\nIdleSinceHint=0", 0.0),
        ("Type=tty\nIdleHint=no\nIdleSinceHint=0", None),
        ("Type=x11\nIdleHint=yes\nIdleSinceHint=soon", None),
        ("", None),
    ],
)
def test_the_owners_absence_is_that_of_a_session_at_a_screen(session: str, seconds: float | None) -> None:
    def run(*command: str) -> str | None:
        return "  2 1000 me seat0\n" if "list-sessions" in command else session

    assert Idle(run, "linux", lambda: 1000.0).read() == seconds
    assert Idle(lambda *command: None, "linux").read() is None


def test_on_macos_it_is_the_hid_systems() -> None:
    assert Idle(lambda *command: '  "HIDIdleTime" = 2500000000', "darwin").read() == 2.5
    assert Idle(lambda *command: "", "darwin").read() is None


@pytest.mark.parametrize(
    ("printed", "metered"),
    [("u 1\n", True), ("u 2", False), ("u 3", True), ("u 4", False), ("u 0", None), ("s yes", None), (None, None)],
)
def test_a_line_is_paid_by_volume_by_network_managers_word(printed: str | None, metered: bool | None) -> None:
    assert Metered(lambda *command: printed).read() is metered


def test_a_window_fills_the_screen_by_the_x_servers_word() -> None:
    def run(*command: str) -> str | None:
        if "-root" in command:
            return "_NET_ACTIVE_WINDOW(WINDOW): window id # 0x1e00003"
        return "_NET_WM_STATE(ATOM) = _NET_WM_STATE_FULLSCREEN, _NET_WM_STATE_FOCUSED"

    assert FullScreen(run).read() is True
    assert FullScreen(lambda *command: None).read() is None


def test_a_program_that_hangs_or_is_not_there_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors, "ASK_S", 0.1)
    assert sensors.ask("sleep", "10") is None and sensors.ask("no-such-program") is None
    assert sensors.ask("false") is None and sensors.ask("echo", "yes") == "yes\n"


def test_this_process_is_among_the_programs() -> None:
    assert psutil.Process().name().lower() in Programs().read()


def test_what_a_system_does_not_tell_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    seldom = Seldom("a line's cost", Metered(lambda *command: None), lambda: now[0])
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            assert seldom.read() is None
            now[0] += 20
    assert [record.message.count("a line's cost") for record in caplog.records] == [1]


def test_this_computer_reads_all_limits_without_failing(tmp_path: Path) -> None:
    limits = OwnLimits(
        away_minutes=1, on_battery=False, on_metered=False, full_screen=False, programs=("x",), temperature_c=80,
        disk_free_gb=1,
    )  # fmt: skip
    readings = ThisComputer(tmp_path, LineRates()).read(limits)
    assert readings.disk_free_bytes and readings.programs
    assert ThisComputer(tmp_path, LineRates()).read(OwnLimits()).programs == frozenset(), (
        "what nothing needs is not read"
    )


def test_the_months_traffic_is_kept_over_a_restart_and_begins_anew_with_the_next(tmp_path: Path) -> None:
    rates = LineRates()
    month = Month(tmp_path, rates)
    rates.up.took(300)
    rates.down.took(700)
    assert month.read(DAY) == 1000
    month.save(DAY)
    again = Month(tmp_path, rates)
    rates.up.took(5)
    assert again.read(DAY) == 1005
    assert again.read(DAY + datetime.timedelta(days=31)) == 0
    (tmp_path / sensors.TRAFFIC_FILE).write_text("[" * 900)
    assert Month(tmp_path, LineRates()).read(DAY) == 0


def test_rates_are_applied_and_taken_back(tmp_path: Path) -> None:
    rates = LineRates()
    computer = ThisComputer(tmp_path, rates)
    computer.apply(OwnLimits(upload_mbit=8))
    assert (rates.up.most_bytes_s, rates.down.most_bytes_s) == (1e6, None)
    computer.apply(OwnLimits())
    assert rates.up.most_bytes_s is None


STEPS_BACK = """
import os, threading
from peer.limits.sensors import step_back
done, seen = threading.Event(), []
other = threading.Thread(target=lambda: (done.wait(10), seen.append(os.getpriority(os.PRIO_PROCESS, 0))))
other.start()
step_back(19)
done.set()
other.join()
print(seen, os.getpriority(os.PRIO_PROCESS, 0))
"""


def test_all_threads_step_back() -> None:
    said = subprocess.run([sys.executable, "-c", STEPS_BACK], capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout.split() == ["[19]", "19"]


def test_bulk_keeps_to_the_rate_and_control_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = [0.0], [0.0]

    async def sleep(seconds: float) -> None:
        slept[0] += seconds
        now[0] += seconds

    monkeypatch.setattr("peer.net.traffic.asyncio.sleep", sleep)
    rates = LineRates(Rate(lambda: now[0]), Rate(lambda: now[0]))
    rates.down.most_bytes_s = 100_000
    traffic = Traffic(rates=rates)

    async def play() -> None:
        bulk, control = asyncio.StreamReader(), asyncio.StreamReader()
        bulk.feed_data(bytes(1_000_000))
        control.feed_data(bytes(1000))
        writer = cast(asyncio.StreamWriter, SimpleNamespace(transport=None, close=None))
        reading, _ = traffic.counted("potluck/x/reduce", bulk, writer)
        for _ in range(10):
            await reading.readexactly(100_000)
        assert slept[0] == pytest.approx(10.0, rel=0.01), "a megabyte at 100 kB/s"
        telling, _ = traffic.counted("potluck/x/vote", control, writer)
        await telling.readexactly(1000)
        assert slept[0] == pytest.approx(10.0, rel=0.01), "nobody waits for a vote"

    asyncio.run(play())
    assert rates.down.total == 1_001_000


class Nvml:
    """Cards that tell a temperature, and what they draw, or not."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception): ...

    def __init__(self, *cards: tuple[int | None, int | None]) -> None:
        self._cards = cards

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return len(self._cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> tuple[int | None, int | None]:
        return self._cards[index]

    def nvmlDeviceGetTemperature(self, card: tuple[int | None, int | None], kind: int) -> int:
        return self._told(card[0])

    def nvmlDeviceGetPowerUsage(self, card: tuple[int | None, int | None]) -> int:
        return self._told(card[1])

    def _told(self, value: int | None) -> int:
        if value is None:
            raise self.NVMLError("not supported")
        return value


@pytest.mark.parametrize(
    ("cards", "told"),
    [
        ([(60, 100_000), (70, 50_000)], (70, 150.0)),
        ([(60, None)], (60, None)),
        ([(None, 100_000), (50, None)], (50, 100.0)),
        ([(None, None)], None),
        ([], None),
    ],
)
def test_a_card_that_does_not_tell_what_it_draws_is_not_let_get_too_hot(
    cards: list[tuple[int | None, int | None]], told: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", cast(ModuleType, Nvml(*cards)))
    assert Cards().read() == told
