"""A person's terminal with a program in it: what it shows, and the keys that are pressed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path

_PAINT = re.compile(rb"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_=>])")


class Terminal:
    """`potluck` in a terminal of 100 columns and 40 lines, in a session of its own.

    What it shows is read as text, in order: `sees` looks only behind what was seen before. A live view draws all of
    itself again and again, so whatever it shows comes.
    """

    def __init__(self, arguments: list[str], environment: Mapping[str, str], folder: Path) -> None:
        self.shown, self._from = "", 0
        self._rest = b""
        self._code: int | None = None
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execve(sys.executable, [sys.executable, "-m", "potluck", *arguments], dict(environment))
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._fd)

    def press(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def sees(self, *words: str, timeout_s: float = 240.0) -> None:
        """Wait until each of these has been shown, one after the other; lines may have been broken anywhere."""
        deadline = time.monotonic() + timeout_s
        for word in words:
            found = None
            pattern = re.compile(r"\s+".join(map(re.escape, word.split())))
            while found is None:
                found = pattern.search(self.shown, self._from)
                if found is None and not self._read(deadline):
                    raise AssertionError(f"not shown: {word!r}; after {self.shown[self._from :][-3000:]}")
            self._from = found.end()

    def end(self, timeout_s: float = 240.0) -> int:
        """Read to the program's end; returns its exit code."""
        deadline = time.monotonic() + timeout_s
        while self._read(deadline):
            pass
        assert time.monotonic() < deadline, f"it goes on: {self.shown[-3000:]}"
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._code

    def _read(self, deadline: float) -> bool:
        """Read on; False: it has ended, or the time is over."""
        if not select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return False
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # the other end is closed
            data = b""
        whole = self._rest + data
        cut = len(whole) if not data else max(whole.rfind(b"\x1b"), 0) if b"\x1b" in whole[-32:] else len(whole)
        plain, self._rest = whole[:cut], whole[cut:]
        self.shown += _PAINT.sub(b"", plain).decode(errors="replace").replace("\r", "")
        return bool(data)
