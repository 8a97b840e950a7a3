"""The gate at work: a thread that looks at the limits file, the clock and the sensors, and opens or closes.

with Watch(home, folder, given, sensors, told) as gate:
    train(..., gate)              # works while gate.closed is not set
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from peer.limits import gate, limits
from peer.limits.gate import Permission, Readings, Wish
from peer.limits.limits import OwnLimits
from protocol.backoff import Backoff
from protocol.disk import write_file
from protocol.errors import InputError
from protocol.parts import SupervisedThread, Told

logger = logging.getLogger(__name__)

LOOK_S = 0.5
SENSE_S = 1.0
MOST_PAUSE_S = 366 * 86400.0
LIMITS_FILE, PAUSED_FILE = "limits.toml", "paused.json"


class Sensors(Protocol):
    """What tells how this computer is."""

    def read(self, limits: OwnLimits) -> Readings:
        """What these limits need; cheap enough for once a second."""

    def apply(self, limits: OwnLimits) -> None:
        """Set what is set once: threads, niceness, rates."""


class Gate:
    """Whether this peer may work, for the trainer; and what its owner asks of it, for the control socket."""

    def __init__(self) -> None:
        self.closed = threading.Event()  # no step is to be done
        self.finishing = threading.Event()  # leave after the round in hand
        self.verdict = Permission()
        self.limits = OwnLimits()
        self.readings: Readings | None = None
        self.asked = Wish()

    @property
    def threads(self) -> int | None:
        """CPU threads that a step may take; None: as many as before."""
        return self.limits.threads

    def rest_s(self, step_s: float) -> float:
        """How long to rest after a step, so that work takes no more than its share of the time."""
        return gate.rest_s(self.verdict.share, step_s)


class Watch:
    """Keeps a `Gate` up to date while it is entered.

    Args:
        home: where `limits.toml` lies.
        folder: of the run: the owner's pause is kept there over a restart.
        given: `key=value` of the command line, which go before the file.
        told: when the thread fails by a mistake of ours.
        problem: shows the owner a message.
        changed: called in the thread whenever the answer is another.
    """

    def __init__(
        self,
        home: Path,
        folder: Path,
        given: Sequence[str],
        sensors: Sensors,
        told: Told,
        problem: Callable[..., None] = lambda key, **values: None,
        changed: Callable[[Permission], None] = lambda verdict: None,
    ) -> None:
        self.gate = Gate()
        self._limits_path, self._paused_path, self._given = home / LIMITS_FILE, folder / PAUSED_FILE, given
        self._sensors, self._problem, self._changed = sensors, problem, changed
        self._closing, self._nudge = threading.Event(), threading.Event()
        self._seen: tuple[int, int] | None = (-1, -1)
        self._thread = SupervisedThread("limits", self._forever, self._closing, told, Backoff(0.5, 5.0), vital=False)

    def __enter__(self) -> Watch:
        self.gate.limits = limits.read(self._limits_path, self._given)  # a mistake in it is told before all else
        self.gate.asked = self._kept()
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._nudge.set()
        self._thread.join(5.0)

    # ---- what the owner asks -----------------------------------------------------------------------------------------

    def pause(self, seconds: float | None) -> None:
        """Stop working, for so long or until `resume`; kept over a restart."""
        until = None
        if seconds is not None:
            until = self._now() + datetime.timedelta(seconds=min(max(seconds, 0.0), MOST_PAUSE_S))
        self._ask(Wish(True, until))

    def resume(self) -> None:
        """Take back `pause` and `finish`; other limits still hold."""
        self.gate.finishing.clear()
        self._ask(Wish())

    def finish(self) -> None:
        """Leave once the round in hand is made."""
        self.gate.finishing.set()
        self._nudge.set()

    def _ask(self, asked: Wish) -> None:
        self.gate.asked = asked
        if asked.paused:
            self.gate.closed.set()
        self._nudge.set()
        value = {"until": asked.until.timestamp() if asked.until else None}
        try:
            if asked.paused:
                write_file(self._paused_path, json.dumps(value).encode())
            else:
                self._paused_path.unlink(missing_ok=True)
        except (InputError, OSError) as error:
            logger.warning("the pause is not kept over a restart: %s", error)

    def _kept(self) -> Wish:
        try:
            until = json.loads(self._paused_path.read_bytes()[:1000])["until"]
            return Wish(True, None if until is None else datetime.datetime.fromtimestamp(float(until)).astimezone())
        except FileNotFoundError:
            return Wish()
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            logger.warning("%s cannot be read; this peer is not paused", self._paused_path.name)
            return Wish()

    # ---- the thread --------------------------------------------------------------------------------------------------

    def _forever(self) -> None:
        sensed = time.monotonic()
        while not self._closing.is_set():
            if self._nudge.wait(LOOK_S) or time.monotonic() - sensed >= SENSE_S or self._is_new():
                self._nudge.clear()
                sensed = time.monotonic()
                self._look()

    def _look(self) -> None:
        own, said = self.gate, self.gate.verdict
        if self._is_new() and self._reload():
            said = gate.Permission()  # the owner's own change needs no clear sign beside it
        own.readings = replace(self._sensors.read(own.limits), now=self._now())
        verdict = gate.decide(own.limits, own.readings, own.asked, said)
        if not verdict.may_work:
            own.closed.set()
        elif not own.asked.holds(self._now()):  # asked meanwhile, in another thread
            own.closed.clear()
        before, own.verdict = own.verdict, verdict
        if (before.why, before.until) != (verdict.why, verdict.until):
            self._changed(verdict)

    def _is_new(self) -> bool:
        return self._stamp() != self._seen

    def _stamp(self) -> tuple[int, int] | None:
        with contextlib.suppress(OSError):
            found = self._limits_path.stat()
            return found.st_mtime_ns, found.st_size
        return None

    def _reload(self) -> bool:
        """Take over the file as it is now; a mistake in it leaves the limits as they were, and is told (False)."""
        self._seen = self._stamp()
        try:
            self.gate.limits = limits.read(self._limits_path, self._given)
        except InputError as error:
            self._problem("limits-wrong", reason=error.message)
            return False
        self._sensors.apply(self.gate.limits)
        return True

    @staticmethod
    def _now() -> datetime.datetime:
        return datetime.datetime.now().astimezone()
