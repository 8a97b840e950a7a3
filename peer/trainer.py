"""The trainer: works, hands over, starts again from the next head, until the run is over or its owner stops it."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import Protocol

from peer.swarm.swarm import Swarm
from peer.training.work import LocalWork
from protocol.errors import RoundAborted

logger = logging.getLogger(__name__)

_SPEED_MEMORY = 0.9  # of the moving average of tokens/s
_DIVERGED_MOST = 3  # rounds in a row


@dataclass(frozen=True)
class WorkReport:
    """How the work of a round goes; for the display."""

    round: int
    tokens: int
    tokens_per_s: float
    loss: float | None  # of this peer's own last micro-batch before the round's end; nats per token


class Watcher(Protocol):
    """Who wants to know."""

    def working(self, report: WorkReport) -> None: ...

    def waiting(self, reason: str) -> None: ...


def train(swarm: Swarm, work: LocalWork, rounds: int, stop: threading.Event, watcher: Watcher) -> None:
    """Train until `rounds` rounds are committed (0: without end) or `stop` is set.

    Raises:
        RoundAborted: the local work diverged several rounds in a row.
    """
    speed, diverged = 0.0, 0
    while not stop.is_set() and not (rounds and swarm.head.round >= rounds):
        head = swarm.begin_work()
        work.begin(head.state)
        while True:
            started = time.monotonic()
            result = work.step()
            step_s = time.monotonic() - started
            now = result.tokens / max(step_s, 1e-6)
            speed = now if not speed else _SPEED_MEMORY * speed + (1 - _SPEED_MEMORY) * now
            swarm.report_progress(work.tokens, speed, step_s)
            watcher.working(WorkReport(work.round, work.tokens, speed, None))
            watcher.waiting(swarm.waiting_for)  # enough is done, and no round can be made
            if swarm.close_work.is_set() or stop.is_set():
                break
        watcher.working(WorkReport(work.round, work.tokens, speed, result.loss.item()))
        try:
            swarm.finish_work(work.finish(), head.state.digest, stop, watcher.waiting)
            diverged = 0
        except RoundAborted as error:
            if stop.is_set():
                return
            diverged += 1
            logger.warning("%s", error.message)
            if diverged >= _DIVERGED_MOST:
                raise
