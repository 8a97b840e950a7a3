"""The link to the coordinator: a thread of its own, so that nothing it does is on the training path.

Every few seconds it says that this peer is here, learns where others are, sends what waits in the outbox, uploads a state
that is asked for, fetches receipts, and renews the certificate in good time. While the coordinator is away it tries again
with growing, jittered pauses; the peer trains on.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Protocol

from peer.clock import ClockWrong
from peer.coordinator_client import CoordinatorClient
from peer.outbox import Outbox
from peer.receipts import Receipts
from peer.training.state import SharedState
from protocol.errors import CoordinatorAway, InputError, PotluckError, RefusedError
from protocol.keys import PeerIdentity
from protocol.status import Alarm

logger = logging.getLogger(__name__)

INTERVAL_S = 2.0
LONGEST_PAUSE_S = 60.0
CLOSE_S = 3.0
RENEW_SHARE = 0.25  # of a certificate's life may pass before it is renewed; the rest is for a coordinator's absence
ASK_AGAIN_S = 60.0  # for a reducer's certificate, after an ordinary one came


class Certificate:
    """The newest certificate; read by the swarm's thread, written by the link's."""

    def __init__(self, token: str, expires: float) -> None:
        self.replace(token, expires)

    def replace(self, token: str, expires: float) -> None:
        self.token, self.expires = token, expires
        self.renew_in(RENEW_SHARE * max(expires - time.time(), 0.0))

    def renew_in(self, wait_s: float) -> None:
        self._renew_at = time.time() + wait_s, time.monotonic() + wait_s

    def renew_soon(self) -> None:
        """It is not believed: ask for a new one at the next visit."""
        self._renew_at = 0.0, 0.0

    @property
    def is_due(self) -> bool:
        """By the clock that counts while the computer sleeps, or by the one that nobody can set back."""
        wall, monotonic = self._renew_at
        return time.time() >= wall or time.monotonic() >= monotonic


class Uploads(Protocol):
    """The states that a peer can give to the coordinator; `peer.kept_states` has them."""

    def offered(self) -> dict[str, int]: ...

    def load(self, digest: str) -> SharedState: ...


class CoordinatorLink:
    """Keeps in touch with the coordinator until closed.

    Args:
        on_certificate: called with each new certificate, to keep it on disk.
        on_addresses: called with addresses of other members.
        on_founder: called with the newest round in the ledger, and who must take part in round 1.
        on_clock: called after each visit with how far this computer's clock is ahead of the coordinator's, in seconds.
        on_alarm: called after each visit with what the coordinator is alarmed about.
        position: gives (last committed round, tokens/s, own addresses).
        states: what could be uploaded.
    """

    def __init__(
        self,
        client: CoordinatorClient,
        identity: PeerIdentity,
        certificate: Certificate,
        outbox: Outbox,
        receipts: Receipts,
        *,
        on_certificate: Callable[[str], None],
        on_addresses: Callable[[list[str]], None],
        on_founder: Callable[[int, str], None],
        on_clock: Callable[[float], None],
        on_alarm: Callable[[Alarm | None], None],
        position: Callable[[], tuple[int, float, list[str]]],
        states: Uploads,
        reduce_only: bool = False,
    ) -> None:
        self._client, self._identity, self._certificate = client, identity, certificate
        self._outbox, self._receipts = outbox, receipts
        self._on_certificate, self._on_addresses, self._on_founder = on_certificate, on_addresses, on_founder
        self._on_clock, self._on_alarm, self._reduce_only = on_clock, on_alarm, reduce_only
        self._position, self._states = position, states
        self._wake, self._closing = threading.Event(), threading.Event()
        self.away_since: float | None = None
        self.finished = False  # the coordinator says that the run is over
        self.settled = threading.Event()  # the outbox is empty and nothing is asked of this peer
        self._thread = threading.Thread(target=self._run, name="coordinator-link", daemon=True)

    def __enter__(self) -> CoordinatorLink:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._wake.set()
        self._client.close()  # a call under way ends now: whoever leaves does not wait for the coordinator
        self._thread.join(timeout=CLOSE_S)

    def wake(self) -> None:
        """There is something to send."""
        self.settled.clear()
        self._wake.set()

    def _run(self) -> None:
        failures = 0
        while not self._closing.is_set():
            try:
                self._visit()
                failures, self.away_since = 0, None
            except ClockWrong as error:
                failures += 1
                self._on_clock(error.offset_s)
            except CoordinatorAway as error:
                failures += 1
                if self._closing.is_set():
                    return
                if self.away_since is None:
                    self.away_since = time.time()
                    logger.warning(
                        "the coordinator cannot be reached (%s); training goes on, claims wait in the outbox",
                        error.message,
                    )
            except RefusedError as error:
                failures += 1
                logger.warning("the coordinator refuses this peer: %s", error.message)
                self._certificate.renew_soon()
            except PotluckError as error:
                failures += 1
                logger.warning("with the coordinator: %s", error.message)
            pause = (
                INTERVAL_S if not failures else min(INTERVAL_S * 2**failures, LONGEST_PAUSE_S) * random.uniform(0.5, 1)
            )
            self._wake.wait(pause)
            self._wake.clear()

    def _renew(self) -> None:
        enrollment = self._client.enroll(self._identity)
        if self._reduce_only and not enrollment.reducer and time.time() < self._certificate.expires:
            logger.warning(
                "the coordinator gave no reducer's certificate: the reducers' code has changed, or somebody at this address "
                "guessed at it a moment ago; the one held goes on, and a new one is asked for in %.0f s",
                ASK_AGAIN_S,
            )
            self._certificate.renew_in(ASK_AGAIN_S)
            return
        self._certificate.replace(enrollment.certificate, enrollment.expires)
        self._on_certificate(enrollment.certificate)

    def _visit(self) -> None:
        if self._certificate.is_due:
            self._renew()
        token = self._certificate.token
        self._outbox.drain(self._client, token)
        round, tokens_per_s, addresses = self._position()
        kept = self._states.offered()
        answer = self._client.announce(
            token,
            swarm_addresses=addresses,
            round=round,
            tokens_per_s=tokens_per_s,
            states=list(kept),
            reduce_only=self._reduce_only,
        )
        self._on_clock(self._client.clock.offset_s)
        self._on_addresses(list(answer.swarm_addresses))
        self._on_founder(answer.round, answer.founder)
        self._on_alarm(answer.alarm)
        self._receipts.fetch(self._client, token)
        wanted = answer.want_state in kept
        if wanted:
            self._upload(token, answer.want_state)
        self.finished = answer.finished
        if len(self._outbox) == 0 and not wanted:
            self.settled.set()

    def _upload(self, token: str, digest: str) -> None:
        try:
            state = self._states.load(digest)
        except InputError as error:
            logger.warning("cannot upload a state: %s", error.message)
            return
        chunks = (state.chunk(index) for index in range(state.chunk_count))
        self._client.upload_state(token, state.manifest(), chunks)
