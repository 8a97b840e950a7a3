"""What this computer tells of itself, for `gate`, and what is set on it once. A sensor for each thing, with a class of
its own: what a system does not offer is None, said once in the log, and limits nothing.

Sources: psutil (battery, programs); /sys and logind (Linux), ioreg and pmset (macOS) through their own commands for the
owner's absence; NetworkManager (Linux) for lines that are paid by volume; NVML, by nvidia-ml-py, for cards.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import psutil

from peer.limits.gate import Readings
from peer.limits.limits import OwnLimits
from peer.limits.rates import LineRates
from protocol.disk import write_file
from protocol.errors import InputError

logger = logging.getLogger(__name__)

ASK_S = 2.0  # that another program may take to answer
SELDOM_S = 10.0  # between two looks at what changes seldom or costs a program's start
TRAFFIC_FILE = "traffic.json"
SAVE_S = 60.0  # between two times that the month's traffic is written down
Run = Callable[..., str | None]


def ask(*command: str) -> str | None:
    """What a program of the system prints; None: there is none, or it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=ASK_S, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout if done.returncode == 0 else None


class Sensor(Protocol):
    """Looks at one thing."""

    def read(self) -> Any:
        """None: this system does not tell."""


class Idle:
    """Seconds since mouse or keyboard was touched: by logind on Linux, by the HID system on macOS."""

    def __init__(self, ask: Run = ask, system: str = sys.platform, clock: Callable[[], float] = time.time) -> None:
        self._ask, self._system, self._clock = ask, system, clock

    def read(self) -> float | None:
        if self._system == "darwin":
            told = self._ask("ioreg", "-c", "IOHIDSystem", "-d", "4")
            found = re.search(r'"HIDIdleTime" = (\d+)', told or "")
            return int(found[1]) / 1e9 if found else None
        told = self._ask("loginctl", "list-sessions", "--no-legend")
        sessions = [line.split()[0] for line in (told or "").splitlines() if line.split()]
        idle = [self._session(name) for name in sessions[:8]]
        return min((seconds for seconds in idle if seconds is not None), default=None)

    def _session(self, name: str) -> float | None:
        """Of a session at a screen of this computer: 0 while it is not idle."""
        told = self._ask("loginctl", "show-session", name, "-p", "IdleHint", "-p", "IdleSinceHint", "-p", "Type")
        values = dict(line.partition("=")[::2] for line in (told or "").splitlines())
        if values.get("Type") not in ("x11", "wayland", "mir"):
            return None
        if values.get("IdleHint") != "yes":
            return 0.0
        since = values.get("IdleSinceHint", "")
        return max(self._clock() - int(since) / 1e6, 0.0) if since.isdigit() else None


class Battery:
    """Whether this computer runs on its battery."""

    def read(self) -> bool | None:
        try:
            battery = psutil.sensors_battery()
        except (OSError, AttributeError, RuntimeError):
            return None
        return None if battery is None or battery.power_plugged is None else not battery.power_plugged


class Metered:
    """Whether the line is paid by volume, by NetworkManager's word; 1 and 3 are its yes and its guess at yes."""

    def __init__(self, ask: Run = ask) -> None:
        self._ask = ask

    def read(self) -> bool | None:
        told = self._ask(
            "busctl", "get-property", "org.freedesktop.NetworkManager", "/org/freedesktop/NetworkManager",
            "org.freedesktop.NetworkManager", "Metered",
        )  # fmt: skip
        found = re.fullmatch(r"u (\d+)", (told or "").strip())
        return None if found is None or found[1] == "0" else found[1] in ("1", "3")


class FullScreen:
    """Whether the window in front fills the screen, by the X server's word."""

    def __init__(self, ask: Run = ask) -> None:
        self._ask = ask

    def read(self) -> bool | None:
        root = self._ask("xprop", "-root", "_NET_ACTIVE_WINDOW")
        found = re.search(r"# (0x[0-9a-f]+)", root or "")
        if found is None:
            return None
        state = self._ask("xprop", "-id", found[1], "_NET_WM_STATE")
        return None if state is None else "_NET_WM_STATE_FULLSCREEN" in state


class Programs:
    """Names of what runs, lower case, without `.exe`."""

    def read(self) -> frozenset[str]:
        found = (process.info["name"] or "" for process in psutil.process_iter(["name"]))
        return frozenset(name.lower().removesuffix(".exe") for name in found)


class Cards:
    """The hottest card's temperature, °C, and what all draw, W, each None where no card tells it; by NVML."""

    def __init__(self) -> None:
        self._handles: list[Any] | None = None

    def read(self) -> tuple[float | None, float | None] | None:
        try:
            import pynvml
        except ImportError:
            return None
        try:
            if self._handles is None:
                pynvml.nvmlInit()
                self._handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError:
            return None
        degrees, milliwatts = list[float](), list[float]()
        for card in self._handles:
            with contextlib.suppress(pynvml.NVMLError):  # many of a laptop's do not tell what they draw
                degrees.append(pynvml.nvmlDeviceGetTemperature(card, pynvml.NVML_TEMPERATURE_GPU))
            with contextlib.suppress(pynvml.NVMLError):
                milliwatts.append(pynvml.nvmlDeviceGetPowerUsage(card))
        if not (degrees or milliwatts):
            return None
        return max(degrees, default=None), sum(milliwatts) / 1000 if milliwatts else None


