"""The held-out losses that the host asks this member for, which it trusts to measure them.

The link hears of it and hands on what comes of it. The work is the trainer's, between two rounds: on this member's own
device, of a state that it has agreed on, with the model that it trains.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Protocol

from peer.training.device import is_out_of_memory
from peer.training.evaluate import BATCH_SEQUENCES, HeldOutLoss, held_out_loss, standing_in
from peer.training.state import SharedState
from peer.training.work import LocalWork
from protocol.envelope import Signer
from protocol.errors import PotluckError
from protocol.held_out import Measured

logger = logging.getLogger(__name__)


class _BrokenOffError(Exception):
    """The owner has no time for it any more."""


class States(Protocol):
    """The agreed states that are kept here."""

    def load(self, digest: str) -> SharedState: ...


class Measuring:
    """What is asked of one member; it does one thing at a time.

    Args:
        work: has the model and the data.
        states: has what is asked about.
        signer: the member.
        tell: shows the owner a message: its key in `peer.screen.messages`.
    """

    def __init__(self, work: LocalWork, states: States, signer: Signer, tell: Callable[[str], None]) -> None:
        self._work, self._states, self._signer, self._tell = work, states, signer, tell
        self._asked = ""  # digest of a state
        self._done = ""  # of the one that was measured last, or cannot be
        self._measured: bytes | None = None  # what came of that
        self._due = False  # it is to be sent

    def asked(self, state: str) -> None:
        """The host wants the loss of a state; empty: of none. The link's thread calls this at each visit."""
        self._asked = state
        self._due = bool(state) and state == self._done  # once more: it was lost on the way

    def measured(self) -> bytes | None:
        """The signed statement that is due, once. The link's thread calls this."""
        due, self._due = self._due, False
        return self._measured if due else None

    def between_rounds(self, stop: Callable[[], bool]) -> bool:
        """Measure what is asked for; whether something was. The trainer's thread calls this.

        Args:
            stop: looked at before each batch: the owner wants the device back.
        """
        asked = self._asked
        if not asked or asked == self._done:
            return False
        try:
            state = self._states.load(asked)
            self._tell("measuring")
            logger.info("measuring the held-out loss of round %d for the host", state.round)
            found = self._loss(state, stop)
        except _BrokenOffError:
            return True
        except PotluckError as error:  # not kept any more, or data that cannot be had now
            logger.warning("the held-out loss cannot be measured for the host: %s", error.message)
            return True
        self._done, self._measured = asked, None
        if found is None:
            logger.warning("the held-out loss of round %d cannot be measured: memory is too short", state.round)
            return True
        if not math.isfinite(found.loss):
            logger.warning("the held-out loss of round %d is %s", state.round, found.loss)
            return True
        statement = Measured(
            run=self._work.spec.digest,
            round=state.round,
            state=asked,
            held_out_loss=found.loss,
            sequences=found.sequences,
            tokens=found.tokens,
        )
        self._measured, self._due = statement.sign(self._signer).data, True
        return True

    def _loss(self, state: SharedState, stop: Callable[[], bool]) -> HeldOutLoss | None:
        """The loss of a state; None: there is no memory for it. Raises: _BrokenOffError."""

        def go_on() -> None:
            if stop():
                raise _BrokenOffError

        work = self._work
        most = min(BATCH_SEQUENCES, work.micro_batch)
        try:
            with standing_in(work.model, state):
                return held_out_loss(work.model, work.dataset, batch_sequences=most, go_on=go_on)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None
