"""Why a peer stops by the coordinator's word; how its network part starts again after it could do nothing more."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from peer.link.answers import Announcement
from peer.link.notices import expelled, in_use_elsewhere
from peer.net.swarm import DaemonEnded
from protocol.backoff import Backoff
from protocol.errors import PartFailed, RefusedError
from protocol.parts import MOST_FAILURES
from protocol.rpc import Twin

logger = logging.getLogger(__name__)

OVER_S = 5.0  # the run is over by the coordinator's word: this peer may be about to commit the last round, too
LAST_STATE_S = 60.0  # all rounds are made, the last state is still to be handed in: this peer may be about to fetch it
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0  # before the network part is started again


class Stopping:
    """Why this peer stops by the coordinator's word, and not by its owner's.

    Args:
        stop: set when it is to stop.
        rounds: that the run has; 0: without end.
    """

    def __init__(self, stop: threading.Event, rounds: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._stop, self._rounds, self._clock = stop, rounds, clock
        self._over_since: float | None = None  # the run has had all its rounds
        self.is_over = False  # and this peer, at an earlier one, has nothing to do any more
        self.refusal: RefusedError | None = None  # the host has banned this peer, or another computer is this one, too

    def heard(self, answer: Announcement, round: int) -> None:
        """What the coordinator said while this peer's newest round was `round`."""
        if 0 < self._rounds <= answer.round:
            self._over(round, LAST_STATE_S)
        if answer.finished:
            self._over(round, OVER_S)
        if answer.expelled:
            self.refusal = expelled(answer.expelled)
            self._stop.set()
        if answer.twin is Twin.CAME_FIRST:
            self.refusal = in_use_elsewhere()
            self._stop.set()

    def _over(self, round: int, grace_s: float) -> None:
        now = self._clock()
        self._over_since = self._over_since or now
        if round < self._rounds and now - self._over_since >= grace_s:
            self.is_over = True
            self._stop.set()


def start_again(
    once: Callable[[], None], kept_round: Callable[[], int], problem: Callable[..., None], stop: threading.Event
) -> None:
    """Call `once` until it returns; again, after a pause, when it could do nothing any more.

    Args:
        once: ends with DaemonEnded or PartFailed when all must start again.
        kept_round: the newest round that is on disk; while there are new ones, pauses stay short.
        problem: shows the owner a message: its key in `peer.screen.messages`.
        stop: ends it in a pause.

    Raises: PartFailed: that has happened `MOST_FAILURES` times without a round in between.
    """
    backoff = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
    while True:
        before = kept_round()
        try:
            return once()
        except (DaemonEnded, PartFailed) as error:
            logger.warning("%s", error.message)
            if kept_round() > before:
                backoff.worked()
            pause_s = backoff.failed()
            if isinstance(error, PartFailed) and backoff.failures >= MOST_FAILURES:
                raise
            problem("network-restarts" if isinstance(error, DaemonEnded) else "swarm-restarts")
        if stop.wait(pause_s):
            return
