"""The node: this process's place on the network. libp2p streams (by hivemind's P2P) and a hivemind DHT node.

One asyncio loop runs it all; the only child process is libp2p's daemon, p2pd, which is put in a session of its own so
that Ctrl-C does not take it away under a round, and which does not outlive this process, not even after kill -9.

    node = await Node.start(identity_path, listen="127.0.0.1:0")
    await node.connect(["/ip4/127.0.0.1/tcp/4701/p2p/12D3…"])
    await node.serve("potluck/<run>/progress", handler)
    reply = await node.call(peer_id, "potluck/<run>/progress", request, Progress, timeout_s=2)
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import Message
from hivemind.dht.node import DHTNode
from hivemind.dht.validation import RecordValidatorBase
from hivemind.p2p import P2P, P2PDaemonError, PeerID
from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo
from hivemind.p2p.p2p_daemon_bindings.utils import raise_if_failed, read_pbmsg_safe, write_pbmsg
from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr
from hivemind.utils.multiaddr.exceptions import Error as MultiaddrError

from peer.limits.rates import LineRates
from peer.net import frames
from peer.net.daemon import UNREACHABLE, children_in_their_own_session, sockets, start_reaper, tell_of_failed_task
from peer.net.listening import check_free, split_host_port
from peer.net.traffic import Traffic
from protocol.errors import FormatError, NetworkError, PotluckError

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
START_TIMEOUT_S = 60.0
DHT_TIMEOUT_S = 15.0
CLOSE_STEP_S = 3.0
LINGER_S = 10.0  # for the other side of a stream to take the last of what was sent
MAX_ADDRESS_CHARS = 300
MAX_STREAMS_PER_PEER = 32  # that one peer may hold open to this node at once
MAX_STREAMS = 512

M = TypeVar("M", bound=Message)
Handler = Callable[[str, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Node:
    """A started node; `await close()` when done."""

    def __init__(self, p2p: P2P, dht: DHTNode, reaper: subprocess.Popen[bytes], rates: LineRates) -> None:
        self._p2p, self._dht, self._reaper = p2p, dht, reaper
        self._open: Counter[str] = Counter()  # peer id -> streams that it holds open
        self.traffic = Traffic(rates=rates)
        self.peer_id: str = p2p.peer_id.to_base58()

    @classmethod
    async def start(
        cls,
        identity_path: Path,
        *,
        listen: str,
        announce: str | None = None,
        validator: RecordValidatorBase | None = None,
        rates: LineRates | None = None,
    ) -> Node:
        """Start p2pd and a DHT node that knows nobody yet.

        Args:
            identity_path: the 68-byte libp2p identity file.
            listen: "host:port"; port 0 takes a free one.
            announce: a host that others reach this one by, when it is not the one it listens on.
            validator: which DHT records this node stores and believes.
            rates: how fast bulk may go.

        Raises:
            InputError: `listen` cannot be used.
            NetworkError: p2pd did not start in time, or the port is taken.
        """
        host, port = split_host_port(listen)
        check_free(host, port)
        asyncio.get_running_loop().set_exception_handler(tell_of_failed_task)
        loopback = ipaddress.ip_address(host).is_loopback
        try:
            with children_in_their_own_session():
                p2p = await asyncio.wait_for(
                    P2P.create(
                        identity_path=str(identity_path),
                        check_if_identity_free=False,
                        host_maddrs=[_to_multiaddr(host, port)],
                        announce_maddrs=[_to_multiaddr(announce, port)] if announce and port else None,
                        auto_nat=not loopback,
                        nat_port_map=not loopback,
                        startup_timeout=START_TIMEOUT_S,
                    ),
                    START_TIMEOUT_S,
                )
        except (P2PDaemonError, TimeoutError) as error:
            raise NetworkError(f"libp2p did not start: {error}", f"is {listen} taken by another program?") from error
        reaper = start_reaper(p2p)
        dht = await DHTNode.create(p2p=p2p, record_validator=validator, cache_refresh_before_expiry=0)
        return cls(p2p, dht, reaper, rates or LineRates())

    async def daemon_ended(self) -> None:
        """Returns when p2pd has ended, by whatever cause."""
        await self._p2p._child.wait()

    async def close(self) -> None:
        """Stop the DHT node, p2pd and the reaper."""
        with contextlib.suppress(TimeoutError):  # it asks p2pd, and waits for ever if their connection broke
            await asyncio.wait_for(self._dht.shutdown(), CLOSE_STEP_S)
        try:
            await asyncio.wait_for(self._p2p.shutdown(), CLOSE_STEP_S)
        except TimeoutError:
            self._p2p._child.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._reaper.pid, signal.SIGKILL)
        self._reaper.stdin.close()  # type: ignore[union-attr]
        self._reaper.wait(timeout=30)
        for path in sockets(self._p2p):  # hivemind leaves one behind when p2pd has ended by itself
            Path(path).unlink(missing_ok=True)

    async def addresses(self) -> list[str]:
        """Where others can reach this node, as multiaddrs that end in /p2p/<peer id>.

        Raises:
            NetworkError: libp2p does not say.
        """
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return [str(address) for address in await self._p2p.get_visible_maddrs(latest=True)]
        except (*UNREACHABLE, ValueError) as error:
            raise NetworkError(f"libp2p does not say where this node is: {error or type(error).__name__}") from error

    async def connect(self, addresses: Iterable[str]) -> set[str]:
        """Connect to nodes and make their acquaintance in the DHT; returns the peer ids that answered.

        Addresses that cannot be parsed or reached are left out.
        """
        by_peer: dict[PeerID, list[Multiaddr]] = {}
        for address in addresses:
            with contextlib.suppress(FormatError):
                peer_id, bare = parse_address(address)
                if peer_id != self.peer_id:
                    by_peer.setdefault(PeerID.from_base58(peer_id), []).append(bare)
        outcomes = await asyncio.gather(*(self._connect_one(peer, maddrs) for peer, maddrs in by_peer.items()))
        return {peer.to_base58() for peer, reached in zip(by_peer, outcomes, strict=True) if reached}

    async def _connect_one(self, peer: PeerID, maddrs: list[Multiaddr]) -> bool:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._p2p._client.connect(peer, maddrs)
                await self._dht.protocol.call_ping(peer, validate=False)
        except UNREACHABLE as error:
            logger.debug("could not connect to %s: %s", peer, error)
            return False
        return True

    async def disconnect(self, only: Collection[str] | None = None) -> None:
        """Close the connections to all others, which may be dead without libp2p's knowing; calls over them fail now.

        Args:
            only: peer ids, if not all.
        """
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                peers = [peer.peer_id for peer in await self._p2p._client.list_peers()]
                wanted = [peer for peer in peers if only is None or peer.to_base58() in only]
                await asyncio.gather(*map(self._p2p._client.disconnect, wanted))
        except UNREACHABLE as error:
            logger.debug("could not disconnect: %s", error or type(error).__name__)
        self._dht.blacklist.clear()  # who did not answer meanwhile is asked again

    async def serve(self, name: str, handler: Handler) -> None:
        """Let others open streams called `name`; `handler(peer_id, reader, writer)` gets each.

        A stream beyond what one peer, or all of them, may hold open is closed at once.
        """

        async def handle(info: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = info.peer_id.to_base58()
            if self._open[peer] >= MAX_STREAMS_PER_PEER or self._open.total() >= MAX_STREAMS:
                logger.debug("%s from %s: too many streams are open", name, peer)
                writer.close()
                return
            self._open[peer] += 1
            reader, writer = self.traffic.counted(name, reader, writer)
            try:
                await handler(peer, reader, writer)
                await _let_it_close(reader)
            except PotluckError as error:
                logger.debug("%s from %s: %s", name, peer, error)
            finally:
                self._open -= Counter({peer: 1})
                writer.close()

        await self._p2p.add_binary_stream_handler(name, handle)

    @contextlib.asynccontextmanager
    async def stream(self, peer_id: str, name: str, open_s: float = CONNECT_TIMEOUT_S):  # type: ignore[no-untyped-def]
        """Open a stream to `peer_id` within `open_s`; yields (reader, writer).

        Raises:
            NetworkError: the peer cannot be reached, or does not serve `name`.
        """
        try:
            async with asyncio.timeout(open_s):
                reader, writer = await open_stream(self._p2p, PeerID.from_base58(peer_id), name)
        except UNREACHABLE as error:
            raise NetworkError(f"cannot reach {short(peer_id)}: {str(error) or type(error).__name__}") from error
        self.traffic.opened[name.rpartition("/")[2]] += 1
        try:
            yield self.traffic.counted(name, reader, writer)
        finally:
            writer.close()

    async def call(self, peer_id: str, name: str, request: Message, reply: type[M], *, timeout_s: float) -> M:
        """Send one message and get one back.

        Raises:
            NetworkError: no answer within `timeout_s`.
            FormatError: the answer is none.
        """
        async with self.stream(peer_id, name, max(timeout_s, CONNECT_TIMEOUT_S)) as (reader, writer):
            await frames.send(writer, request, timeout_s=timeout_s)
            try:
                async with asyncio.timeout(timeout_s):
                    return await frames.receive(reader, reply, timeout_s=timeout_s)
            except TimeoutError as error:
                raise NetworkError(f"nothing came for {timeout_s:.1f} s") from error

    async def store_record(self, key: str, subkey: str, value: bytes, expires: float) -> bool:
        """Put a record into the DHT, to be found until `expires` (Unix seconds). Raises: NetworkError."""
        try:
            async with asyncio.timeout(DHT_TIMEOUT_S):
                return bool(await self._dht.store(key, value, expires, subkey=subkey))
        except UNREACHABLE as error:
            raise NetworkError(f"the DHT does not answer: {error or type(error).__name__}") from error

    async def find_records(self, key: str) -> dict[str, bytes]:
        """The DHT's records under `key`: subkey -> value. Nothing in them is believed yet. Raises: NetworkError."""
        try:
            async with asyncio.timeout(DHT_TIMEOUT_S):
                found = await self._dht.get(key, latest=True)
        except UNREACHABLE as error:
            raise NetworkError(f"the DHT does not answer: {error or type(error).__name__}") from error
        if found is None or not isinstance(found.value, dict):
            return {}
        return {
            subkey: item.value
            for subkey, item in found.value.items()
            if isinstance(subkey, str) and isinstance(item.value, bytes)
        }


