"""What `potluck doctor` found: one thing each, in plain words, with what to do where something is to be done.

Whoever needs a figure asks an `Errand` for it: all of them run side by side, and none is waited for beyond its time.

>>> errand = Errand("two and two", lambda: 2 + 2)
>>> errand.within(5.0)
4
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from protocol.errors import PotluckError
from protocol.parts import Ending

T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        key: what it is about; stands in `--json`.
        level: good; note: it works, and could be better; bad: it cannot work so.
        text: in English; `words.told` says it in the owner's language.
        remedy: what to do; never empty but where it is good.
    """

    key: str
    level: Literal["good", "note", "bad"]
    text: str
    remedy: str = ""


class NotInTime(PotluckError):
    """It took too long to find out."""


class Errand(Generic[T]):
    """Some work in a thread of its own, begun at once.

    Args:
        name: of the thread.
        work: returns what is wanted, or raises.
    """

    def __init__(self, name: str, work: Callable[[], T]) -> None:
        self._work, self._done = work, Future[T]()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def within(self, seconds: float) -> T:
        """Wait for what it brings. Raises: NotInTime; and what the work raises."""
        try:
            return self._done.result(max(seconds, 0.0))
        except TimeoutError as error:
            raise NotInTime("it took too long to find out", "try again when this computer is less busy") from error

    def _run(self) -> None:
        with Ending(self._ended):
            self._done.set_result(self._work())

    def _ended(self, error: BaseException | None) -> None:
        if error is not None:
            self._done.set_exception(error)
