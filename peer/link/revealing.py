"""Shows the coordinator the work of claims that it has drawn, one at a time, in a thread: it may take minutes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterator
from typing import Protocol

from peer.link.client import CoordinatorClient
from peer.training.reveal import Sent
from protocol import coordinator_pb2
from protocol.digests import Digest
from protocol.errors import CoordinatorAway, PotluckError
from protocol.parts import Job, Told
from protocol.rpc import PART_BYTES, transfer_timeout_s

logger = logging.getLogger(__name__)

AGAIN_S = 10.0  # after it was not taken, or the line broke


class Reveals(Protocol):
    """The work that this peer has kept."""

    def drawn(self, until: int, wanted: Collection[Digest]) -> None:
        """Up to a round it is drawn which claims are replayed, and these of this peer are."""

    def to_send(self, claim: Digest) -> Sent:
        """Raises: InputError, FormatError: it is not kept any more, or is damaged."""


class Revealing:
    """Does what the coordinator asks for; `ask` is called at each visit.

    Args:
        told: hears of a failure by a mistake of ours.
    """

    def __init__(self, client: CoordinatorClient, told: Told) -> None:
        self._client, self._told = client, told
        self._lock = threading.Lock()
        self._job: Job | None = None
        self._gone: set[Digest] = set()  # cannot be shown
        self._not_before = 0.0  # monotonic

    def ask(self, certificate: str, reveals: Reveals | None, until: int, wanted: Collection[Digest]) -> bool:
        """Whether something is still to be shown."""
        if reveals is None or not until:
            return False
        reveals.drawn(until, wanted)
        with self._lock:
            to_show = [claim for claim in wanted if claim not in self._gone]
            if to_show and self._job is None and time.monotonic() >= self._not_before:
                claim = to_show[0]
                self._job = Job("reveal", lambda: self._show(certificate, reveals, claim), self._told)
        return bool(to_show)

    def _show(self, certificate: str, reveals: Reveals, claim: Digest) -> None:
        pause_s = AGAIN_S
        try:
            try:
                made = reveals.to_send(claim)
            except PotluckError as error:
                logger.warning("the work of a claim that is to be replayed cannot be shown: %s", error.message)
                with self._lock:
                    self._gone.add(claim)
                pause_s = 0.0
                return
            if self._send(certificate, claim, made):
                pause_s = 0.0
        except CoordinatorAway as error:
            logger.info("work is shown again later: %s", error.message)
        except PotluckError as error:
            logger.warning("the coordinator does not take the work that was shown: %s", error.message)
        finally:
            with self._lock:
                self._job, self._not_before = None, time.monotonic() + pause_s

    def _send(self, certificate: str, claim: Digest, made: Sent) -> bool:
        def parts() -> Iterator[coordinator_pb2.RevealPart]:
            yield coordinator_pb2.RevealPart(certificate=certificate, claim=claim, head=made.head)
            for piece in self._client.rates.up.slowed(map(bytes, made.pieces)):
                for start in range(0, len(piece), PART_BYTES):
                    yield coordinator_pb2.RevealPart(data=piece[start : start + PART_BYTES])

        limit_s = transfer_timeout_s(made.size_bytes)
        return bool(self._client.connection.call("Reveal", parts(), timeout_s=limit_s).accepted)
