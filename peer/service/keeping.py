"""Runs `potluck join` where nothing else does it well (launchd): again after a failure, after longer and longer pauses,
and what it says goes to a file that is rotated. `potluck service run` calls it.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO

from peer.service.plan import ENDED, LEFT, REFUSED
from protocol.backoff import Backoff
from protocol.disk import disk_error
from protocol.leaving import LeaveSignals

FIRST_PAUSE_S, LONGEST_PAUSE_S = 10.0, 900.0
STEADY_S = 600.0  # who has run so long begins with the first pause again
LOG_BYTES, LOG_FILES = 5_000_000, 4  # of each, and beside the newest
_LINE_BYTES = 1 << 16
_REST_S = 5.0  # for the last lines, where a child's child holds the pipe


def keep_running(
    start: Callable[[], int], stop: threading.Event, backoff: Backoff, clock: Callable[[], float] = time.monotonic
) -> int:
    """Start it, and start it again when it fails, until it ends for good or `stop` is set; returns its exit code."""
    while True:
        began = clock()
        code = start()
        if code in (ENDED, REFUSED, *LEFT) or stop.is_set():
            return code
        if clock() - began >= STEADY_S:
            backoff.worked()
        if stop.wait(backoff.failed()):
            return code


def keep(command: Sequence[str], log: Path) -> None:
    """Keep a command running until it ends for good, in the main thread; SIGINT and SIGTERM ask it to leave.

    Raises:
        InputError: the log cannot be written.
    """
    children = list[subprocess.Popen[bytes]]()

    def ask_to_leave() -> None:
        for child in children:
            child.send_signal(signal.SIGINT)

    def start() -> int:
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as child:
            assert child.stdout is not None, "it is a pipe"
            children[:] = [child]
            if leaving.stop.is_set():  # asked before the child was there
                ask_to_leave()
            copying = threading.Thread(target=_copy, args=(child.stdout, logger), daemon=True)
            copying.start()
            code = child.wait()
            copying.join(_REST_S)
            children.clear()
        logger.info("it has ended with exit code %d", code)
        return code

    with _rotated(log) as logger, LeaveSignals(ask_to_leave) as leaving:
        leaving.graceful = True
        keep_running(start, leaving.stop, Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S))


@contextlib.contextmanager
def _rotated(path: Path) -> Iterator[logging.Logger]:
    """What writes a line with its time, and begins a new file when this one is long."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8")
    except OSError as error:
        raise disk_error(path, error) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.Logger("service", logging.INFO)  # of no tree: nothing else writes there
    logger.addHandler(handler)
    with contextlib.closing(handler):
        yield logger


def _copy(source: IO[bytes], logger: logging.Logger) -> None:
    while line := source.readline(_LINE_BYTES):
        logger.info("%s", line.decode(errors="replace").rstrip())
