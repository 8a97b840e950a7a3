"""What this computer tells of itself, for `gate`. What a system does not offer is said once, and limits nothing."""

from __future__ import annotations

import datetime
import logging
import os
import shutil
from pathlib import Path

import psutil

from peer.limits.gate import Readings
from peer.limits.limits import Limits

logger = logging.getLogger(__name__)


class ThisComputer:
    """The real sensors.

    Args:
        home: on whose disk room must be left.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._niceness = os.getpriority(os.PRIO_PROCESS, 0)

    def read(self, limits: Limits) -> Readings:
        return Readings(
            now=datetime.datetime.now().astimezone(),
            on_battery=self._on_battery() if not limits.on_battery else None,
            programs=self._programs() if limits.programs else frozenset(),
            disk_free_bytes=shutil.disk_usage(self._home).free if limits.disk_free_gb is not None else None,
        )

    def apply(self, limits: Limits) -> None:
        if limits.niceness is not None and limits.niceness > self._niceness:
            os.setpriority(os.PRIO_PROCESS, 0, limits.niceness)
            self._niceness = limits.niceness
        if limits.threads is not None:
            import torch

            torch.set_num_threads(limits.threads)

    @staticmethod
    def _on_battery() -> bool | None:
        battery = psutil.sensors_battery()
        return None if battery is None else not battery.power_plugged

    @staticmethod
    def _programs() -> frozenset[str]:
        found = (process.info["name"] or "" for process in psutil.process_iter(["name"]))
        return frozenset(name.lower().removesuffix(".exe") for name in found)
