"""Standing: whom this member leaves out for a while, and why. One per member; `Rounds` asks it before it forms or joins a group.

    blame    a member spoilt a group: it is left out of the next ones, if a round can be made without it
    balked   a member had joined an attempt and refused the group: another leader may have come between, so the first is free
    strike   a leader asked and sent no group after it: after a few times it is not followed for a while, each time longer
    silent   a member was asked and did not answer: after a few times it is not asked for a while, unless its vote decides

Nothing here is proof of anything: a wrong word costs the blamed a few seconds, and its work is used in the next round.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import NamedTuple

from peer.swarm.node import short

logger = logging.getLogger(__name__)

AVOID_S = 10.0  # that a leader leaves out a member that spoilt a group
BROKEN_FREE = 2  # proposals without a group, or without an answer, before a member is left alone for a while
SILENT_MOST_S = 600.0  # that a member is not asked which keeps the others waiting for nothing
SHUN_MOST_S = 60.0  # that the proposals of a leader are refused which sends no group after them


class _Blame(NamedTuple):
    until: float
    reason: str


class Standing:
    """What this member holds against others, for now."""

    def __init__(self) -> None:
        self._blamed: dict[str, _Blame] = {}
        self._balked: set[str] = set()  # since they last were in a round
        self._broken: dict[str, int] = {}  # peer id -> proposals of its that came to nothing
        self._shunned: dict[str, float] = {}  # peer id -> until when its proposals are refused
        self._unanswered: dict[str, int] = {}  # peer id -> proposals in a row that it did not answer
        self._silent: dict[str, float] = {}  # peer id -> until when it is not asked

    def blame(self, peer: str, reason: str) -> None:
        self._blamed[peer] = _Blame(time.monotonic() + AVOID_S, reason)

    def spoilt(self) -> set[str]:
        """Members that spoilt a group a moment ago."""
        now = time.monotonic()
        self._blamed = {peer: item for peer, item in self._blamed.items() if item.until > now}
        return set(self._blamed)

    def reason(self, peer: str) -> str:
        """Why a member was blamed; empty when it was not."""
        item = self._blamed.get(peer)
        return item.reason if item and item.until > time.monotonic() else ""

    def balked(self, peer: str) -> bool:
        """A member refused the group of an attempt that it had joined; returns whether it is to be blamed."""
        again = peer in self._balked
        self._balked.add(peer)
        return again

    def strike(self, leader: str) -> None:
        """A leader that asks and sends no group, again and again, is not followed for a while, each time longer."""
        self._broken[leader] = count = self._broken.get(leader, 0) + 1
        logger.info("no group came from %s, who had asked for it", short(leader))
        if count > BROKEN_FREE:
            self._shunned[leader] = time.monotonic() + _pause_s(count, SHUN_MOST_S)

    def asked(self, answered: Iterable[str], silent: Iterable[str]) -> None:
        """What came of a proposal."""
        for peer in answered:
            self._unanswered.pop(peer, None)
        for peer in silent:
            self._unanswered[peer] = count = self._unanswered.get(peer, 0) + 1
            if count > BROKEN_FREE:
                self._silent[peer] = time.monotonic() + _pause_s(count, SILENT_MOST_S)

    def silent(self) -> set[str]:
        """Members that did not answer the last times that they were asked."""
        now = time.monotonic()
        self._silent = {peer: until for peer, until in self._silent.items() if until > now}
        return set(self._silent)

    def kept_their_word(self, leader: str, members: Iterable[str]) -> None:
        """A round was made."""
        self._broken.pop(leader, None)
        self._balked.difference_update(members)

    def is_shunned(self, leader: str) -> bool:
        return self._shunned.get(leader, 0.0) > time.monotonic()


def _pause_s(count: int, most_s: float) -> float:
    """How long to do without a member that has failed so many times, each time longer."""
    return float(min(AVOID_S * 2 ** min(count - BROKEN_FREE - 1, 8), most_s))
