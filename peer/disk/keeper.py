"""Writes down what each round came to; `volunteer` hands it to the swarm, whose next round begins when it returns."""

from __future__ import annotations

import logging
from collections.abc import Callable

from peer.disk.kept_states import KeptStates
from peer.disk.outbox import Outbox
from peer.disk.round_log import Round, RoundLog
from peer.round.report import RoundReport
from peer.sync.averages import Average
from peer.sync.shelf import Head
from protocol.errors import InputError

logger = logging.getLogger(__name__)


class Keeper:
    """Keeps state, claim and a line for the owner; called in a thread of the swarm's.

    Args:
        tell: called with each round, and whether all of it is on disk.
    """

    def __init__(
        self,
        states: KeptStates,
        log: RoundLog,
        outbox: Outbox,
        tell: Callable[[Head, RoundReport, bool], None],
    ) -> None:
        self._states, self._log, self._outbox, self._tell = states, log, outbox, tell
        self._unsaved: dict[int, bytes] = {}

    def __call__(self, head: Head, report: RoundReport, average: Average | None) -> None:
        assert head.agreement is not None
        self._unsaved[head.round] = head.agreement.to_bytes()
        kept = False
        try:
            for number in sorted(self._unsaved):
                self._outbox.put(number, self._unsaved[number])
                del self._unsaved[number]
            self._states.keep(head, average)
            kept = True
            self._log.append(Round.of(report))
        except InputError as error:  # a full disk does not end the training; what was not written is tried again
            logger.warning("%s; %s", error.message, error.hint)
        self._tell(head, report, kept)
