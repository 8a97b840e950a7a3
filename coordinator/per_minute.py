"""How often something may come from one network: so many times a minute, and twice as many at once after a pause.

>>> limit = PerMinute(1)
>>> limit.take("203.0.113.7", 0.0), limit.take("203.0.113.7", 0.0), limit.take("203.0.113.7", 30.0)
(0.0, 0.0, 30.0)
>>> limit.take("203.0.113.8", 30.0), limit.take("203.0.113.7", 60.0)
(0.0, 0.0)
"""

from __future__ import annotations

from collections import OrderedDict

MAX_NETWORKS = 10_000  # that are counted
BURST_MINUTES = 2  # so much of a network's rate may come at once


class PerMinute:
    """One thing that is counted; whoever shares it between threads locks it."""

    def __init__(self, times: int) -> None:
        self._every_s, self._burst_s = 60.0 / times, 60.0 * BURST_MINUTES
        self._paid_until: OrderedDict[str, float] = OrderedDict()  # network -> when all that it took is made up for

    def take(self, network: str, now: float) -> float:
        """Count one in; 0, or the seconds to wait until it is let in: then it was not counted."""
        paid = max(self._paid_until.get(network, 0.0), now) + self._every_s
        if paid > now + self._burst_s:
            return paid - now - self._burst_s
        self._paid_until[network] = paid
        self._paid_until.move_to_end(network)
        if len(self._paid_until) > MAX_NETWORKS:
            self._paid_until.popitem(last=False)
        return 0.0
