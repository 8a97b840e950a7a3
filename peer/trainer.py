"""The trainer: works, hands over, starts again from the next head, until the run is over or its owner stops it.

While no round can be made (too few peers are reached, say) it works on for a bounded time only, because work far from
the agreed state is worth little; then it pauses, keeps what it has done, and goes on when the reason is gone.

Where the run says so, rounds overlap: the work of the next round goes on while the members average.

When its owner, or one of the owner's limits, wants the computer back, a step ends in the middle. What is done in this
round is handed over when the others close it; then, and at once if nothing is, this peer stands aside: it leaves, by
its farewell, as long as that lasts, so that nobody waits for it.
"""

from __future__ import annotations

import enum
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import torch

from peer.disk.moments import Moments
from peer.net.swarm import Swarm
from peer.round.turns import Waiting
from peer.sync.shelf import Head
from peer.training.interruption import Interrupted
from peer.training.work import LocalWork
from protocol.errors import RoundAborted
from protocol.schedule import Rates

logger = logging.getLogger(__name__)

PATIENCE_S = 120.0  # that work goes on while no round can be made, or PATIENCE_ROUNDS times the last round's length
PATIENCE_ROUNDS = 2.0
HAND_OVER_S = 5.0  # for the round that is being closed, when the owner has stopped this peer
_WAIT_S = 0.2  # for the next head, before looking whether the owner has stopped this peer
_SPEED_MEMORY = 0.9  # of the moving average of tokens/s
LOOK_S = 0.1  # between two looks whether a round can be made again
_DIVERGED_MOST = 3  # rounds in a row
HOLD_S = 600.0  # that work in hand waits for its round to be closed, before this peer stands aside all the same


class Ended(enum.Enum):
    """Why training came to an end."""

    OVER = enum.auto()  # the run has all its rounds, or the owner has stopped this peer
    ASIDE = enum.auto()  # it may not work now
    FINISHED = enum.auto()  # the owner wanted it to leave after the round in hand


class _Aside(Exception):
    """Nothing is to be handed over, and nothing may be done."""


@dataclass(frozen=True)
class WorkReport:
    """How the work of a round goes; for the display."""

    round: int
    tokens: int
    tokens_per_s: float
    loss: float | None  # of this peer's own last micro-batch before the round's end; nats per token
    rates: Rates  # of the round


class Watcher(Protocol):
    """Who wants to know."""

    def working(self, report: WorkReport) -> None: ...

    def waiting(self, reason: Waiting | None) -> None: ...

    def paused(self, reason: Waiting) -> None: ...

    def held(self) -> None:
        """It may not work now; what is done is handed over when the round is closed."""


class Permit(Protocol):
    """Whether work may be done: `peer.limits.watch.Gate`."""

    closed: threading.Event  # no step is to be done
    finishing: threading.Event  # leave after the round in hand

    @property
    def threads(self) -> int | None: ...

    def rest_s(self, step_s: float) -> float: ...


def train(
    swarm: Swarm,
    work: LocalWork,
    rounds: int,
    stop: threading.Event,
    watcher: Watcher,
    permit: Permit,
    moments: Moments | None = None,
    patience_s: float = PATIENCE_S,
    between_rounds: Callable[[], object] = lambda: None,
) -> Ended:
    """Train until `rounds` rounds are committed (0: without end), `stop` is set, or it may not work any more.

    When `stop` is set while a round is being closed, what was done is handed over first, within `HAND_OVER_S`.

    Args:
        permit: whether it may work.
        moments: keeps what the optimizer remembers over a restart; None: nobody does.
        patience_s: how long to work on while no round can be made, at least.
        between_rounds: called before each round, when the model is not at work.

    Raises:
        RoundAborted: the local work diverged several rounds in a row.
        DaemonEnded, PartFailed: no round can be made here any more.
    """
    trainer = _Trainer(swarm, work, rounds, stop, watcher, permit, moments, patience_s)
    work.passes.interrupt_when(lambda: permit.closed.is_set() or (stop.is_set() and not swarm.close_work.is_set()))
    diverged = 0
    while not stop.is_set() and not (rounds and swarm.head.round >= rounds):
        between_rounds()
        try:
            trainer.one_round()
            diverged = 0
            if permit.finishing.is_set():
                return Ended.FINISHED
        except _Aside:
            return Ended.ASIDE
        except RoundAborted as error:
            if stop.is_set():
                break
            diverged += 1
            logger.warning("%s", error.message)
            if diverged >= _DIVERGED_MOST:
                raise
    return Ended.OVER


