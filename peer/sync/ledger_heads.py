"""Whether the ledger that this peer is shown is the one that the others are shown.

The coordinator shows each member its newest signed head; members tell each other theirs. Two heads of one size must be
one. Of two sizes, the coordinator must prove that the larger ledger begins with the smaller one: it is asked about what
another member was shown, now and then. A head that another member has was signed before it is asked, so whatever it
shows then must be at least as large. What does not fit is kept: two notes by one key.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from protocol import canonical, note
from protocol.errors import FormatError, InputError, SignatureError, VerificationError
from protocol.newest import check_extends
from protocol.note import LedgerHead
from protocol.run_card import RunCard

logger = logging.getLogger(__name__)

CHECK_S = 60.0  # between two questions to the coordinator
MOST_CASES = 8  # that are kept, and told


class LedgerHeads:
    """The heads that came here; called in several threads.

    Args:
        keep: writes a file of evidence into the peer's folder, by name. Raises: InputError.
        problem: shows the owner a message: its key in `peer.screen.messages`, and its values.
    """

    def __init__(
        self, card: RunCard, keep: Callable[[str, bytes], None], problem: Callable[..., None] = lambda *_, **__: None
    ) -> None:
        self._card, self._keep, self._problem = card, keep, problem
        self._lock = threading.Lock()
        self.text = ""  # the newest that the coordinator has shown here; empty: none yet
        self._own: LedgerHead | None = None
        self._other: tuple[LedgerHead, str] | None = None  # the newest that another member was shown
        self._asked_at = time.monotonic()
        self.cases = 0  # pairs that do not fit

    def shown(self, text: str) -> None:
        """The coordinator's newest head."""
        head = self._opened(text)
        if head is None:
            return
        with self._lock:
            own, before = self._own, self.text
            if own is None or head.size > own.size:
                self._own, self.text = head, text
                return
            if head == own:
                return
        why = "two heads of one size" if head.size == own.size else "a smaller ledger than before"
        self._conflict(before, text, why)

    def heard(self, text: str) -> None:
        """What another member was shown; anybody may send anything."""
        with self._lock:
            known = text == self.text or (self._other is not None and text == self._other[1])
        head = None if known else self._opened(text)
        if head is None:
            return
        with self._lock:
            self._other = (head, text)
            own, mine = self._own, self.text
        if own is not None and own.size == head.size and own != head:
            self._conflict(mine, text, "two heads of one size")

    def to_check(self) -> LedgerHead | None:
        """A head to ask the coordinator about; None: not now."""
        with self._lock:
            now = time.monotonic()
            if self._other is None or now - self._asked_at < CHECK_S:
                return None
            self._asked_at = now
            return self._other[0]

    def checked(self, asked: LedgerHead, text: str, proof: Sequence[bytes]) -> None:
        """What the coordinator answers: its newest head, and that its ledger extends the one that was asked about."""
        head = self._opened(text)
        with self._lock:
            other = self._other[1] if self._other is not None and self._other[0] == asked else ""
        if head is None or not other:
            return
        try:
            check_extends(asked, head, proof)
        except VerificationError as error:
            self._conflict(other, text, error.message)

    def _opened(self, text: str) -> LedgerHead | None:
        """A head by the run's ledger key; None: it is none."""
        try:
            return note.open_head(text, self._card.ledger_key) if text else None
        except (FormatError, SignatureError) as error:
            logger.debug("not a ledger head: %s", error.message)
            return None

    def _conflict(self, one: str, other: str, why: str) -> None:
        with self._lock:
            if self.cases >= MOST_CASES:
                return
            self.cases += 1
            name = f"ledger-shown-two-ways-{self.cases}.json"
        logger.warning("the ledger was shown two ways: %s", why)
        case = {"run": self._card.run, "ledger_key": self._card.ledger_key, "heads": [one, other], "why": why}
        try:
            self._keep(name, canonical.dumps(case))
        except InputError as error:
            logger.warning("the evidence cannot be kept: %s", error.message)
        self._problem("ledger-two-ways", name=name)
