"""Threads and tasks: none ends in silence, and no pause after failures grows without bound."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from lab.processes import eventually
from protocol import parts
from protocol.backoff import Backoff
from protocol.errors import PartFailed
from protocol.parts import MOST_FAILURES, Failure, Job, SupervisedThread, keep


def at_once() -> Backoff:
    return Backoff(1e-6, 1e-6)


def breaks(times: int, closing: threading.Event, error: BaseException) -> Callable[[], None]:
    """Work that fails so often, and then goes on until it is told to end."""
    left = [times]

    def work() -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise type(error)(*error.args)
        closing.wait(60)

    return work


# ---- the back-off ----------------------------------------------------------------------------------------------------


def test_ten_thousand_failures_in_a_row_are_paused_after_within_bounds() -> None:
    backoff = Backoff(2.0, 60.0)
    pauses = [backoff.failed() for _ in range(10_000)]
    assert all(1.0 <= pause <= 60.0 for pause in pauses) and min(pauses[10:]) >= 30.0
    assert len(set(pauses[10:])) > 5000, "drawn anew each time: many peers do not come back at one instant"
    backoff.worked()
    assert backoff.failed() <= 2.0


# ---- threads ---------------------------------------------------------------------------------------------------------


def test_a_part_that_fails_is_logged_told_and_started_again(caplog: pytest.LogCaptureFixture) -> None:
    told: list[Failure] = []
    closing = threading.Event()
    part = SupervisedThread("ticker", breaks(3, closing, ValueError("no such row")), closing, told.append, at_once())
    part.start()
    eventually(lambda: len(told) == 3)
    part.check()
    closing.set()
    assert part.join(10)
    assert [(item.part, item.reason, item.is_final) for item in told] == 3 * [
        ("ticker", "ValueError: no such row", False)
    ]
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 3 and all(record.exc_info for record in errors), "with their tracebacks"


@pytest.mark.parametrize("backoff", [None, at_once()], ids=["not safe to start again", "fails again and again"])
def test_a_vital_part_that_stays_ended_ends_whoever_has_it(backoff: Backoff | None) -> None:
    told: list[Failure] = []
    closing = threading.Event()
    part = SupervisedThread("clock", breaks(10**6, closing, KeyError("x")), closing, told.append, backoff)
    part.start()
    assert part.join(10)
    assert told[-1].is_final and len(told) == (MOST_FAILURES if backoff else 1)
    with pytest.raises(PartFailed, match="clock, has stopped: KeyError") as caught:
        part.check()
    assert caught.value.exit_code == 5


def test_a_part_that_is_not_vital_is_started_again_however_often_it_fails() -> None:
    told: list[Failure] = []
    closing = threading.Event()
    part = SupervisedThread("link", breaks(2000, closing, KeyError("x")), closing, told.append, at_once(), vital=False)
    part.start()
    eventually(lambda: len(told) == 2000)
    part.check()
    closing.set()
    assert part.join(10)


def test_a_part_that_just_returns_has_failed_unless_it_was_asked_to() -> None:
    told: list[Failure] = []
    closing = threading.Event()
    part = SupervisedThread("ticker", lambda: None, closing, told.append)
    part.start()
    assert part.join(10) and told[0].is_final and "returned" in told[0].reason
    closing.set()
    quiet = SupervisedThread("ticker", closing.wait, closing, told.append)
    quiet.start()
    assert quiet.join(10) and len(told) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_is_no_exception_is_told_and_goes_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Failure] = []
    passed: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", passed.append)
    part = SupervisedThread(
        "ticker", breaks(1, threading.Event(), KeyboardInterrupt()), threading.Event(), told.append, at_once()
    )
    part.start()
    assert part.join(10) and told[0].is_final
    assert passed[0].exc_type is KeyboardInterrupt, "it was not swallowed"


def test_a_screen_that_is_gone_does_not_keep_a_part_from_its_restart() -> None:
    closing, again = threading.Event(), threading.Event()
    failures = iter([ValueError("x")])

    def work() -> None:
        for error in failures:
            raise error
        again.set()
        closing.wait(60)

    def told(failure: Failure) -> None:
        raise BrokenPipeError

    part = SupervisedThread("link", work, closing, told, at_once())
    part.start()
    assert again.wait(10)
    closing.set()
    assert part.join(10)


def test_a_job_that_fails_is_told_and_ends_nobody(caplog: pytest.LogCaptureFixture) -> None:
    told: list[Failure] = []
    Job("save", lambda: {}["moment"], told.append).join()
    assert told[0].reason == "KeyError: 'moment'" and not told[0].is_final
    assert "save" in caplog.text and "Traceback" in caplog.text
    Job("save", lambda: None, told.append).join()
    assert len(told) == 1


# ---- tasks -----------------------------------------------------------------------------------------------------------


def test_a_task_is_kept_until_it_is_cancelled_or_over() -> None:
    told: list[Failure] = []
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs <= 3:
            raise ZeroDivisionError("by zero")
        if runs > 4:
            return
        await asyncio.sleep(60)

    async def main() -> None:
        task = asyncio.create_task(keep("search", work, told.append, at_once()))
        while runs < 4:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled() and [item.is_final for item in told] == 3 * [False]
        await keep("clock", work, told.append, is_over=lambda: True)
        assert len(told) == 3
        await keep("clock", work, told.append)
        assert told[3].is_final and "returned" in told[3].reason

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_part_that_ran_well_for_a_while_has_its_failures_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "WELL_S", 0.0)
    told: list[Failure] = []
    closing = threading.Event()
    part = SupervisedThread(
        "ticker", breaks(3 * MOST_FAILURES, closing, ValueError("x")), closing, told.append, at_once()
    )
    part.start()
    eventually(lambda: len(told) == 3 * MOST_FAILURES)
    part.check()
    closing.set()
    assert part.join(10)
