"""The held-out loss of the state that is to be published, asked of the members that the host has named for that.

One of them is asked at a time, in the answers to its announcements, if it has the state; the next one when that one is
silent, or has sent what does not count. `service` hands in what they send; `publisher` looks whether it is there, and
when the time for it is over. The rules for what counts are those of `protocol.held_out`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable

from protocol.checkpoint import Evaluation
from protocol.errors import FormatError, RefusedError
from protocol.held_out import Asked, Measured, accept_measured, check_named
from protocol.rpc import ReportAnswer
from protocol.signed import Signed

logger = logging.getLogger(__name__)

ASKED_SHARE = 1 / 3  # of the time for an answer: then another one is asked, too


class Losses:
    """Which loss is wanted, whom it is asked of, and what has come.

    Args:
        named: peer ids; empty: the host measures itself.
        wait_s: how long an answer is waited for.
        run: its digest.
        genesis: of round 0: says how much held-out data there are.
    """

    def __init__(self, named: Collection[str], wait_s: float, run: str, genesis: Evaluation) -> None:
        self.named = frozenset(named)
        self._wait_s, self._run, self._genesis = wait_s, run, genesis
        self._lock = threading.Lock()
        self._asked: Asked | None = None
        self._since = 0.0  # monotonic seconds; when it was first wanted
        self._whom: list[tuple[str, float]] = []  # peer id, and since when it is asked
        self._refused: set[str] = set()  # of those that are named, who has sent what does not count
        self._found: Signed[Measured] | None = None

    def want(self, round: int, state: str, now: float) -> bool:
        """This state's loss is wanted, and no other one; whether that is new."""
        with self._lock:
            if self._asked is not None and self._asked.state == state:
                return False
            self._asked = Asked(self._run, round, state, self._genesis.sequences, self._genesis.tokens)
            self._since, self._whom, self._refused, self._found = now, [], set(), None
            return True

    def done(self) -> None:
        """None is wanted any more."""
        with self._lock:
            self._asked = self._found = None

    def ask(self, peer_id: str, offers: Iterable[str], now: float) -> str:
        """The state that this member should measure now; empty: none.

        Args:
            offers: digests of the states that it has.
        """
        if peer_id not in self.named:
            return ""
        with self._lock:
            asked = self._asked
            if asked is None or self._found is not None or asked.state not in offers or peer_id in self._refused:
                return ""
            if peer_id not in (peer for peer, _ in self._whom):
                if self._whom and now - self._whom[-1][1] < ASKED_SHARE * self._wait_s:
                    return ""
                self._whom.append((peer_id, now))
            return asked.state

    def submit(self, data: bytes, peer_id: str) -> ReportAnswer:
        """What a member has sent; the first that counts is taken."""
        with self._lock:
            asked = self._asked if self._found is None else None
        try:
            check_named(peer_id, self.named)
            if asked is None:
                raise RefusedError("no held-out loss is wanted now")
            signed = accept_measured(data, peer_id, asked)
        except (FormatError, RefusedError) as error:
            logger.warning("a held-out loss from …%s is refused: %s", peer_id[-8:], error.message)
            with self._lock:
                if asked is not None and peer_id in self.named:
                    self._refused.add(peer_id)
                self._whom = [item for item in self._whom if item[0] != peer_id]
            return ReportAnswer(False, error.message)
        with self._lock:
            if self._asked == asked and self._found is None:
                self._found = signed
        return ReportAnswer(True)

    def found(self) -> Evaluation | None:
        """The loss that was wanted, when it is here."""
        with self._lock:
            return None if self._found is None else Evaluation.by_member(self._found)

    def is_overdue(self, now: float) -> bool:
        """Whether nobody has answered in time."""
        with self._lock:
            return self._asked is not None and now - self._since >= self._wait_s
