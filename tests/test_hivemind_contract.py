"""What we hold hivemind 1.1.12 by: each seam that `peer.swarm` relies on, so that another version fails here first."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import time
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path

import pytest
from hivemind.dht.node import DHTNode
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.p2p import P2P, P2PDaemonError, PeerID
from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo
from hivemind.utils.multiaddr import Multiaddr
from hivemind.utils.timed_storage import ValueWithExpiration

from peer.net.node import Node, open_stream
from tests import swarm_kit
from tests.swarm_kit import World, run, until

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@contextlib.asynccontextmanager
async def p2p(world: World, index: int) -> AsyncIterator[P2P]:
    """A p2pd, started as `Node.start` does."""
    started = await P2P.create(
        identity_path=str(world.identity_path(index)),
        check_if_identity_free=False,
        host_maddrs=["/ip4/127.0.0.1/tcp/0"],
        announce_maddrs=None,
        auto_nat=False,
        nat_port_map=False,
    )
    try:
        yield started
    finally:
        await started.shutdown()


def test_the_version_is_the_one_that_was_read() -> None:
    assert version("hivemind") == "1.1.12"


def test_p2p_takes_the_arguments_that_we_give() -> None:
    parameters = inspect.signature(P2P.create).parameters
    ours = {"identity_path", "check_if_identity_free", "host_maddrs", "announce_maddrs", "auto_nat", "nat_port_map"}
    assert {*ours, "startup_timeout"} <= set(parameters)
    assert parameters["tls"].default is True


def test_our_identity_file_gives_our_peer_id(tmp_path: Path) -> None:
    world = World(tmp_path, p2pd=True)

    async def main() -> None:
        async with p2p(world, 0) as started:
            assert started.peer_id.to_base58() == world.identity(0).peer_id

    run(main())


def test_the_child_and_its_sockets_are_where_the_reaper_looks(tmp_path: Path) -> None:
    async def main() -> None:
        async with p2p(World(tmp_path, p2pd=True), 0) as started:
            assert "p2pd" in Path(f"/proc/{started._child.pid}/cmdline").read_text()
            for address in (started._daemon_listen_maddr, started._client_listen_maddr):
                assert str(address["unix"]).lstrip("/").startswith("tmp/hivemind-")
            assert os.path.exists("/" + str(started._daemon_listen_maddr["unix"]).lstrip("/"))

    run(main())


def test_a_stream_carries_bytes_both_ways_and_names_the_caller(tmp_path: Path) -> None:
    world, callers = World(tmp_path, p2pd=True), []

    async def echo(info: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        callers.append(info.peer_id.to_base58())
        writer.write(await reader.readexactly(5))
        await writer.drain()
        writer.close()

    async def main() -> None:
        async with p2p(world, 0) as server, p2p(world, 1) as client:
            await server.add_binary_stream_handler("potluck/test", echo)
            bare = [Multiaddr(str(a).rpartition("/p2p/")[0]) for a in await server.get_visible_maddrs(latest=True)]
            await client._client.connect(server.peer_id, bare)
            info, reader, writer = await client.call_binary_stream_handler(server.peer_id, "potluck/test")
            assert info.peer_id == server.peer_id
            writer.write(b"hello")
            assert await asyncio.wait_for(reader.read(), 60) == b"hello"
            writer.close()
            with pytest.raises(P2PDaemonError):
                await open_stream(client, server.peer_id, "potluck/nobody-serves-this")

    run(main())
    assert callers == [world.identity(1).peer_id]


def test_the_daemon_connector_is_where_we_open_streams_through(tmp_path: Path) -> None:
    async def main() -> None:
        async with p2p(World(tmp_path, p2pd=True), 0) as started:
            _, writer = await started._client.control.daemon_connector.open_connection()
            writer.close()
            await writer.wait_closed()

    run(main())


def test_connecting_to_nobody_fails_by_a_daemon_error(tmp_path: Path) -> None:
    world = World(tmp_path, p2pd=True)

    async def main() -> None:
        async with p2p(world, 0) as started:
            nobody = PeerID.from_base58(world.identity(1).peer_id)
            with pytest.raises(P2PDaemonError):
                await asyncio.wait_for(started._client.connect(nobody, [Multiaddr("/ip4/127.0.0.1/tcp/9")]), 20)

    run(main())


class _Picky(RecordValidatorBase):
    """Stores nothing but b'good'."""

    seen: list[DHTRecord]

    def __init__(self) -> None:
        self.seen = []

    def validate(self, record: DHTRecord) -> bool:
        self.seen.append(record)
        return b"good" in record.value


def test_the_dht_stores_by_subkey_what_the_validator_lets_through(tmp_path: Path) -> None:
    world = World(tmp_path, p2pd=True)

    async def main() -> None:
        async with p2p(world, 0) as first, p2p(world, 1) as second:
            validator = _Picky()
            one = await DHTNode.create(p2p=first, record_validator=validator, cache_refresh_before_expiry=0)
            two = await DHTNode.create(p2p=second, cache_refresh_before_expiry=0)
            bare = [Multiaddr(str(a).rpartition("/p2p/")[0]) for a in await first.get_visible_maddrs(latest=True)]
            await second._client.connect(first.peer_id, bare)
            assert await two.protocol.call_ping(first.peer_id, validate=False) == one.node_id
            await until(lambda: two.protocol.routing_table.uid_to_peer_id, what="the ping to be noted")
            expires = time.time() + 60
            await two.store("key", b"good", expires, subkey="alice")
            await two.store("key", b"bad", expires, subkey="mallory")
            found = await one.get("key", latest=True)
            assert isinstance(found.value, dict) and set(found.value) == {"alice"}
            entry = found.value["alice"]
            assert isinstance(entry, ValueWithExpiration) and entry.value == b"good"
            assert abs(entry.expiration_time - expires) < 1e-3
            assert {type(record.value) for record in validator.seen} == {bytes}
            assert all(isinstance(record.subkey, bytes) and record.expiration_time for record in validator.seen)
            assert await one.get("no such key", latest=True) is None
            await one.shutdown()
            await two.shutdown()

    run(main())


def test_p2pd_and_its_reaper_run_in_sessions_of_their_own(tmp_path: Path) -> None:
    async def main() -> None:
        async with World(tmp_path, p2pd=True).node(0) as node:
            p2pd, reaper = node._p2p._child.pid, node._reaper.pid
            assert os.getsid(p2pd) == p2pd and os.getsid(reaper) == reaper and os.getsid(0) not in (p2pd, reaper)

    run(main())


def test_nodes_that_start_at_the_same_time_leave_asyncio_as_it_was(tmp_path: Path) -> None:
    original = asyncio.subprocess.create_subprocess_exec

    async def main() -> None:
        world = World(tmp_path, p2pd=True)
        start = [Node.start(world.identity_path(index), listen="127.0.0.1:0") for index in range(2)]
        for node in await asyncio.gather(*start):
            assert os.getsid(node._p2p._child.pid) == node._p2p._child.pid
            await node.close()

    run(main())
    assert asyncio.subprocess.create_subprocess_exec is original
    assert swarm_kit.hivemind.__version__ == "1.1.12"
