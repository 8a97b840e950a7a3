"""The lines to the others, as the byte movers see them: who is there, how long to wait for whom.

What they ask is answered by the round's core, which keeps it; what they see is told to it as events.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from peer.round import views
from peer.round.events import Answered, Event, Lost, SignOfLife
from peer.round.state import State

SIGNS_S = 0.25  # between two signs of life of one member


class Lines:
    """Asks a core's state, and tells it what is seen.

    Args:
        post: takes an event.
    """

    def __init__(self, state: State, post: Callable[[Event], None]) -> None:
        self._state, self._post = state, post
        self._told: dict[str, float] = {}  # peer id -> when a sign of life was last told

    def is_alive(self, peer: str) -> bool:
        return views.is_alive(self._state, peer, time.monotonic())

    def patience_s(self, peer: str) -> float:
        """How long to wait for a member's answer."""
        return views.patience_s(self._state, peer)

    def slowness_s(self, peer: str) -> float:
        """The same for a member on a slow line, 0 for others."""
        patience_s = self.patience_s(peer)
        return patience_s if patience_s > self._state.config.timing.call_s else 0.0

    def silent_s(self, peer: str) -> float:
        """How long nothing has been heard of a member; infinite for one never heard of."""
        return views.silent_s(self._state, peer, time.monotonic())

    def heard(self, peer: str) -> None:
        """Something came from this member, whatever it was."""
        now = time.monotonic()
        if now - self._told.get(peer, 0.0) >= SIGNS_S:
            self._told[peer] = now
            self._post(SignOfLife(peer))

    def answered(self, peer: str, seconds: float | None) -> None:
        """An answer took so long, or did not come in time (None)."""
        self._post(Answered(peer, seconds))

    def lost(self, peer: str, since: float) -> None:
        """A call to this member failed, and nothing else was heard of it since (time.monotonic())."""
        self._post(Lost(peer, since))
