"""The parts of a process that run beside its main thread: threads and tasks whose end is never silent.

A part is to run until somebody tells it to end. When it ends though nobody did, or fails, that is a mistake of ours: it
is logged with its traceback, told to whoever shows it to the owner, and acted on: the part is started again after a
bounded back-off. A part that is vital and cannot be started again, or failed `MOST_FAILURES` times in a row, stays
ended, and so must whoever has it.

    part = SupervisedThread("ticker", self._tick, closing, told, Backoff(1.0, 60.0))                 a thread
    part.start(); ...; part.check(); ...; closing.set(); part.join(10.0)
    await keep("search", self._search_forever, told, Backoff(1.0, 60.0), vital=False)    in a task of an asyncio loop
    Job("save-optimizer", self._save, told)                                              a thread that ends by itself

How a block ended is seen by a context manager, `Ending`, so nothing here or elsewhere has to catch every error.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType

from protocol.backoff import Backoff
from protocol.errors import PartFailed

logger = logging.getLogger(__name__)

MOST_FAILURES = 5  # in a row; then a vital part is not started again
WELL_S = 120.0  # a part that ran for so long has worked


@dataclass(frozen=True)
class Failure:
    """One end of a part that nobody asked for.

    Args:
        part: its name.
        reason: the error, in one line.
        restarts_in_s: when it is started again; None: it stays ended.
        vital: without it, whoever has it would only look alive.
    """

    part: str
    reason: str
    restarts_in_s: float | None = None
    vital: bool = True

    @property
    def is_final(self) -> bool:
        """Whether whoever has this part must end, too."""
        return self.vital and self.restarts_in_s is None

    def error(self) -> PartFailed:
        """What that one ends with."""
        return PartFailed(
            f"a part of this program, {self.part}, has stopped: {self.reason}",
            "please report this with what was logged; what is on disk is kept",
        )


Told = Callable[[Failure], None]


class Ending:
    """Tells how the block inside ends; an `Exception` goes no further, anything else does.

    Args:
        ended: called with the error, None when there is none.
    """

    def __init__(self, ended: Callable[[BaseException | None], None]) -> None:
        self._ended = ended

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._ended(error)
        return isinstance(error, Exception)


def failed(
    part: str, error: BaseException | None, told: Told, backoff: Backoff | None = None, *, vital: bool = True
) -> Failure:
    """Log and tell an end that nobody asked for.

    Args:
        error: what ended it; None: it returned.
        backoff: says when it is started again; None: it is not.
    """
    reason = f"{type(error).__name__}: {error}" if error is not None else "it returned, though nobody asked it to"
    pause_s = backoff.failed() if backoff is not None else None
    if backoff is not None and vital and backoff.failures >= MOST_FAILURES:
        pause_s = None
    if error is not None and not isinstance(error, Exception):
        pause_s = None  # as SystemExit, which ends this thread or loop
    failure = Failure(part, reason[:300], pause_s, vital)
    after = "it stays ended" if failure.restarts_in_s is None else f"starting it again in {failure.restarts_in_s:.1f} s"
    logger.error("a part of this program, %s, has failed; %s; please report this", part, after, exc_info=error)
    with contextlib.suppress(OSError, ValueError):  # a screen that is gone is no reason to fail once more
        told(failure)
    return failure


class SupervisedThread:
    """A thread that runs `work` until `closing` is set.

    Args:
        work: returns soon after `closing` is set.
        told: called, in the thread, with each end that nobody asked for.
        backoff: starts it again after such an end; None: that would not be safe.
        vital: as a `Failure`'s.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], object],
        closing: threading.Event,
        told: Told,
        backoff: Backoff | None = None,
        *,
        vital: bool = True,
    ) -> None:
        self._name, self._work, self._closing, self._told = name, work, closing, told
        self._backoff, self._vital = backoff, vital
        self._started = 0.0
        self._failure: Failure | None = None  # the newest
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin; once."""
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Wait for its end, after `closing` was set; whether it has ended."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def check(self) -> None:
        """Raises: PartFailed: it has ended for good, though nobody asked it to."""
        if self._failure is not None and self._failure.is_final:
            raise self._failure.error()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._started, self._failure = time.monotonic(), None
            with Ending(self._ended):
                self._work()
            failure: Failure | None = self._failure
            if failure is None or failure.restarts_in_s is None or self._closing.wait(failure.restarts_in_s):
                return

    def _ended(self, error: BaseException | None) -> None:
        if error is None and self._closing.is_set():
            return
        if self._backoff is not None and time.monotonic() - self._started >= WELL_S:
            self._backoff.worked()
        self._failure = failed(self._name, error, self._told, self._backoff, vital=self._vital)


class Job:
    """A thread that ends by itself; a failure is logged and told, and nobody else has to end. Starts at once."""

    def __init__(self, name: str, work: Callable[[], object], told: Told) -> None:
        self._name, self._work, self._told = name, work, told
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until it is done."""
        self._thread.join()

    def _run(self) -> None:
        with Ending(self._ended):
            self._work()

    def _ended(self, error: BaseException | None) -> None:
        if error is not None:
            failed(self._name, error, self._told, vital=False)


async def keep(
    name: str,
    work: Callable[[], Awaitable[None]],
    told: Told,
    backoff: Backoff | None = None,
    *,
    vital: bool = True,
    is_over: Callable[[], bool] = lambda: False,
) -> None:
    """Run `work` until it is cancelled, or returns when `is_over`; returns, too, when it has ended for good.

    Args:
        told, backoff, vital: as a `SupervisedThread`'s.
    """
    failure: Failure | None = None
    started = time.monotonic()

    def ended(error: BaseException | None) -> None:
        nonlocal failure
        if isinstance(error, asyncio.CancelledError) or (error is None and is_over()):
            return
        if backoff is not None and time.monotonic() - started >= WELL_S:
            backoff.worked()
        failure = failed(name, error, told, backoff, vital=vital)

    while True:
        failure, started = None, time.monotonic()
        with Ending(ended):
            await work()
        if failure is None or failure.restarts_in_s is None:
            return
        await asyncio.sleep(failure.restarts_in_s)
