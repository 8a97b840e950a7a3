"""The link to the coordinator: a thread of its own, so that nothing it does is on the training path.

Every few seconds it says that this peer is here, learns where others are, sends what waits in the outbox, uploads a state
that is asked for, fetches receipts, and renews the certificate in good time. While the coordinator is away it tries again
after growing, jittered pauses, which nothing shortens; the peer trains on.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from peer.disk.outbox import Outbox
from peer.disk.receipts import Receipts
from peer.link.channel import CoordinatorBusy
from peer.link.client import CoordinatorClient
from peer.link.clock import ClockWrong
from peer.training.state import SharedState
from protocol.agreement import Agreement
from protocol.backoff import Backoff
from protocol.errors import CoordinatorAway, InputError, PotluckError, RefusedError
from protocol.keys import PeerIdentity
from protocol.parts import Part, Told
from protocol.rpc import MAX_CHAIN_BYTES, MAX_CHAIN_ROUNDS, Twin
from protocol.status import Alarm

logger = logging.getLogger(__name__)

INTERVAL_S = 2.0
LONGEST_PAUSE_S = 60.0  # after a visit that failed
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
    """The states that a peer can give to the coordinator; `peer.disk.kept_states` has them."""

    def offered(self) -> dict[str, int]: ...

    def load(self, digest: str) -> SharedState: ...


class CoordinatorLink:
    """Keeps in touch with the coordinator until closed.

    Args:
        on_certificate: called with each new certificate, to keep it on disk.
        on_addresses: called with addresses of other members.
        on_run: called with the newest round in the ledger, and the signed word on who begins.
        wants_anchor: whether an agreement out of the ledger is needed, to catch up from.
        on_anchor: called with it.
        on_clock: called after each visit with how far this computer's clock is ahead of the coordinator's, in seconds.
        on_alarm: called after each visit with what the coordinator is alarmed about.
        on_twin: called after each visit with whether another computer uses this peer's identity.
        on_finished: called at each visit when the run has had all its rounds.
        on_receipts: called when there are new receipts.
        position: gives (last committed round, tokens/s, own addresses).
        chain_since: gives the agreements of the rounds after one, oldest first, as far as they are known.
        states: what could be uploaded.
        session: drawn when this process started.
        on_failure: told when this thread fails by a mistake of ours; it is started again.
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
        on_run: Callable[[int, bytes], None],
        wants_anchor: Callable[[], bool],
        on_anchor: Callable[[Agreement], None],
        on_clock: Callable[[float], None],
        on_alarm: Callable[[Alarm | None], None],
        on_twin: Callable[[Twin], None],
        on_finished: Callable[[], None],
        on_receipts: Callable[[], None],
        position: Callable[[], tuple[int, float, list[str]]],
        chain_since: Callable[[int], list[bytes]],
        states: Uploads,
        session: bytes,
        reduce_only: bool = False,
        on_failure: Told = lambda failure: None,
    ) -> None:
        self._client, self._identity, self._certificate = client, identity, certificate
        self._outbox, self._receipts = outbox, receipts
        self._on_certificate, self._on_addresses, self._on_run = on_certificate, on_addresses, on_run
        self._wants_anchor, self._on_anchor = wants_anchor, on_anchor
        self._on_clock, self._on_alarm, self._reduce_only = on_clock, on_alarm, reduce_only
        self._on_twin, self._on_finished, self._on_receipts = on_twin, on_finished, on_receipts
        self._position, self._chain_since = position, chain_since
        self._states, self._session = states, session
        self._wake, self._closing = threading.Event(), threading.Event()
        self.away_since: float | None = None
        self._leaving = self.has_told = False  # the latter: the coordinator has heard that this peer leaves
        self.is_giving = False  # a state is on its way to the coordinator
        self._given: set[int] = set()  # rounds whose states the coordinator has
        self.finished = False  # the coordinator says that the run is over
        self.settled = threading.Event()  # the outbox is empty and nothing is asked of this peer
        self._backoff, self._room = Backoff(INTERVAL_S, LONGEST_PAUSE_S), Backoff(INTERVAL_S, LONGEST_PAUSE_S)
        self._report_at = 0.0  # monotonic; before that there is no room for reports
        restarts = Backoff(INTERVAL_S, LONGEST_PAUSE_S)
        self._part = Part("coordinator-link", self._run, self._closing, on_failure, restarts, vital=False)

    def __enter__(self) -> CoordinatorLink:
        self._part.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._wake.set()
        self._client.close()  # a call under way ends now: whoever leaves does not wait for the coordinator
        self._part.join(CLOSE_S)

    def wake(self) -> None:
        """There is something to send: soon, if the coordinator is there."""
        self.settled.clear()
        self._wake.set()

    def say_leaving(self) -> None:
        """Say at the next visits that this peer leaves: if it is the last one, the coordinator may want its newest state."""
        self._leaving = True
        self.wake()

    def has_given(self, round: int) -> bool:
        """Whether the coordinator is known to have the state of this round."""
        return round in self._given

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.clear()
            went_well = False
            try:
                self.visit()
                went_well, self.away_since = True, None
            except ClockWrong as error:
                self._on_clock(error.offset_s)
            except CoordinatorAway as error:
                if self._closing.is_set():
                    return
                if self.away_since is None:
                    self.away_since = time.time()
                    logger.warning(
                        "the coordinator cannot be reached (%s); training goes on, claims wait in the outbox",
                        error.message,
                    )
            except RefusedError as error:
                logger.warning("the coordinator refuses this peer: %s", error.message)
                self._certificate.renew_soon()
            except PotluckError as error:
                logger.warning("with the coordinator: %s", error.message)
            if went_well:
                self._backoff.worked()
                self._wake.wait(INTERVAL_S)
            else:
                self._closing.wait(self._backoff.failed())

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

    def visit(self) -> None:
        """One visit; the thread makes one after the other. Raises: PotluckError."""
        if self._certificate.is_due:
            self._renew()
        token = self._certificate.token
        self._report(token)
        round, tokens_per_s, addresses = self._position()
        kept, leaving = self._states.offered(), self._leaving
        answer = self._client.announce(
            token,
            swarm_addresses=addresses,
            round=round,
            tokens_per_s=tokens_per_s,
            states=sorted(kept, key=lambda digest: kept[digest], reverse=True),
            reduce_only=self._reduce_only,
            leaving=leaving,
            session=self._session,
        )
        self._on_twin(answer.twin)
        self.has_told = leaving
        self._on_clock(self._client.clock.offset_s)
        self._on_addresses(list(answer.swarm_addresses))
        self._on_run(answer.round, answer.beginners)
        if answer.round > round and self._wants_anchor():
            newest = self._client.agreement(token)
            if newest is not None:
                self._on_anchor(newest)
        if answer.want_chain:
            self._send_chain(token, answer.round)
        self._on_alarm(answer.alarm)
        if self._receipts.fetch(self._client, token):
            self._on_receipts()
        wanted = answer.want_state in kept
        if wanted and self._upload(token, answer.want_state):
            self._given.add(kept[answer.want_state])
        elif leaving:
            self._given |= {item.round for item in self._client.status().checkpoints if item.published}
        self.finished = answer.finished
        if answer.finished:
            self._on_finished()
        if len(self._outbox) == 0 and not wanted:
            self.settled.set()

    def _report(self, token: str) -> None:
        """Send what waits in the outbox. Where there is no room for it now, all else goes on, and it is tried later."""
        if time.monotonic() < self._report_at:
            return
        try:
            self._outbox.drain(self._client, token)
            self._room.worked()
        except CoordinatorBusy as error:
            logger.info("reports wait in the outbox: %s", error.message)
            self._report_at = time.monotonic() + self._room.failed()

    def _send_chain(self, token: str, round: int) -> None:
        """The ledger stands still after a round; this peer may know the agreements that follow."""
        known = self._chain_since(round)
        sizes_bytes = itertools.accumulate(map(len, known[:MAX_CHAIN_ROUNDS]))
        chain = [data for data, size in zip(known, sizes_bytes, strict=False) if size <= MAX_CHAIN_BYTES]
        if not chain:
            return
        answer = self._client.report_chain(token, chain)
        if answer.accepted:
            logger.info("the ledger lacked the rounds after %d: %d agreements were sent", round, len(chain))
            self._report_at = 0.0
        else:
            logger.warning("the agreements after round %d were refused: %s", round, answer.reason)

    def _upload(self, token: str, digest: str) -> bool:
        """Give the coordinator a state; whether it took it."""
        try:
            state = self._states.load(digest)
        except InputError as error:
            logger.warning("cannot upload a state: %s", error.message)
            return False
        chunks = (state.chunk(index) for index in range(state.chunk_count))
        self.is_giving = True
        try:
            return self._client.upload_state(token, state.manifest(), chunks)
        finally:
            self.is_giving = False
