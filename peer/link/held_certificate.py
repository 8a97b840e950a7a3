"""The membership certificate that this peer holds, and when it asks for the next one.

The swarm shows it to the others, the link renews it in good time: while the coordinator is away it must last.
"""

from __future__ import annotations

import logging
import time

from peer.link.client import CoordinatorClient
from protocol.keys import PeerIdentity

logger = logging.getLogger(__name__)

RENEW_SHARE = 0.25  # of a certificate's life may pass before it is renewed; the rest is for a coordinator's absence
ASK_AGAIN_S = 60.0  # for a reducer's certificate, after an ordinary one came


class HeldCertificate:
    """Read by the swarm's thread, written by the link's.

    Args:
        identity: whose it is.
        expires: Unix seconds.
        reducer: whether it must say that this peer is trusted to reduce.
    """

    def __init__(self, identity: PeerIdentity, token: str, expires: float, *, reducer: bool = False) -> None:
        self._identity, self._reducer = identity, reducer
        self._replace(token, expires)

    def _replace(self, token: str, expires: float) -> None:
        self.token, self.expires = token, expires
        self._renew_in(RENEW_SHARE * max(expires - time.time(), 0.0))

    def _renew_in(self, wait_s: float) -> None:
        self._renew_at = time.time() + wait_s, time.monotonic() + wait_s

    def renew_soon(self) -> None:
        """It is not believed: ask for a new one at the next visit."""
        self._renew_at = 0.0, 0.0

    @property
    def is_due(self) -> bool:
        """By the clock that counts while the computer sleeps, or by the one that nobody can set back."""
        wall, monotonic = self._renew_at
        return time.time() >= wall or time.monotonic() >= monotonic

    def renew(self, client: CoordinatorClient) -> bool:
        """Ask for a new one; whether it took the old one's place.

        Raises: as `CoordinatorClient.enroll`.
        """
        enrollment = client.enroll(self._identity)
        if self._reducer and not enrollment.reducer and time.time() < self.expires:
            logger.warning(
                "the coordinator gave no reducer's certificate: the reducers' code has changed, or somebody at this "
                "address guessed at it a moment ago; the one held goes on, and a new one is asked for in %.0f s",
                ASK_AGAIN_S,
            )
            self._renew_in(ASK_AGAIN_S)
            return False
        self._replace(enrollment.certificate, enrollment.expires)
        return True
