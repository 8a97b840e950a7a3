"""How long to wait after a failure, and after the next one: longer each time, never longer than a bound, and drawn at
random.

It only counts: whoever uses it does the waiting. The draw keeps many peers that lost the same coordinator from coming
back at the same instant.

    >>> longest = Backoff(2.0, 60.0, draw=lambda least, most: most)
    >>> [longest.failed() for _ in range(7)]
    [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    >>> longest.worked(); longest.failed()
    2.0
"""

from __future__ import annotations

import random
from collections.abc import Callable

_MOST_DOUBLINGS = 64  # more than any bound needs; 2.0 ** 1024 is an OverflowError


class Backoff:
    """The pauses after failures in a row.

    Args:
        first_s: the longest after the first failure, in seconds.
        most_s: the longest of all.
        draw: a number between two; each pause is at least half of the longest that it may be.
    """

    def __init__(self, first_s: float, most_s: float, draw: Callable[[float, float], float] = random.uniform) -> None:
        self._first_s, self._most_s, self._draw = first_s, most_s, draw
        self.failures = 0  # in a row

    def failed(self) -> float:
        """It failed once more: how long to wait, in seconds."""
        longest_s = min(self._first_s * 2.0 ** min(self.failures, _MOST_DOUBLINGS), self._most_s)
        self.failures += 1
        return self._draw(longest_s / 2, longest_s)

    def worked(self) -> None:
        """It went well: the next failure is the first again."""
        self.failures = 0
