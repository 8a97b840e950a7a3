"""Length: how long to work in a round with `round_seconds = "auto"`: so long that averaging takes little of the time.

5 % where a trainer waits for it; where it does not wait, half, and with fragments nine tenths: a base that is older by
some steps costs more than bytes do.

Whoever leads goes by what the last exchanges took here, from the end of its own work to the new state: the group's
slowest line is in that, as it is in every other member's.

    >>> length = RoundLength(overlap=False)
    >>> length.seconds
    30.0
    >>> for waited_s in (2.0, 9.0, 2.0):
    ...     length.waited(waited_s)
    >>> length.seconds  # 2 s of 40 are 5 %
    38.0
"""

from __future__ import annotations

import statistics
from collections import deque

SHARE = 0.05  # of the time that a trainer may stand still
OVERLAP_SHARE = 0.5  # of a round's work that may begin before its base is agreed
FRAGMENTS_SHARE = 0.9  # the same where a round averages a fragment: each value waits for several rounds as it is
FIRST_S = 30.0  # when nothing was measured yet
LEAST_S, MOST_S = 2.0, 1800.0
REMEMBERED = 5  # rounds: one bad exchange among them changes nothing


class RoundLength:
    """The length of one member's rounds.

    Args:
        overlap: the trainer works on while the members average.
        fragments: in so many rounds every value has been averaged once.
    """

    def __init__(self, *, overlap: bool, fragments: int = 1) -> None:
        share = SHARE if not overlap else OVERLAP_SHARE if fragments == 1 else FRAGMENTS_SHARE
        self._times = 1 / share - 1
        self._waited: deque[float] = deque(maxlen=REMEMBERED)

    def waited(self, seconds: float) -> None:
        """What the exchange of a round took in which this member took part."""
        self._waited.append(seconds)

    @property
    def seconds(self) -> float:
        """Of work, from an agreement to the next proposal."""
        if not self._waited:
            return FIRST_S
        return min(max(self._times * statistics.median(self._waited), LEAST_S), MOST_S)
