"""How a peer is asked to leave: the first Ctrl-C or SIGTERM sets `stop`, the second ends the process at once.

Signals reach Python code only between two of the main thread's steps, and one of those may be a long computation. So a
thread of its own reads them from the pipe that the interpreter writes them to as they come.

    with Leaving(lambda: print("leaving")) as leaving:
        ...                        # prepare: the first Ctrl-C raises KeyboardInterrupt
        leaving.graceful = True
        train(..., leaving.stop)   # from here on it sets `stop`
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from protocol.backoff import Backoff
from protocol.parts import Part, Told

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = "\x1b[?25h"  # a live table hides it


class Leaving:
    """Catches the two signals while it is entered; in the main thread.

    Args:
        say: called at the first one, in another thread.
        on_failure: told when that thread fails by a mistake of ours; it is started again.
    """

    def __init__(self, say: Callable[[], None], on_failure: Told = lambda failure: None) -> None:
        self.stop = threading.Event()
        self._asked, self._closing, self._on_failure = False, threading.Event(), on_failure
        self.graceful = False  # there are others who should be told
        self._say = say
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Leaving:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._interrupt)
        self._part = Part("signals", self._watch, self._closing, self._on_failure, Backoff(0.1, 5.0), vital=False)
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

    def _interrupt(self, number: int, frame: Any) -> None:
        if not self.graceful:  # `stop` is the thread's to set: this one may hold its lock at that instant
            raise KeyboardInterrupt

    def _watch(self) -> None:
        while data := os.read(self._read, 64):
            for number in data:
                if number not in _SIGNALS:
                    continue
                if self._asked:
                    leave_at_once(number)
                self._asked = True
                self.stop.set()
                self._say()


def leave_at_once(number: int) -> None:
    """End this process; what it started ends by itself when it is gone."""
    if sys.stderr.isatty():
        os.write(2, _SHOW_CURSOR.encode())
    os._exit(128 + number)
