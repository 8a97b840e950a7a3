"""How a process is asked to leave: the first Ctrl-C or SIGTERM sets `stop`, the second ends it at once. `potluck join`
and `potluck host` enter this.

Signals reach Python code only between two of the main thread's steps, and one of those may be a long computation; an
exception out of a handler comes wherever that thread is. So handlers do nothing, and a thread of its own reads the
signals from the pipe that the interpreter writes them to as they come.

    with LeaveSignals(lambda: print("leaving"), early=lambda: print("left")) as leaving:
        ...                        # prepare: the first Ctrl-C ends the process, for nothing is lost by that
        leaving.graceful = True
        train(..., leaving.stop)   # from here on it sets `stop`
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
import threading
from collections.abc import Callable
from typing import Any

from protocol.backoff import Backoff
from protocol.parts import SupervisedThread, Told

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = "\x1b[?25h"  # a live table hides it


class LeaveSignals:
    """Catches the two signals while it is entered; in the main thread.

    Args:
        say: called at the first one, in another thread.
        early: likewise, when that one ends the process.
        on_failure: told when that thread fails by a mistake of ours; it is started again.
    """

    def __init__(
        self,
        say: Callable[[], None],
        early: Callable[[], None] = lambda: None,
        on_failure: Told = lambda failure: None,
    ) -> None:
        self.stop = threading.Event()
        self.is_asked = False  # by a signal; `stop` may be set for other reasons
        self.graceful = False  # there is something to close, or there are others who should be told
        self._closing, self._on_failure = threading.Event(), on_failure
        self._say, self._early = say, early
        self._before: dict[int, Any] = {}
        self._terminal: list[Any] | None = None

    def __enter__(self) -> LeaveSignals:
        with contextlib.suppress(termios.error, OSError, ValueError):  # a question may change how the terminal echoes
            self._terminal = termios.tcgetattr(sys.stdin.fileno())
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, lambda number, frame: None)
        self._part = SupervisedThread(
            "signals", self._watch, self._closing, self._on_failure, Backoff(0.1, 5.0), vital=False
        )
        self._part.start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        self._closing.set()
        os.close(self._write)
        self._part.join(5.0)
        os.close(self._read)

    def _watch(self) -> None:
        while data := os.read(self._read, 64):
            for number in data:
                if number not in _SIGNALS:
                    continue
                if self.is_asked:
                    self._leave_at_once(number)
                self.is_asked = True
                if not self.graceful:
                    self._early()
                    self._leave_at_once(number)
                self.stop.set()
                self._say()

    def _leave_at_once(self, number: int) -> None:
        """End this process; what it started ends by itself when it is gone."""
        if self._terminal is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, self._terminal)
        if sys.stderr.isatty():
            os.write(2, _SHOW_CURSOR.encode())
        os._exit(128 + number)
