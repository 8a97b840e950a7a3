"""What the two ways of running an arm of `scripts/bench wan` share: names, lines, what is noted on the way."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.small_community import Inputs, run_config
from lab.wan.lab import Counters, WanLab
from lab.wan.namespace import kill_all_in
from protocol.run_spec import RunSpec
from scripts.wan.plan import Course
from scripts.wan.scale import PEERS
from scripts.wan.training import sections

NAMES = tuple(f"peer-{number}" for number in range(PEERS))
VICTIM = NAMES[-1]
READY_S = 300.0
LOOK_S = 0.2


@dataclass
class Trace:
    """What was noted on the way; times are those of time.time()."""

    started: float = 0.0
    ended: float = 0.0
    tokens: int = 0
    busy: float = 0.0
    late_s: float = 0.0
    states: list[tuple[float, Path]] = field(default_factory=list)  # whole ones, or the averages that led to them
    spec: RunSpec | None = None  # by which an average leads to a state
    problems: list[str] = field(default_factory=list)
    counters: dict[str, tuple[Counters, Counters]] = field(default_factory=dict)  # before, after


def config(course: Course, inputs: Inputs, **more: Any) -> dict[str, Any]:
    """The run.toml of this course; `more` is merged in."""
    told = run_config(inputs, **sections(course.kind, course.lr, course.seed))
    for name, section in more.items():
        told[name] = told.get(name, {}) | section
    return told


def set_lines(lab: WanLab, course: Course) -> None:
    """From now on, the peers are on the course's lines."""
    line = course.scale.line(course.line)
    values = {name: getattr(line, name) for name in ("delay_ms", "up_mbit", "down_mbit", "loss", "queue_bytes")}
    for name in NAMES:
        lab.set(name, **values)


def kill(lab: WanLab, name: str) -> None:
    """SIGKILL everything on this host, as a power cut does."""
    lab.cut(name)
    kill_all_in([os.stat(lab.namespace(name)).st_ino])
