"""What is said of a computer that slept, or is elsewhere in the network: at once, and when it is back in a round."""

from __future__ import annotations

from collections.abc import Callable

from peer.limits.awake import Change
from peer.link.clock import in_words


class Returning:
    """Remembers that this peer is on its way back.

    Args:
        problem: shows a message: its key in `peer.screen.messages`, and its values.
    """

    def __init__(self, problem: Callable[..., None]) -> None:
        self._problem = problem
        self._is_on_its_way = False

    def changed(self, change: Change) -> None:
        self._is_on_its_way = True
        if change.slept_s:
            self._problem("slept", time=in_words(change.slept_s))
        else:
            self._problem("network-changed")

    def committed(self, round: int) -> None:
        """This peer took part in a round."""
        if self._is_on_its_way:
            self._is_on_its_way = False
            self._problem("back", round=str(round))
