"""What a running peer answers its owner on `control`: how it stands, and what it was asked to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from peer.limits import gate
from peer.limits.watch import MOST_PAUSE_S, Watch
from protocol.errors import InputError


class Running(Protocol):
    """A peer, as far as its owner asks: `peer.participation.Participation`."""

    def standing(self) -> dict[str, Any]:
        """Round, tokens, speed and the like; JSON."""


class LiveState:
    """Does what is asked; `answer` is called in the socket's thread."""

    def __init__(self, watch: Watch, peer: Running) -> None:
        self._watch, self._peer = watch, peer
        self._started = time.time()
        self._deeds: dict[str, Callable[[dict[str, Any]], None]] = {
            "status": lambda asked: None,
            "pause": lambda asked: watch.pause(_seconds(asked)),
            "resume": lambda asked: watch.resume(),
            "finish": lambda asked: watch.finish(),
        }

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Raises: InputError: there is no such thing to do."""
        deed = self._deeds.get(str(asked.get("do")))
        if deed is None:
            raise InputError(f"nothing here is called {str(asked.get('do'))[:40]!r}")
        deed(asked)
        return {"state": self._state()}

    def _state(self) -> dict[str, Any]:
        own = self._watch.gate
        verdict = gate.decide(own.limits, own.readings, own.asked, own.verdict) if own.readings else own.verdict
        readings = own.readings
        near = gate.next_change(own.limits, readings) if readings else None
        closes = own.limits.changes_at(readings.now) if readings and near and near[0] == "not-now" else None
        return {
            "now": time.time(),
            "since": self._started,
            "may_work": verdict.may_work,
            "why": verdict.why.key if verdict.why else None,
            "why_values": verdict.why.values if verdict.why else {},
            "until": verdict.until.timestamp() if verdict.until else None,
            "share": round(verdict.share, 3),
            "finishing": own.finishing.is_set(),
            "next_limit": near[0] if near else None,
            "next_limit_near": round(near[1], 3) if near else None,
            "next_limit_at": closes.timestamp() if closes else None,
            "temperature_c": readings.temperature_c if readings else None,
            "power_w": readings.power_w if readings else None,
            "month_bytes": readings.month_bytes if readings else 0,
            **self._peer.standing(),
        }


def _seconds(asked: dict[str, Any]) -> float | None:
    seconds = asked.get("seconds")
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= MOST_PAUSE_S:
        raise InputError("a pause takes more than no time, and a year at most")
    return float(seconds)
