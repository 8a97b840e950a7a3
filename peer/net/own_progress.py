"""What this member says of itself, many times a minute, to each of the others."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from peer.net import wire
from peer.net.pace import Pace
from peer.net.records import MAX_ADDRESSES
from peer.round import views
from peer.round.events import Said
from peer.round.state import State
from protocol import swarm_pb2

SAID_S = 0.2  # that what is said to one member is said to the others, too


class OwnProgress:
    """Makes the message of the moment."""

    def __init__(self, state: State, pace: Pace, certificate: Callable[[], str]) -> None:
        self._state, self._pace, self._certificate = state, pace, certificate
        self.addresses: list[str] = []  # where others reach this member
        self._at, self._key = 0.0, None
        self._said = Said(0, "")

    def to(self, peer: str) -> swarm_pb2.Progress:
        """The message for one member."""
        message = wire.progress(self._own())
        message.certificate = self._certificate()
        message.addresses[:] = self.addresses[:MAX_ADDRESSES]
        message.from_you_bytes_s = self._pace.arrived_from(peer)
        message.farewells[:] = [said.data for said in views.farewells_to_tell(self._state)]
        return message

    def _own(self) -> Said:
        """A moment old at most: it is the same for all."""
        now, state = time.monotonic(), self._state
        key: Any = (state.round, state.leaving is not None, state.own.tokens > 0)
        if now - self._at >= SAID_S or self._key != key:
            self._at, self._key, self._said = now, key, views.own_said(state, now)
        return self._said
