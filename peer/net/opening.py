"""Opening: signatures and certificates of what came from outside, each checked once, before the core hears of it."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from protocol import certificate
from protocol.certificate import Membership
from protocol.epoch import Word, open_word
from protocol.errors import RefusedError
from protocol.signed import Signed, Statement, open_signed

REMEMBERED = 16_384  # statements, and certificates: of 64 members in a round of many attempts

S = TypeVar("S", bound=Statement)


class Opening:
    """Checks for the members of one run; may be called in several threads."""

    def __init__(self, run: str, membership_key: Ed25519PublicKey) -> None:
        self.run, self.key = run, membership_key
        self._known: OrderedDict[tuple[Any, bytes], Any] = OrderedDict()
        self._lock = threading.Lock()

    def statement(self, kind: type[S], data: bytes) -> Signed[S]:
        """A signed statement. Raises: FormatError, SignatureError."""
        key = (kind, hashlib.sha256(data).digest())
        known: Signed[S] | None = self._find(key)
        return known if known is not None else self._keep(key, open_signed(kind, data))

    def member(self, token: str, *, accept_expired: bool = False) -> Membership:
        """What a certificate says.

        Args:
            accept_expired: for claims that were let in before.

        Raises:
            FormatError, RefusedError: it is none of this run's, or has ended.
        """
        key = (Membership, hashlib.sha256(token.encode()).digest())
        known: Membership | None = self._find(key)
        if known is None:
            known = self._keep(key, certificate.check(token, self.key, run=self.run, accept_expired=True))
            fresh = False
        else:
            fresh = time.time() < known.expires
        if not accept_expired and not fresh:  # with its leeway, and its words
            certificate.check(token, self.key, run=self.run)
        return known

    def member_is(self, token: str, peer: str, *, accept_expired: bool = False) -> None:
        """Check that a certificate is this peer's. Raises: FormatError, RefusedError."""
        if self.member(token, accept_expired=accept_expired).peer_id != peer:
            raise RefusedError("the certificate is another peer's")

    def word(self, data: bytes) -> Signed[Word]:
        """The coordinator's word on who decides. Raises: FormatError, RefusedError."""
        return open_word(data, self.key, run=self.run)

    def _find(self, key: tuple[Any, bytes]) -> Any | None:
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
            return found

    def _keep(self, key: tuple[Any, bytes], found: Any) -> Any:
        with self._lock:
            self._known[key] = found
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return found
