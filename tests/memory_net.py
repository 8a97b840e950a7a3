"""A network in memory: nodes as `peer.net.node.Node`, whose streams are socket pairs. No p2pd, no DHT; else nothing is
made up.

    network = Network()
    one, other = network.node("peer a"), network.node("peer b")
    await one.serve("potluck/<run>/progress", handler)
    reply = await other.call("peer a", "potluck/<run>/progress", request, Progress, timeout_s=2)
    network.cut("peer a", "peer b")

What libp2p does, a peer id that is the caller's own, holds here, too. Faults are the network's: who cannot reach whom,
whose streams lead nowhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from typing import Any

from peer.net.node import Handler, Node, short
from protocol.errors import NetworkError, PotluckError

logger = logging.getLogger(__name__)

LINGER_S = 1.0
Both = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Network:
    """Who is there, and what does not work."""

    def __init__(self) -> None:
        self.nodes: dict[str, MemoryNode] = {}
        self.cuts: set[frozenset[str]] = set()  # pairs that cannot open streams to each other
        self.nowhere: set[tuple[str, str]] = (
            set()
        )  # (peer id, last part of a stream's name): what it sends there is lost
        self.closed: set[tuple[str, str]] = set()  # the same: it cannot open such streams
        self.records: dict[str, dict[str, bytes]] = {}  # key -> subkey -> value

    def node(self, peer_id: str) -> MemoryNode:
        self.nodes[peer_id] = node = MemoryNode(self, peer_id)
        return node

    def cut(self, one: str, *others: str) -> None:
        """No new streams between these, and those that are open break."""
        self.cuts |= {frozenset((one, other)) for other in others}
        for node in self.nodes.values():
            node.end_streams(lambda ends: frozenset(ends) in self.cuts)

    def reaches(self, sender: str, to: str) -> bool:
        return sender in self.nodes and to in self.nodes and frozenset((sender, to)) not in self.cuts


class MemoryNode:
    """One node; `await close()` when done."""

    def __init__(self, network: Network, peer_id: str) -> None:
        self.network, self.peer_id = network, peer_id
        self.handlers: dict[str, Handler] = {}
        self.disconnected: list[Collection[str] | None] = []  # from whom, each time
        self._serving: set[asyncio.Task[None]] = set()
        self.open_writers: dict[asyncio.StreamWriter, tuple[str, str]] = {}  # -> who opened the stream, to whom

    async def serve(self, name: str, handler: Handler) -> None:
        self.handlers[name] = handler

    @contextlib.asynccontextmanager
    async def stream(self, peer_id: str, name: str, open_s: float = 5.0) -> AsyncIterator[Both]:
        """As `Node.stream`."""
        network, last = self.network, name.rpartition("/")[2]
        other = network.nodes.get(peer_id)
        if other is None or not network.reaches(self.peer_id, peer_id) or (self.peer_id, last) in network.closed:
            raise NetworkError(f"cannot reach {short(peer_id)}")
        handler = other.handlers.get(name)
        if handler is None:
            raise NetworkError(f"cannot reach {short(peer_id)}: it does not serve {name}")
        if (self.peer_id, last) in network.nowhere:
            handler = _swallow
        opening = asyncio.get_running_loop().create_task(self._open(other, handler))
        reader, writer = await asyncio.shield(opening)  # who is cancelled meanwhile leaves it to `close`
        try:
            yield reader, writer
        finally:
            writer.close()

    call = Node.call

    async def _open(self, other: MemoryNode, handler: Handler) -> Both:
        ends = (self.peer_id, other.peer_id)
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        their_reader, their_writer = await asyncio.open_unix_connection(sock=theirs)
        self.open_writers[writer], other.open_writers[their_writer] = ends, ends
        task = asyncio.get_running_loop().create_task(_answer(handler, ends, their_reader, their_writer))
        other._serving.add(task)
        task.add_done_callback(other._serving.discard)
        return reader, writer

    def end_streams(self, which: Callable[[tuple[str, str]], bool] = lambda ends: True) -> None:
        """Break those between (who opened, to whom)."""
        for writer, ends in self.open_writers.items():
            if which(ends):
                writer.transport.abort()

    async def addresses(self) -> list[str]:
        return [f"/memory/p2p/{self.peer_id}"]

    async def connect(self, addresses: Iterable[str]) -> set[str]:
        wanted = {address.rpartition("/")[2] for address in addresses}
        return {peer for peer in wanted if peer != self.peer_id and self.network.reaches(self.peer_id, peer)}

    async def disconnect(self, only: Collection[str] | None = None) -> None:
        self.disconnected.append(only)
        self.end_streams(lambda ends: only is None or not {*ends}.isdisjoint(only))

    async def store_record(self, key: str, subkey: str, value: bytes, expires: float) -> bool:
        self.network.records.setdefault(key, {})[subkey] = value
        return True

    async def find_records(self, key: str) -> dict[str, bytes]:
        return dict(self.network.records.get(key, {}))

    def vanish(self) -> None:
        """As when its machine loses power."""
        self.network.nodes.pop(self.peer_id, None)
        self.end_streams()

    async def close(self) -> None:
        self.vanish()
        tasks = list(self._serving)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.end_streams()
        await asyncio.sleep(0)  # for the sockets to be closed


async def _answer(handler: Handler, ends: tuple[str, str], reader: Any, writer: Any) -> None:
    try:
        await handler(ends[0], reader, writer)
        with contextlib.suppress(OSError, TimeoutError):  # what is closed unread breaks what was sent
            async with asyncio.timeout(LINGER_S):
                await _swallow(ends[0], reader, writer)
    except PotluckError as error:
        logger.debug("%s to %s: %s", *map(short, ends), error)
    finally:
        writer.close()


async def _swallow(peer: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(1 << 16):
        pass
