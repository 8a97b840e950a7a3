"""The roster: which authenticated peers are members of the run, by the certificates that they have shown."""

from __future__ import annotations

import time

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from protocol import certificate
from protocol.certificate import Membership
from protocol.errors import RefusedError

MAX_MEMBERS = 4096


class Roster:
    """Certificates, each checked once while it holds; and where each member said that it is."""

    def __init__(self, run: str, membership_key: Ed25519PublicKey) -> None:
        self._run, self._key = run, membership_key
        self._checked: dict[str, tuple[str, Membership]] = {}  # peer id -> (certificate, what it says)
        self._addresses: dict[str, tuple[str, ...]] = {}
        self.banned: frozenset[str] = frozenset()  # peer ids

    def admit(self, peer_id: str, token: str) -> Membership:
        """Check that an authenticated peer is a member of this run.

        Raises:
            FormatError, RefusedError: it is not, or is banned.
        """
        if peer_id in self.banned:
            raise RefusedError("the host has banned it")
        return self.check(peer_id, token)

    def check(self, peer_id: str, token: str) -> Membership:
        """The same of somebody who may be banned: of a group that was made before that was known."""
        known = self._checked.get(peer_id)
        if known and known[0] == token and time.time() < known[1].expires:
            return known[1]
        membership = certificate.check(token, self._key, run=self._run)
        if membership.peer_id != peer_id:
            raise RefusedError("the certificate is another peer's")
        if len(self._checked) >= MAX_MEMBERS:
            self._checked.clear()
            self._addresses.clear()
        self._checked[peer_id] = (token, membership)
        return membership

    def is_admitted(self, peer_id: str) -> bool:
        """Whether this peer has shown a certificate that still holds, and is not banned."""
        known = self._checked.get(peer_id)
        return known is not None and peer_id not in self.banned and time.time() < known[1].expires

    def certificate(self, peer_id: str) -> str:
        """The certificate that an admitted member has shown; empty when it has shown none."""
        known = self._checked.get(peer_id)
        return known[0] if known else ""

    def reduces(self, peer_id: str) -> bool:
        """Whether the host trusts this member to reduce for all."""
        known = self._checked.get(peer_id)
        return known is not None and known[1].reducer

    def addresses(self, peer_id: str) -> tuple[str, ...]:
        """Where a member said it is."""
        return self._addresses.get(peer_id, ())

    def note_addresses(self, peer_id: str, addresses: tuple[str, ...]) -> None:
        if addresses and peer_id in self._checked:
            self._addresses[peer_id] = addresses
