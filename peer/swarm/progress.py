"""Progress: every fraction of a second members tell each other what they have done. Nobody waits for it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from peer.swarm.node import short
from peer.swarm.talk import Talk
from protocol import swarm_pb2
from protocol.errors import FormatError, NetworkError, RefusedError

logger = logging.getLogger(__name__)


class Gossip:
    """Sends this member's progress, and keeps what comes back.

    Args:
        current: makes the message of the moment for one member.
        round: that this member works on.
    """

    def __init__(self, talk: Talk, current: Callable[[str], swarm_pb2.Progress], round: Callable[[], int]) -> None:
        self._talk, self._current, self._round = talk, current, round
        self._in_flight: set[str] = set()
        self._introduced: dict[str, str] = {}  # peer id -> the certificate that it has seen of this member
        self.contacts: set[str] = set()  # peer ids to try, whether heard of before or not

    async def start(self) -> None:
        await self._talk.serve("progress", swarm_pb2.Progress, self._answer)
        self._talk.keep("gossip", self._forever)

    async def tell_everyone(self) -> None:
        """Tell all at once, also those to whom an older word is on its way."""
        await asyncio.gather(*(self._exchange(peer) for peer in self._everyone()))

    def _everyone(self) -> set[str]:
        return (self.contacts | {view.peer_id for view in self._talk.book.known()}) - {self._talk.me}

    async def _forever(self) -> None:
        while True:
            everyone = self._everyone()
            for peer in everyone:
                self._talk.spawn(self._tell(peer))
            await asyncio.sleep(self._talk.book.interval_s)

    async def _tell(self, peer: str) -> None:
        if peer in self._in_flight:
            return
        self._in_flight.add(peer)
        try:
            await self._exchange(peer)
        finally:
            self._in_flight.discard(peer)

    async def _exchange(self, peer: str) -> None:
        book, started = self._talk.book, time.monotonic()
        try:
            message = self._message(peer)
            answer = await self._talk.call(peer, "progress", message, swarm_pb2.Progress)
            if answer.certificate or not book.is_admitted(peer):
                book.admit(peer, answer.certificate)
            if message.certificate:
                self._introduced[peer] = message.certificate
            self._note(peer, answer)
        except (NetworkError, FormatError, RefusedError) as error:
            logger.debug("progress to %s: %s", short(peer), error.message)
            book.lost(peer, started)
            self._introduced.pop(peer, None)
            if book.get(peer) is None:
                self.contacts.discard(peer)

    async def _answer(self, message: swarm_pb2.Progress, reader: Any, writer: Any, peer: str) -> None:
        self._note(peer, message)
        await self._talk.reply(writer, self._current(peer) if message.certificate else self._message(peer))

    def _message(self, peer: str) -> swarm_pb2.Progress:
        """What to say to one member; what it knows already is most of the bytes, and many go over a slow line."""
        message = self._current(peer)
        if self._introduced.get(peer) == message.certificate:
            message.ClearField("certificate")
            message.ClearField("addresses")
        return message

    def _note(self, peer: str, message: swarm_pb2.Progress) -> None:
        self._talk.book.note(peer, message)
        self._talk.book.take_farewells(message.farewells, self._round())
