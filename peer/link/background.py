"""The link to the coordinator: a thread of its own, so that nothing it does is on the training path.

Every few seconds it says that this peer is here, learns where others are, sends what waits in the outbox, uploads a
state that is asked for, fetches receipts, and renews the certificate in good time. While the coordinator is away it
tries again after growing, jittered pauses, which nothing shortens but `reconnect`; the peer trains on.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from peer.disk.outbox import Outbox
from peer.disk.receipts import Receipts
from peer.link.answers import Announcement
from peer.link.channel import CoordinatorBusy
from peer.link.client import CoordinatorClient
from peer.link.clock import ClockWrong
from peer.link.held_certificate import HeldCertificate
from peer.link.revealing import Revealing, Reveals
from peer.training.state import SharedState
from protocol.agreement import Agreement
from protocol.backoff import Backoff
from protocol.errors import CoordinatorAway, InputError, PotluckError, RefusedError
from protocol.note import LedgerHead
from protocol.parts import SupervisedThread, Told
from protocol.rpc import MAX_CHAIN_BYTES, MAX_CHAIN_ROUNDS

logger = logging.getLogger(__name__)

INTERVAL_S = 2.0
LONGEST_PAUSE_S = 60.0  # after a visit that failed
CLOSE_S = 3.0


class Uploads(Protocol):
    """The states that a peer can give to the coordinator; `peer.disk.kept_states` has them."""

    def offered(self) -> dict[str, int]: ...

    def load(self, digest: str) -> SharedState: ...


class Greeting(NamedTuple):
    """What a peer says of itself at each visit."""

    round: int  # the last one committed
    tokens_per_s: float
    addresses: list[str]  # its own
    reduce_only: bool
    session: bytes  # drawn when this process started, `protocol.rpc.draw_session`
    bans: int = 0  # number of the newest list of banned members that it has


class ShownHeads(Protocol):
    """Whether all are shown one ledger, as `peer.sync.ledger_heads` has it."""

    def shown(self, text: str) -> None: ...

    def to_check(self) -> LedgerHead | None: ...

    def checked(self, asked: LedgerHead, text: str, proof: Sequence[bytes]) -> None: ...


class Peer(Protocol):
    """Whom the link speaks for; called in the link's thread, in this order at each visit."""

    @property
    def heads(self) -> ShownHeads: ...

    @property
    def reveals(self) -> Reveals | None:
        """The work that may be replayed; None: nobody audits it."""

    def renewed(self, token: str) -> None:
        """There is a new certificate, to keep on disk."""

    def greeting(self) -> Greeting: ...

    def heard(self, answer: Announcement) -> None:
        """What the coordinator said."""

    def clock_off(self, offset_s: float) -> None:
        """How far this computer's clock is ahead of the coordinator's."""

    def wants_anchor(self) -> bool:
        """Whether an agreement out of the ledger is needed, to catch up from."""

    def anchored(self, agreement: Agreement) -> None:
        """It is here."""

    def chain_since(self, round: int) -> list[bytes]:
        """The agreements of the rounds after one, oldest first, which the ledger lacks; empty when not known."""

    def measured(self) -> bytes | None:
        """The held-out loss that was asked for (`Announcement.want_loss`), signed, when it is there; each once."""

    def credited(self) -> None:
        """There are new receipts."""


