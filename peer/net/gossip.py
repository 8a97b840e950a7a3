"""Gossip: every fraction of a second members tell each other what they have done. Nobody waits for it.

Each pair keeps one stream open, whoever opened it, and both tell over it: opening one costs ten times what a message
does. Each message is answered by the other's own, so whoever was asked lately need not ask.

Who slept, or is elsewhere in the network, has let go of its connections, and the others' ends of them stay open until
libp2p has missed its own signs of life, for up to 40 s: what they ask meanwhile goes nowhere. So each message counts
how often that was.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

from peer.net import frames
from peer.net.bans import KnownBans
from peer.net.node import short
from peer.net.talk import Talk
from peer.sync.ledger_heads import LedgerHeads
from protocol import swarm_pb2
from protocol.errors import FormatError, NetworkError, RefusedError

logger = logging.getLogger(__name__)

STREAM = "progress"
MAX_BYTES = 1 << 20  # farewells are most of it
MEET_AGAIN_S = 10.0  # between two times that one member's connections are let go of because it has moved


class _Link:
    """One open stream to a member."""

    def __init__(self, peer: str, writer: asyncio.StreamWriter) -> None:
        self.peer, self.writer = peer, writer
        self.sending = asyncio.Lock()
        self.introduced: tuple[str, ...] = ()  # this member's certificate and addresses, as the other side has them
        self.head = ""  # of the ledger, as it was last told
        self.bans = 0  # number of the list of banned members that the other side knows
        self.asked_at = 0.0  # when this side told something that is not answered yet; 0: nothing
        self.met_at = time.monotonic()  # when both last told each other


class Gossip:
    """Sends this member's progress, and hands on what comes back.

    Args:
        current: makes the message of the moment for one member, with certificate and addresses.
        heard: takes what an admitted member says of itself.
        interval_s: gives how long to wait between two messages to one member.
    """

    def __init__(
        self,
        talk: Talk,
        current: Callable[[str], swarm_pb2.Progress],
        heard: Callable[[str, swarm_pb2.Progress], None],
        interval_s: Callable[[], float],
        known: Callable[[], set[str]],
        bans: KnownBans,
        heads: LedgerHeads | None,
    ) -> None:
        self._talk, self._current, self._heard = talk, current, heard
        self._interval_s, self._known, self._bans, self._heads = interval_s, known, bans, heads
        self._links: dict[str, _Link] = {}
        self._opening: set[str] = set()
        self._moves = 0
        self._moved: dict[str, tuple[int, float]] = {}  # peer id -> how often it has, and when it was met again
        self.contacts: set[str] = set()  # peer ids to try, whether heard of before or not

    async def start(self) -> None:
        await self._talk.serve(STREAM, swarm_pb2.Progress, self._answer)
        self._talk.keep("gossip", self._forever)

    async def tell_everyone(self) -> None:
        """Tell all at once."""
        await asyncio.gather(*(self._tell(peer) for peer in self.everyone()))

    def forget(self) -> None:
        """All streams are dead: close them. The next messages open new ones, and tell the others to do the same."""
        self._moves += 1
        links, self._links = self._links, {}
        for link in links.values():
            link.writer.close()

    def everyone(self) -> set[str]:
        """Peer ids of those that are told."""
        return (self.contacts | self._known()) - {self._talk.me} - self._talk.roster.banned

    async def part(self, peers: frozenset[str]) -> None:
        """Have nothing more to do with them, and let the others know at once why."""
        for peer in peers & self._links.keys():
            self._links.pop(peer).writer.close()
        if peers:
            await self._talk.node.disconnect(peers)
        await self.tell_everyone()

    async def _forever(self) -> None:
        while True:
            interval_s = self._interval_s()
            for peer in self.everyone():
                link = self._links.get(peer)
                if link is None or time.monotonic() - link.met_at >= 0.9 * interval_s:
                    self._talk.spawn(self._tell(peer))
            await asyncio.sleep(interval_s)

    async def _tell(self, peer: str) -> None:
        link = self._links.get(peer)
        if link is None:
            await self._open(peer)
            return
        now = time.monotonic()
        if link.asked_at and now - link.asked_at > self._talk.lines.patience_s(peer):
            if self._talk.lines.silent_s(peer) < now - link.asked_at:
                self._talk.lines.answered(peer, None)  # it is there, its line is slow
                link.asked_at = now
            else:
                self._lost(link, link.asked_at)
            return
        link.asked_at = link.asked_at or now
        with contextlib.suppress(NetworkError):
            await self._send(link, self._current(peer))

    async def _open(self, peer: str) -> None:
        """Open the stream, which others of this member's tasks wait for in vain meanwhile."""
        if peer in self._opening:
            return
        self._opening.add(peer)
        started, talk = time.monotonic(), self._talk
        try:
            async with talk.node.stream(peer, talk.stream_name(STREAM), talk.lines.patience_s(peer)) as (
                reader,
                writer,
            ):
                link = _Link(peer, writer)
                link.asked_at = started
                await self._send(link, self._current(peer))
                first = await frames.receive(
                    reader, swarm_pb2.Progress, timeout_s=talk.lines.patience_s(peer), max_bytes=MAX_BYTES
                )
                self._opening.discard(peer)
                self._links.setdefault(peer, link)
                await self._listen(link, first, reader)
        except (NetworkError, FormatError, RefusedError) as error:
            logger.debug("progress to %s: %s", short(peer), error.message)
            talk.lines.lost(peer, started)
            if peer not in self._known():
                self.contacts.discard(peer)
        finally:
            self._opening.discard(peer)

    async def _answer(self, first: swarm_pb2.Progress, reader: Any, writer: Any, peer: str) -> None:
        link = self._links[peer] = _Link(peer, writer)
        await self._listen(link, first, reader)

    async def _listen(self, link: _Link, first: swarm_pb2.Progress, reader: asyncio.StreamReader) -> None:
        """Take what comes until the stream ends."""
        message, roster = first, self._talk.roster
        try:
            while True:
                if message.certificate or not roster.is_admitted(link.peer):
                    roster.admit(link.peer, message.certificate)
                await self._take(link, message)
                # who asks on it closes it when no answer comes
                message = await frames.receive(reader, swarm_pb2.Progress, timeout_s=None, max_bytes=MAX_BYTES)
        except NetworkError as error:
            logger.debug("progress of %s: %s", short(link.peer), error.message)
        finally:
            if self._links.get(link.peer) is link:
                del self._links[link.peer]
            link.writer.close()

    async def _take(self, link: _Link, message: swarm_pb2.Progress) -> None:
        now, lines = time.monotonic(), self._talk.lines
        self._heard(link.peer, message)
        link.met_at, link.bans = now, message.bans
        if message.banned:
            self._bans.take(message.banned)
        if message.ledger_head and self._heads is not None:
            self._heads.heard(message.ledger_head)
        self._note_moves(link.peer, message.moves, now)
        if not message.answers:
            answer = self._current(link.peer)
            answer.answers = True
            await self._send(link, answer)
        elif link.asked_at:
            lines.answered(link.peer, now - link.asked_at)
            link.asked_at = 0.0

    def _note_moves(self, peer: str, moves: int, now: float) -> None:
        """Who says it all the time is met again now and then: each time dials the addresses that it gives."""
        before, met_at = self._moved.get(peer, (moves, now - MEET_AGAIN_S))
        if moves > before:
            if now - met_at < MEET_AGAIN_S:
                return
            met_at = now
            self._talk.spawn(self._meet_again(peer))
        self._moved[peer] = (moves, met_at)

    async def _meet_again(self, peer: str) -> None:
        """Let go of the connections to a member that has moved: the dead ones, and the one that it has told this on."""
        logger.debug("%s is elsewhere in the network now", short(peer))
        await self._talk.node.disconnect({peer})
        told = self._talk.roster.addresses(peer)
        await self._talk.node.connect(address for address in told if address.endswith(f"/p2p/{peer}"))
        await self._tell(peer)

    async def _send(self, link: _Link, message: swarm_pb2.Progress) -> None:
        """What the other side knows already is most of the bytes, and many go over a slow line."""
        message.moves, message.bans = self._moves, self._bans.number
        message.banned = self._bans.for_older(link.bans)
        link.bans = max(link.bans, self._bans.number)
        if self._heads is not None and link.head != self._heads.text:
            message.ledger_head = link.head = self._heads.text
        card = (message.certificate, *message.addresses)
        if link.introduced == card:
            message.ClearField("certificate")
            message.ClearField("addresses")
        else:
            link.introduced = card
        try:
            async with link.sending:
                await frames.send(link.writer, message, timeout_s=self._talk.lines.patience_s(link.peer))
        except NetworkError:
            self._lost(link, time.monotonic())
            raise

    def _lost(self, link: _Link, since: float) -> None:
        if self._links.get(link.peer) is link:
            del self._links[link.peer]
        link.writer.close()
        self._talk.lines.lost(link.peer, since)