class Seldom:
    """Another sensor, looked at only now and then; says once when the system does not tell."""

    def __init__(self, name: str, sensor: Sensor, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._sensor, self._clock = name, sensor, clock
        self._at, self._value = -SELDOM_S, None
        self._said = False

    def read(self, every_s: float = SELDOM_S, *, heeded: bool = True) -> Any:
        """`heeded`: by a limit, which is without effect where the system does not tell."""
        if self._clock() - self._at >= every_s:
            self._at, self._value = self._clock(), self._sensor.read()
        if heeded and self._value is None and not self._said:
            self._said = True
            logger.warning("this system does not tell %s; that limit is without effect here", self._name)
        return self._value


class Month:
    """Bytes of this calendar month, both ways, over restarts; lost are those of a minute at most.

    Args:
        folder: where the count is kept.
    """

    def __init__(self, folder: Path, rates: LineRates) -> None:
        self._path, self._rates = folder / TRAFFIC_FILE, rates
        self._month, self._before = self._kept()
        self._from = self._saved = self._total

    @property
    def _total(self) -> int:
        return self._rates.up.total + self._rates.down.total

    def read(self, now: datetime.datetime) -> int:
        month = f"{now:%Y-%m}"
        if month != (self._month or month):
            self._before, self._from = 0, self._total
        self._month = month
        return self._before + self._total - self._from

    def save(self, now: datetime.datetime) -> None:
        """Raises: InputError: the disk."""
        if self._total != self._saved:
            write_file(self._path, json.dumps({"month": self._month, "bytes": self.read(now)}).encode())
            self._saved = self._total

    def _kept(self) -> tuple[str, int]:
        try:
            value = json.loads(self._path.read_bytes()[:1000])
            return str(value["month"]), max(int(value["bytes"]), 0)
        except FileNotFoundError:
            return "", 0
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            logger.warning("%s cannot be read; this month's traffic is counted from 0", self._path)
            return "", 0


def step_back(niceness: int) -> None:
    """Let other programs go before this one, and before what it has started."""
    me = psutil.Process()
    with contextlib.suppress(OSError, psutil.Error):  # whatever has ended meanwhile
        if sys.platform.startswith("linux"):  # where each thread has a niceness of its own
            for thread in me.threads():
                os.setpriority(os.PRIO_PROCESS, thread.id, niceness)
        else:
            me.nice(niceness)
        for child in me.children(recursive=True):
            child.nice(niceness)


class ThisComputer:
    """All of them: `peer.limits.watch.Sensors`.

    Args:
        home: on whose disk room must be left; the month's traffic is kept there.
    """

    def __init__(self, home: Path, rates: LineRates) -> None:
        self._home, self._rates = home, rates
        self._month, self._programs = Month(home, rates), Programs()
        self._idle = Seldom("when you were here last", Idle())
        self._full = Seldom("what fills the screen", FullScreen())
        self._battery = Seldom("whether it is on battery", Battery())
        self._metered = Seldom("whether the line is paid by volume", Metered())
        self._cards = Seldom("a card's temperature", Cards())
        self._niceness = os.getpriority(os.PRIO_PROCESS, 0)
        self._saved = time.monotonic()

    def read(self, limits: OwnLimits) -> Readings:
        """What these limits need."""
        now = datetime.datetime.now().astimezone()
        self._keep(now)
        heeds_card = limits.temperature_c is not None or limits.power_w is not None
        card = self._cards.read(1.0 if heeds_card else SELDOM_S, heeded=heeds_card)  # the screen shows it, too
        degrees, watts = card or (None, None)
        return Readings(
            now=now,
            idle_s=self._idle.read(1.0) if limits.away_minutes is not None else None,
            on_battery=None if limits.on_battery else self._battery.read(1.0),
            on_metered=None if limits.on_metered else self._metered.read(),
            full_screen=None if limits.full_screen else self._full.read(1.0),
            programs=self._programs.read() if limits.programs else frozenset(),
            temperature_c=degrees,
            power_w=watts,
            disk_free_bytes=shutil.disk_usage(self._home).free if limits.disk_free_gb is not None else None,
            month_bytes=self._month.read(now),
        )

    def apply(self, limits: OwnLimits) -> None:
        """LineRates, and niceness, which a process may only raise; threads are the trainer's to set."""
        for rate, most in ((self._rates.up, limits.upload_mbit), (self._rates.down, limits.download_mbit)):
            rate.most_bytes_s = None if most is None else most * 1e6 / 8
        if limits.niceness is not None and limits.niceness > self._niceness:
            self._niceness = limits.niceness
            step_back(limits.niceness)

    def _keep(self, now: datetime.datetime) -> None:
        if time.monotonic() - self._saved >= SAVE_S:
            self._saved = time.monotonic()
            try:
                self._month.save(now)
            except InputError as error:
                logger.warning("this month's traffic is not written down: %s", error.message)