class CoordinatorLink:
    """Keeps in touch with the coordinator until closed.

    Args:
        states: what could be uploaded.
        on_failure: told when this thread fails by a mistake of ours; it is started again.
        pause: what it waits on after a visit that failed; over when set.
    """

    def __init__(
        self,
        client: CoordinatorClient,
        certificate: HeldCertificate,
        outbox: Outbox,
        receipts: Receipts,
        states: Uploads,
        peer: Peer,
        on_failure: Told = lambda failure: None,
        pause: threading.Event | None = None,
    ) -> None:
        self._client, self._certificate, self._peer = client, certificate, peer
        self._outbox, self._receipts, self._states = outbox, receipts, states
        self._wake, self._closing = threading.Event(), threading.Event()
        self._pause = pause or threading.Event()
        self.away_since: float | None = None
        self._is_let_go = False  # of the channel, by `reconnect`
        self._revealing = Revealing(client, on_failure)
        self._leaving = self.has_told = False  # the latter: the coordinator has heard that this peer leaves
        self.is_giving = False  # a state is on its way to the coordinator
        self._given: set[int] = set()  # rounds whose states the coordinator has
        self.finished = False  # the coordinator says that the run is over
        self.settled = threading.Event()  # the outbox is empty and nothing is asked of this peer
        self._backoff, self._room = Backoff(INTERVAL_S, LONGEST_PAUSE_S), Backoff(INTERVAL_S, LONGEST_PAUSE_S)
        self._report_at = 0.0  # monotonic; before that there is no room for reports
        restarts = Backoff(INTERVAL_S, LONGEST_PAUSE_S)
        self._thread = SupervisedThread("coordinator-link", self._run, self._closing, on_failure, restarts, vital=False)

    def __enter__(self) -> CoordinatorLink:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._wake.set()
        self._pause.set()
        self._client.close()  # a call under way ends now: whoever leaves does not wait for the coordinator
        self._thread.join(CLOSE_S)

    def wake(self) -> None:
        """There is something to send: soon, if the coordinator is there."""
        self.settled.clear()
        self._wake.set()

    def reconnect(self) -> None:
        """What is open may be dead: end the call under way, and visit the coordinator at once."""
        self._is_let_go = True
        self._backoff.worked()
        self._pause.set()
        self._client.close()
        self._wake.set()

    def say_leaving(self) -> None:
        """Say at the next visits that this peer leaves: if it is the last one, its newest state may be wanted."""
        self._leaving = True
        self.wake()

    def has_given(self, round: int) -> bool:
        """Whether the coordinator is known to have the state of this round."""
        return round in self._given

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.clear()
            went_well = self._is_let_go = False
            try:
                self.visit()
                went_well, self.away_since = True, None
            except ClockWrong as error:
                self._peer.clock_off(error.offset_s)
            except CoordinatorAway as error:
                if self._closing.is_set():
                    return
                if self._is_let_go:  # by `reconnect`: it may well be there
                    continue
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
                self._pause.wait(self._backoff.failed())
                self._pause.clear()

    def visit(self) -> None:
        """One visit, in the caller's thread. Raises: PotluckError: it did not go well."""
        peer = self._peer
        if self._certificate.is_due and self._certificate.renew(self._client):
            peer.renewed(self._certificate.token)
        token = self._certificate.token
        self._report(token)
        own, kept, leaving = peer.greeting(), self._states.offered(), self._leaving
        answer = self._client.announce(
            token,
            swarm_addresses=own.addresses,
            round=own.round,
            tokens_per_s=own.tokens_per_s,
            states=sorted(kept, key=lambda digest: kept[digest], reverse=True),
            reduce_only=own.reduce_only,
            leaving=leaving,
            session=own.session,
            bans=own.bans,
        )
        self.has_told = leaving
        peer.heard(answer)
        peer.clock_off(self._client.clock.offset_s)
        peer.heads.shown(answer.ledger_head)
        if (head := peer.heads.to_check()) is not None:
            now = self._client.run_now(head.size)
            peer.heads.checked(head, now.head_note, now.consistency)
        if answer.round and peer.wants_anchor():
            newest = self._client.agreement(token)
            if newest is not None:
                peer.anchored(newest)
        if answer.want_chain:
            self._send_chain(token, answer.round)
        if (measured := peer.measured()) is not None:
            self._send_loss(token, measured)
        is_to_show = self._revealing.ask(token, peer.reveals, answer.drawn_until, answer.want_reveals)
        if self._receipts.fetch(self._client, token):
            peer.credited()
        wanted = answer.want_state in kept
        if wanted and self._upload(token, answer.want_state):
            self._given.add(kept[answer.want_state])
        elif leaving:
            self._given |= {item.round for item in self._client.status().checkpoints if item.published}
        self.finished = answer.finished
        if len(self._outbox) == 0 and not wanted and not answer.want_loss and not is_to_show:
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
        known = self._peer.chain_since(round)
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

    def _send_loss(self, token: str, measured: bytes) -> None:
        answer = self._client.report_loss(token, measured)
        if not answer.accepted:
            logger.warning("the held-out loss that was measured for the host is not taken: %s", answer.reason)

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
