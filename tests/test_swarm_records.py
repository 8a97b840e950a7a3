"""Records in the DHT: members' own, signed ones are stored and believed, over p2pd and by the validator alone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hivemind.dht.validation import DHTRecord
from hivemind.utils.serializer import MSGPackSerializer
from hypothesis import given
from hypothesis import strategies as st

from peer.net.node import Node
from peer.net.records import MAX_RECORD_BYTES, RECORD_TYPE, RecordValidator, members_key, open_record, sign_record
from protocol import envelope
from tests.swarm_kit import World, meet, run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_a_members_record_is_found_by_others(tmp_path: Path) -> None:
    world = World(tmp_path, p2pd=True)

    async def main() -> None:
        async with world.nodes(3) as nodes:
            key = members_key(world.card.run)
            for index, node in enumerate(nodes):
                value, expires = signed(world, index, await node.addresses())
                await node.store_record(key, node.peer_id, value, expires)
            everyone = {node.peer_id for node in nodes}
            for node in nodes:
                found: dict[str, bytes] = {}
                while set(found) != everyone:
                    found = await node.find_records(key)
                assert all(open_record(value)[0] == peer for peer, value in found.items())

    run(main())


def signed(world: World, index: int, addresses: list[str] | None = None) -> tuple[bytes, float]:
    identity = world.identity(index)
    return sign_record(
        identity,
        run=world.card.run,
        certificate=world.certificate(index),
        addresses=addresses or ["/ip4/127.0.0.1/tcp/1"],
    )


def test_a_forged_or_foreign_record_is_not_stored_by_honest_nodes(tmp_path: Path) -> None:
    world = World(tmp_path, p2pd=True)

    async def main() -> None:
        async with world.node(0) as honest, world.node(1, honest) as reader:
            # a node with a hostile owner checks nothing
            hostile = await Node.start(world.identity_path(2), listen="127.0.0.1:0", validator=None)
            try:
                await meet(hostile, honest, reader)
                await meet(honest, hostile)
                key, victim = members_key(world.card.run), world.identity(0).peer_id
                other, expires = signed(world, 2)
                for value in (other, b"", b"x" * (MAX_RECORD_BYTES + 1), b"\xff" * 40, tampered(signed(world, 0)[0])):
                    await hostile.store_record(key, victim, value, expires)
                mine, _ = signed(world, 2)
                await hostile.store_record(key, hostile.peer_id, mine, expires + 3600)
                # only this last one is as its signer wanted it
                await hostile.store_record(key, hostile.peer_id, mine, expires)
                deadline = time.monotonic() + 60
                while (found := await honest.find_records(key)) == {} and time.monotonic() < deadline:
                    pass
                assert set(found) == {hostile.peer_id}
                assert found[hostile.peer_id] == mine
            finally:
                await hostile.close()

    run(main())


def tampered(value: bytes) -> bytes:
    outer = json.loads(value)
    signature = outer["signatures"][0]["sig"]
    outer["signatures"][0]["sig"] = ("B" if signature[0] == "A" else "A") + signature[1:]
    return json.dumps(outer).encode()


def record(subkey: Any, value: Any, expires: float) -> DHTRecord:
    dumps = MSGPackSerializer.dumps
    return DHTRecord(key=b"k", subkey=dumps(subkey), value=dumps(value), expiration_time=expires)


def test_the_validator_believes_only_the_peer_itself_and_only_as_long_as_it_signed(tmp_path: Path) -> None:
    world, validator = World(tmp_path, p2pd=True), RecordValidator()
    value, expires = signed(world, 0)
    me, other = world.identity(0).peer_id, world.identity(1).peer_id
    assert validator.validate(record(me, value, expires))
    assert not validator.validate(record(other, value, expires))
    assert not validator.validate(record(me, value, expires + 10))
    assert not validator.validate(record(me, tampered(value), expires))
    assert not validator.validate(record(1, value, expires))
    assert not validator.validate(record(me, value.decode(), expires))
    assert not validator.validate(DHTRecord(key=b"k", subkey=b"", value=value, expiration_time=expires))
    for wrong in (
        {},
        {"run": "x"},
        [],
        None,
        {"run": "0" * 64, "certificate": "c", "addresses": ["a"] * 17, "expires": 1},
    ):
        data = envelope.sign(wrong, RECORD_TYPE, world.identity(0)).to_bytes()
        assert not validator.validate(record(me, data, 1.0))


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_any_bytes_in_the_dht_are_refused_without_an_error(subkey: bytes, value: bytes) -> None:
    made = DHTRecord(key=b"k", subkey=subkey, value=value, expiration_time=time.time() + 60)
    assert RecordValidator().validate(made) is False


def test_deeply_nested_bytes_in_the_dht_are_refused_without_an_error() -> None:
    for nested in (b"\x91" * 8000, b"\xd4\x40" * 4000, b"\xc8\x1f\x00\x40" * 2000):
        made = DHTRecord(key=b"k", subkey=b"\xa1a", value=nested, expiration_time=time.time() + 60)
        assert RecordValidator().validate(made) is False
