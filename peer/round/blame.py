"""Blame: whom this member leaves out for a while, and why.

    blame    a member spoilt a group: it is left out of the next ones, if a round can be made without it
    balked   a member had joined an attempt and refused its group: another leader may have come between, so once is free
    strike   a leader asked and then sent no group: after a few times it is not followed for a while, each time longer
    silent   a member did not answer when asked: after a few times it is not asked for a while, unless its vote decides

Nothing here is proof of anything: a wrong word costs the blamed a few seconds, and its work is used in the next round.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

AVOID_S = 10.0  # that a leader leaves out a member that spoilt a group
BROKEN_FREE = 2  # proposals without a group, or without an answer, before a member is left alone for a while
SILENT_MOST_S = 600.0  # that a member is not asked which keeps the others waiting for nothing
SHUN_MOST_S = 60.0  # that the proposals of a leader are refused which sends no group after them


class _Spoilt(NamedTuple):
    until: float
    reason: str


@dataclass(slots=True)
class Blame:
    """What this member holds against others, for now. Times are of the clock that `step` is given."""

    blamed: dict[str, _Spoilt] = field(default_factory=dict)
    balkers: set[str] = field(default_factory=set)  # since they last were in a round
    broken: dict[str, int] = field(default_factory=dict)  # peer id -> proposals of its that came to nothing
    shunned: dict[str, float] = field(default_factory=dict)  # peer id -> until when its proposals are refused
    unanswered: dict[str, int] = field(default_factory=dict)  # peer id -> proposals in a row that it did not answer
    unasked: dict[str, float] = field(default_factory=dict)  # peer id -> until when it is not asked

    def blame(self, peer: str, reason: str, now: float) -> None:
        self.blamed[peer] = _Spoilt(now + AVOID_S, reason)

    def spoilt(self, now: float) -> set[str]:
        """Members that spoilt a group a moment ago."""
        return {peer for peer, item in self.blamed.items() if item.until > now}

    def reason(self, peer: str, now: float) -> str:
        """Why a member was blamed; empty when it was not."""
        item = self.blamed.get(peer)
        return item.reason if item and item.until > now else ""

    def balked(self, peer: str) -> bool:
        """A member refused the group of an attempt that it had joined; returns whether it is to be blamed."""
        again = peer in self.balkers
        self.balkers.add(peer)
        return again

    def strike(self, leader: str, now: float) -> None:
        """A leader that asks and sends no group, again and again, is not followed for a while, each time longer."""
        self.broken[leader] = count = self.broken.get(leader, 0) + 1
        if count > BROKEN_FREE:
            self.shunned[leader] = now + _pause_s(count, SHUN_MOST_S)

    def asked(self, answered: Iterable[str], silent: Iterable[str], now: float) -> None:
        """What came of a proposal."""
        for peer in answered:
            self.unanswered.pop(peer, None)
        for peer in silent:
            self.unanswered[peer] = count = self.unanswered.get(peer, 0) + 1
            if count > BROKEN_FREE:
                self.unasked[peer] = now + _pause_s(count, SILENT_MOST_S)

    def silent(self, now: float) -> set[str]:
        """Members that did not answer the last times that they were asked."""
        return {peer for peer, until in self.unasked.items() if until > now}

    def kept_their_word(self, leader: str, members: Iterable[str], now: float) -> None:
        """A round was made: what is over is forgotten."""
        self.broken.pop(leader, None)
        self.balkers.difference_update(members)
        self.blamed = {peer: item for peer, item in self.blamed.items() if item.until > now}
        self.unasked = {peer: until for peer, until in self.unasked.items() if until > now}

    def is_shunned(self, leader: str, now: float) -> bool:
        return self.shunned.get(leader, 0.0) > now


def _pause_s(count: int, most_s: float) -> float:
    """How long to do without a member that has failed so many times, each time longer."""
    return float(min(AVOID_S * 2 ** min(count - BROKEN_FREE - 1, 8), most_s))
