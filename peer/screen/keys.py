"""Single keys of a terminal, as they are pressed; it is as it was before, however this ends.

    with Keys(sys.stdin) as keys:
        key = keys.read(0.5)       # "" when none came

Ctrl-C stays what it is. Ctrl-Z gives the terminal back before it stops the program, and takes it again afterwards: the
terminal's own way would leave it to the shell without echo. Where no terminal is, there are no keys.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import termios
import time
from collections.abc import Callable
from typing import Any, TextIO

SUSPEND = "\x1a"  # Ctrl-Z


def stop_all() -> None:
    """Stop this program and those it has started, as the terminal does at Ctrl-Z; returns when it goes on."""
    os.kill(0, signal.SIGTSTP)


class Keys:
    """Reads while it is entered; of one thread."""

    def __init__(self, source: TextIO, suspend: Callable[[], None] = stop_all) -> None:
        self._suspend = suspend
        self._fd: int | None = None
        self._before: list[Any] | None = None
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or no file at all
            self._fd = source.fileno() if source.isatty() else None

    def __enter__(self) -> Keys:
        if self._fd is not None and self.is_in_front:
            with contextlib.suppress(termios.error):
                self._before = termios.tcgetattr(self._fd)
                self._take()
        return self

    def __exit__(self, *_: object) -> None:
        self._give_back()

    @property
    def is_in_front(self) -> bool:
        """Whether this program has the terminal, or there is none to have: in the background it must not touch it."""
        if self._fd is None:
            return True
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:
            return True  # it is not the one that this session is controlled by

    def read(self, timeout_s: float) -> str:
        """The next key; empty: none in so long, or one that writes no ASCII character."""
        if self._fd is None or not self.is_in_front:
            time.sleep(timeout_s)
            return ""
        if not select.select([self._fd], [], [], timeout_s)[0] or not self.is_in_front:
            return ""
        try:
            data = os.read(self._fd, 64)
        except OSError:
            data = b""
        if not data:
            self._fd = None  # hung up
            return ""
        return data.decode() if len(data) == 1 and data.isascii() else ""  # arrows and pasted text are more

    def suspend(self) -> None:
        """What Ctrl-Z asks for."""
        self._give_back()
        self._suspend()
        if self._fd is not None and self.is_in_front:
            with contextlib.suppress(termios.error):
                self._take()

    def _take(self) -> None:
        assert self._fd is not None and self._before is not None, "its state is known"
        own = termios.tcgetattr(self._fd)
        own[3] &= ~(termios.ICANON | termios.ECHO)
        own[6][termios.VMIN], own[6][termios.VTIME] = 1, 0
        own[6][termios.VSUSP] = b"\x00"
        termios.tcsetattr(self._fd, termios.TCSADRAIN, own)

    def _give_back(self) -> None:
        if self._fd is not None and self._before is not None and self.is_in_front:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)
