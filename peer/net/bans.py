"""Whom the host has banned, by the newest of its signed lists that came here, from whomever."""

from __future__ import annotations

import logging
from collections.abc import Callable

from peer.net.roster import Roster
from protocol.banned import open_banned
from protocol.errors import FormatError, RefusedError
from protocol.run_card import RunCard

logger = logging.getLogger(__name__)


class KnownBans:
    """Keeps the list, and the roster to it.

    Args:
        changed: called with those who are banned newly.
    """

    def __init__(self, card: RunCard, roster: Roster, changed: Callable[[frozenset[str]], None]) -> None:
        self._card, self._roster, self._changed = card, roster, changed
        self.number, self.data = 0, b""  # of the list, and it, signed

    def take(self, data: bytes) -> None:
        """A list that somebody has sent; one that does not hold, or is not newer, changes nothing."""
        try:
            found = open_banned(data, self._card.member_key, run=self._card.run).value
        except (FormatError, RefusedError) as error:
            logger.debug("a list of banned members that does not hold: %s", error.message)
            return
        if found.number <= self.number:
            return
        self.number, self.data = found.number, data
        peers = frozenset(found.peers)
        new, self._roster.banned = peers - self._roster.banned, peers
        logger.info("the host has banned %d members, %d of them newly", len(peers), len(new))
        self._changed(new)

    def for_older(self, number: int) -> bytes:
        """The list, for somebody who knows the one of this number; empty: that is no older."""
        return self.data if number < self.number else b""