def reduce(swarm: Swarm, rounds: int, stop: threading.Event, permit: Permit) -> Ended:
    """Reduce for the others, with no work of one's own, until `rounds` rounds are committed or `stop` is set.

    Raises:
        DaemonEnded, PartFailed: no round can be made here any more.
    """
    while not (rounds and swarm.head.round >= rounds):
        swarm.check()
        if permit.closed.is_set():
            return Ended.ASIDE
        if permit.finishing.is_set():
            return Ended.FINISHED
        if stop.wait(_WAIT_S):
            break
    return Ended.OVER


class _Trainer:
    """What is remembered from round to round."""

    def __init__(
        self,
        swarm: Swarm,
        work: LocalWork,
        rounds: int,
        stop: threading.Event,
        watcher: Watcher,
        permit: Permit,
        moments: Moments | None,
        patience_s: float,
    ) -> None:
        self._swarm, self._work, self._rounds = swarm, work, rounds
        self._stop, self._watcher, self._permit = stop, watcher, permit
        self._moments, self._patience_s = moments, patience_s
        self._speed = self._step_s = 0.0
        self._round_s = self._paused_s = 0.0  # how long the last round took, without pauses; and those of this one
        self._waiting_since: float | None = None
        self._ahead = False  # the work is the next round's, whose base is not agreed yet
        self._loss: torch.Tensor | None = None  # of the newest step

    def one_round(self) -> None:
        """Work, hand over, and wait for what comes of it.

        Raises:
            RoundAborted: the work diverged, or the owner stopped this peer.
        """
        swarm, work, stop, started = self._swarm, self._work, self._stop, time.monotonic()
        self._paused_s = 0.0
        head = self._begin()
        while not (swarm.close_work.is_set() and work.tokens) and not stop.is_set():
            self._step()
            self._hold(swarm.close_work.is_set)
            self._pause(swarm.close_work.is_set)
        if stop.is_set() and not (swarm.close_work.is_set() and work.tokens):
            raise RoundAborted("stopped by its owner")  # in the middle of a round: nobody waits for this peer
        self._watcher.working(self._work_report(self._loss.item() if self._loss is not None else None))
        update = [work.finish()]  # handed on, not held: it is as large as the model
        handed = swarm.hand_over(update.pop(), head.digest)
        self._save(wait=self._overlaps(head))
        try:
            self._await(handed, head)
        finally:
            self._save_done()
        self._round_s = time.monotonic() - started - self._paused_s

    def _begin(self) -> Head:
        """Take over the newest head."""
        head, work = self._swarm.begin_work(), self._work
        self._ahead = False
        if self._swarm.own.begin(work, head):
            self._report()  # what is done already may be enough for this round
        return head

    def _overlaps(self, head: Head) -> bool:
        """Whether there is work to do while the round after `head` is agreed on."""
        last = self._rounds and head.round + 1 >= self._rounds
        return self._work.spec.sync.overlap and not last

    def _await(self, handed: Future[Head], head: Head) -> None:
        """Wait for the next head; where rounds overlap, work on for the round after it."""
        swarm, later = self._swarm, _Later(self._stop, self._swarm)
        if self._overlaps(head):
            self._work.carry_on()
            self._ahead = True
        while swarm.next_head(handed, 0.0 if self._ahead and not self._stop.is_set() else _WAIT_S) is None:
            if later.is_set():
                handed.cancel()
                raise RoundAborted("stopped by its owner")
            if self._ahead and not self._stop.is_set() and not self._permit.closed.is_set():
                self._step()
                self._pause(handed.done)
            elif self._ahead:
                self._watcher.held()
                self._wait(handed.done, _WAIT_S)
            else:
                self._watcher.waiting(swarm.waiting_for)

    def _step(self) -> None:
        """One step, unless it may not be, and the rest after it; an interrupted one counts for nothing."""
        started = time.monotonic()
        if self._permit.closed.is_set():
            return
        if (threads := self._permit.threads) not in (None, torch.get_num_threads()):
            torch.set_num_threads(threads)  # a matter of each thread
        try:
            result = self._work.step()
        except Interrupted:
            return
        self._loss = result.loss
        step_s = time.monotonic() - started
        now = result.tokens / max(step_s, 1e-6)
        self._speed = now if not self._speed else _SPEED_MEMORY * self._speed + (1 - _SPEED_MEMORY) * now
        self._step_s = step_s
        self._report()
        self._watcher.working(self._work_report(None))
        self._wait(self._swarm.close_work.is_set, self._permit.rest_s(step_s))

    def _wait(self, over: Callable[[], bool], seconds: float) -> None:
        """Rest so long, unless there is something to do before."""
        until = time.monotonic() + seconds
        while (left_s := until - time.monotonic()) > 0 and not (over() or self._stop.is_set()):
            time.sleep(min(left_s, LOOK_S))

    def _hold(self, over: Callable[[], bool]) -> None:
        """While it may not work: wait for the round to be closed, if there is something to hand over.

        Raises:
            _Aside: there is not, or no round came.
        """
        since = time.monotonic()
        while self._permit.closed.is_set() and not self._stop.is_set():
            self._watcher.held()
            if not self._work.tokens or time.monotonic() - since >= HOLD_S:
                raise _Aside
            if over():
                return
            self._swarm.check()
            self._wait(over, LOOK_S)

    def _work_report(self, loss: float | None) -> WorkReport:
        work = self._work
        return WorkReport(work.round, work.tokens, self._speed, loss, work.rates)

    def _report(self) -> None:
        self._swarm.report_progress(None if self._ahead else self._work.tokens, self._step_s)

    def _pause(self, over: Callable[[], bool]) -> None:
        """Tell why no round can be made; when that has lasted for too long, wait here until it can.

        Args:
            over: whether there is something else to do.
        """
        reason = self._reason()
        self._watcher.waiting(reason)
        while reason and not self._stop.is_set() and not over():
            assert self._waiting_since is not None, "set where the reason was found"
            if time.monotonic() - self._waiting_since < max(self._patience_s, PATIENCE_ROUNDS * self._round_s):
                return
            self._swarm.check()
            self._watcher.paused(reason)
            before = time.monotonic()
            time.sleep(LOOK_S)
            reason = self._reason()
            self._paused_s += time.monotonic() - before
            if not reason:
                self._watcher.waiting(None)

    def _save(self, *, wait: bool) -> None:
        """Keep what the optimizer remembers, if it is time for that."""
        if self._moments is not None:
            self._moments.begin_save()
        if wait:
            self._save_done()

    def _save_done(self) -> None:
        if self._moments is not None:
            self._moments.wait()

    def _reason(self) -> Waiting | None:
        """Why no round can be made; None when nothing is missing."""
        reason = self._swarm.waiting_for
        if reason is None:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = time.monotonic()
        return reason


class _Later(threading.Event):
    """Set a few seconds after `stop`, so that a round in hand can be finished; at once if none can be made."""

    def __init__(self, stop: threading.Event, swarm: Swarm) -> None:
        super().__init__()
        self._stop, self._swarm = stop, swarm
        self._since: float | None = None

    def is_set(self) -> bool:
        if not self._stop.is_set():
            return False
        if self._since is None:
            self._since = time.monotonic()
        return bool(self._swarm.waiting_for) or time.monotonic() - self._since >= HAND_OVER_S