async def _let_it_close(reader: asyncio.StreamReader) -> None:
    """Wait until the other side, which has all that was sent then, closes the stream.

    p2pd answers the end of our connection to it with a reset of the stream, and a reset overtakes what the other side
    has not read yet: one answer in a thousand was lost.
    """
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while await reader.read(1 << 16):
                pass


def short(peer_id: str) -> str:
    """The last eight characters: what people see of a peer id."""
    return peer_id[-8:]


def parse_address(text: str) -> tuple[str, Multiaddr]:
    """(peer id, address without it) of a multiaddr that ends in /p2p/<peer id>. Raises: FormatError."""
    if len(text) > MAX_ADDRESS_CHARS or "/p2p/" not in text:
        raise FormatError(f"expected a multiaddr that ends in /p2p/<peer id>, got {text[:80]!r}")
    bare, _, peer_id = text.rpartition("/p2p/")
    try:
        PeerID.from_base58(peer_id)
        return peer_id, Multiaddr(bare)
    except (ValueError, MultiaddrError) as error:
        raise FormatError(f"not a multiaddr: {text[:80]!r}") from error


def _to_multiaddr(host: str, port: int) -> str:
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return f"/dns/{host}/tcp/{port}"
    return f"/ip{version}/{host}/tcp/{port}"


async def open_stream(p2p: P2P, peer: PeerID, name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """hivemind's `call_binary_stream_handler`, which leaves the connection to p2pd open when the peer is not there."""
    reader, writer = await p2p._client.control.daemon_connector.open_connection()
    with contextlib.ExitStack() as stack:
        stack.callback(writer.close)
        wanted = p2pd_pb2.StreamOpenRequest(peer=peer.to_bytes(), proto=[name])
        await write_pbmsg(writer, p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_OPEN, streamOpen=wanted))
        response = p2pd_pb2.Response()
        await read_pbmsg_safe(reader, response)
        raise_if_failed(response)
        stack.pop_all()
    return reader, writer
