"""Who decides, in the coordinator's word: on round 1, and where half of a round's weight is gone. `service` tells it.

As soon as `sync.min_peers` members say that they work, those that came first are named: three, or `min_peers` where
that is more, or all who work where that is fewer. A majority of them makes round 1, so one that goes stops no run.
The word is signed, kept in the store before anybody is told, and never another one; see `protocol.beginners`. So are
the words that its owner gives later (`coordinator.standstill`), each of which has the next number.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.roster import Presence
from coordinator.store.database import Store
from protocol.beginners import Beginners
from protocol.epoch import Epoch, Word
from protocol.keys import PeerIdentity
from protocol.signed import Signed, stored_signed

logger = logging.getLogger(__name__)

FEW = 3  # of whom one may go
AWAY_S = 120.0  # without a word, in which a restart has long been over


class Beginning:
    """The word of one run.

    Args:
        key: signs membership certificates, and this.
        run: run digest.
        least: sync.min_peers.
        now: seconds, monotonic.
    """

    def __init__(self, store: Store, key: Ed25519PrivateKey, run: str, least: int, now: float) -> None:
        self._store, self._key, self._run, self._least = store, key, run, least
        self._lock = threading.Lock()
        self._looked, self._warned = now, False
        with store.reading() as tables:
            kept, newest = tables.beginners.word(), tables.beginners.newest_epoch()
        self._word = stored_signed(Beginners, kept) if kept else None
        self._epoch = stored_signed(Epoch, newest) if newest else None

    @property
    def named(self) -> Signed[Word] | None:
        """The newest word, if one was given."""
        return self._epoch or self._word

    @property
    def next_epoch(self) -> int:
        """The number of the word that would be given next."""
        return self._epoch.value.epoch + 1 if self._epoch else 1

    def begin_epoch(self, word: Epoch) -> Signed[Epoch]:
        """Sign a word, and keep it."""
        with self._lock:
            assert word.epoch == self.next_epoch, "numbers only grow"
            signed = word.sign(PeerIdentity(self._key))
            with self._store.writing() as tables:
                tables.beginners.begin_epoch(word.epoch, signed.data)
            self._epoch = signed
        return signed

    def word(self, working: Sequence[str], round: int) -> bytes:
        """The newest word; that on who begins is given now if it was not and enough work; else empty.

        Args:
            working: peer ids of the members that are here and train, in the order in which they came.
            round: the newest in the ledger: after the first, nobody is named any more.
        """
        with self._lock:
            if not self._word and round == 0 and len(working) >= self._least:
                peers = tuple(working[: max(self._least, FEW)])
                word = Beginners(run=self._run, peers=peers).sign(PeerIdentity(self._key))
                with self._store.writing() as tables:
                    tables.beginners.name(self._run, word.data)
                self._word = word
                logger.info("named to begin: %s", ", ".join(peers))
        named = self.named
        return named.data if named else b""

    def look(self, round: int, seen: Mapping[str, Presence], now: float) -> None:
        """Warn when so many of the named have gone that nobody can make round 1."""
        if round > 0 or not self._word or now - self._looked < AWAY_S:
            return
        peers = self._word.value.peers
        here = [peer for peer in peers if peer in seen and now - seen[peer].seen < AWAY_S]
        stuck = 2 * len(here) <= len(peers)
        if stuck and not self._warned:
            logger.warning(
                "round 1 cannot be made: of the %d members that were named to begin, %d can be heard, and more than "
                "half must be there (missing: %s). If they are gone for good, start the run anew, under another "
                "run.name or with another --folder: nothing was agreed yet",
                len(peers),
                len(here),
                ", ".join(peer for peer in peers if peer not in here),
            )
        self._warned = stuck
