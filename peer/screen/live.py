"""The live view: draws a peer's picture in a terminal and hears its owner's keys, for `join` and `status --watch`.

It asks as the control socket does, and is nobody's dependence: what it shows waits for the terminal, training does not.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from peer.screen.keys import SUSPEND, Keys
from peer.screen.messages import text
from peer.screen.view import help_view, view
from protocol import words
from protocol.errors import PotluckError

REFRESH_S = 0.5
NOTE_S = 4.0  # that the answer to a key stays
KEPT_LINES = 200  # that wait for a terminal which takes nothing
SMALLEST = (20, 6)  # columns and lines

Ask = Callable[[dict[str, Any]], dict[str, Any] | None]
_DEEDS = {"p": "pause", "r": "resume", "f": "finish"}


def is_for_people(console: Console) -> bool:
    """Whether a live view is right here: a terminal that paints, with colours and all characters."""
    plain = os.environ.get("TERM") in ("dumb", "unknown") or bool(os.environ.get("NO_COLOR"))
    return console.is_terminal and not plain and console.encoding.lower().replace("-", "") == "utf8"


class LiveView:
    """Draws until it is told to close, or the peer has gone.

    Args:
        ask: answers as the control socket does; None: the peer has gone.
        leave: asks the peer to leave.
        closes: the key q closes the view, which has the screen for itself; else lines of others go above it.
        source: of the keys.
    """

    def __init__(
        self,
        ask: Ask,
        leave: Callable[[], object],
        language: str,
        console: Console,
        *,
        details: bool = False,
        closes: bool = False,
        source: TextIO | None = None,
    ) -> None:
        self._ask, self._leave, self._language, self._console = ask, leave, language, console
        self._details, self._closes, self._source = details, closes, source
        self._helps = self._leaves = False
        self._note, self._note_left = "", 0.0
        self._status: dict[str, Any] | None = None
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)

    def say(self, line: str) -> None:
        """A line above the view; from any thread, and at once."""
        self._lines.append(line)

    def run(self, closing: threading.Event) -> None:
        """Draw and hear keys, in this thread."""
        live = Live(console=self._console, auto_refresh=False, screen=self._closes)
        with Keys(self._source or sys.stdin) as keys:
            try:
                while not closing.is_set() and self._look():
                    if keys.is_in_front:
                        live.start()
                        self._print()
                        live.update(self._picture(), refresh=True)
                    key = keys.read(REFRESH_S)
                    self._note_left -= REFRESH_S
                    if key == SUSPEND:
                        live.stop()
                        keys.suspend()
                    elif key and not self._press(key):
                        return
            finally:
                live.stop()
                self._print()

    def _look(self) -> bool:
        try:
            answer = self._ask({"do": "status"})
        except PotluckError as error:
            self._tell(words.told(error.message, self._language))
            return True
        if answer is not None:
            self._status = answer["state"]
        return answer is not None

    def _print(self) -> None:
        while self._lines:
            self._console.print(self._lines.popleft(), markup=False, highlight=False)

    def _picture(self) -> Group:
        columns, lines = self._console.size
        width, height = max(columns, SMALLEST[0]), max(lines - (0 if self._closes else 1), SMALLEST[1])
        note = self._note if self._note_left > 0 else ""
        if self._helps:
            return help_view(width, height, self._language, closes=self._closes)
        if self._status is None:
            return Group(Text(note))
        return view(self._status, width, height, self._language, details=self._details, note=note)

    def _press(self, key: str) -> bool:
        """Do what a key stands for; False: close the view."""
        if self._helps:
            self._helps = False
        elif key in ("q", "Q") and self._closes:
            return False
        elif key == "l":
            self._press_leave()
            return True
        elif key in ("?", "h"):
            self._helps = True
        elif key == "d":
            self._details = not self._details
        elif key in _DEEDS:
            self._do(key)
        self._leaves = False
        return True

    def _press_leave(self) -> None:
        if not self._leaves:
            self._leaves = True
            self._tell(text("press-again", self._language))
            return
        self._leaves = False
        self._tell(text("asked-l", self._language))
        self._leave()

    def _do(self, key: str) -> None:
        try:
            self._ask({"do": _DEEDS[key]})
        except PotluckError as error:
            self._tell(words.told(error.message, self._language))
        else:
            self._tell(text(f"asked-{key}", self._language))

    def _tell(self, note: str) -> None:
        self._note, self._note_left = note, NOTE_S
