"""Who is not admitted gets and gives nothing: not a stock hivemind averager, not a process that speaks our streams."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from peer.net import frames
from peer.net.node import Node
from peer.net.records import members_key, sign_record
from peer.net.search import MemberSearch
from protocol import swarm_pb2
from protocol.errors import NetworkError
from tests.swarm_kit import Peer, World, acquaint, agreed, fixed_ed25519, run, until

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

OUTSIDER = 8

# ---- a process that speaks our streams -------------------------------------------------------------------------------

NOT_ADMITTED: dict[str, Callable[[World], str]] = {
    "none": lambda world: "",
    "expired": lambda world: world.certificate(OUTSIDER, lifetime_s=-3600),
    "another peer's": lambda world: world.certificate(0),
    "another run's": lambda world: world.certificate(OUTSIDER, run="f" * 64),
    "made by itself": lambda world: world.certificate(OUTSIDER, key=fixed_ed25519("an outsider's own key")),
    "garbage": lambda world: "e30.e30.",
    "huge": lambda world: "x" * 60_000,
}


def requests(world: World, peer: Peer) -> dict[str, Any]:
    """One well-formed message for every stream that a member serves."""
    head = peer.driver.head
    place = {"round": head.round + 1, "base": head.digest}
    return {
        "progress": swarm_pb2.Progress(**place, tokens=10),
        "propose": swarm_pb2.Proposal(**place, attempt=5, timeout_s=1),
        "group": swarm_pb2.Group(**place, attempt=0),
        "reduce": swarm_pb2.Part(group="a" * 64, data=b"x"),
        "vote": swarm_pb2.VoteMessage(vote=b"{}"),
        "abort": swarm_pb2.Abort(**{"round": head.round + 1}, group="a" * 64, reason="because"),
        "head": swarm_pb2.HeadRequest(),
        "state": swarm_pb2.StateRequest(state=head.digest, leaves=True),
        "average": swarm_pb2.AverageRequest(state=head.digest, chunks=1),
    }


async def is_refused(node: Node, peer: Peer, name: str, data: bytes) -> bool:
    """Whether a member closes a stream on which this is sent, without an answer."""
    async with node.stream(peer.me, f"potluck/{peer.world.card.run}/{name}") as (reader, writer):
        writer.write(data)
        with contextlib.suppress(OSError):  # closed, with more to be read
            return bool(await asyncio.wait_for(reader.read(), 60) == b"")
        return True


def test_without_a_certificate_of_its_own_for_this_run_a_peer_gets_no_answer(tmp_path: Path) -> None:
    world = World(tmp_path, values=1000, round_tokens=800)

    async def main() -> None:
        async with world.peers(2) as peers, world.node(OUTSIDER, *(peer.node for peer in peers)) as outsider:
            for why, certificate in NOT_ADMITTED.items():
                for name, message in requests(world, peers[0]).items():
                    message.certificate = certificate(world)
                    data = message.SerializeToString()
                    framed = len(data).to_bytes(4, "big") + data
                    assert await is_refused(outsider, peers[0], name, framed), f"{why}: {name} was answered"
            assert outsider.peer_id not in peers[0].driver.state.views
            assert peers[0].driver.state.box.leader != outsider.peer_id
            await agreed(peers, max(peer.round for peer in peers) + 2)

    run(main())


def test_the_same_messages_under_a_good_certificate_are_answered(tmp_path: Path) -> None:
    world = World(tmp_path, values=1000, round_tokens=10**9)

    async def main() -> None:
        async with world.peers(1) as (peer,), world.node(OUTSIDER, peer.node) as member:
            for name, message in requests(world, peer).items():
                message.certificate = world.certificate(OUTSIDER)
                async with member.stream(peer.me, f"potluck/{world.card.run}/{name}") as (reader, writer):
                    await frames.send(writer, message, timeout_s=30)
                    await asyncio.wait_for(reader.readexactly(4), 60)

    run(main())


def test_a_stranger_that_sends_no_first_message_or_a_large_one_is_cut_off(tmp_path: Path) -> None:
    world = World(tmp_path, values=1000, round_tokens=10**9)

    async def main() -> None:
        async with world.peers(1) as (peer,), world.node(OUTSIDER, peer.node) as outsider:
            too_large = (frames.FIRST_FRAME_BYTES + 1).to_bytes(4, "big")
            assert await is_refused(outsider, peer, "group", too_large)
            assert await is_refused(outsider, peer, "group", b"")

    run(main())


def test_members_do_not_believe_an_outsiders_answers(tmp_path: Path) -> None:
    """It serves all that a member serves, and is asked nothing that matters."""
    world = World(tmp_path, values=1000, round_tokens=800)
    heard: list[str] = []

    async def main() -> None:
        async with world.peers(2) as peers, world.node(OUTSIDER, *(peer.node for peer in peers)) as outsider:
            for name, kind in {
                "propose": swarm_pb2.Proposal,
                "group": swarm_pb2.Group,
                "reduce": swarm_pb2.Part,
            }.items():

                async def handle(peer: str, reader: Any, writer: Any, kind: Any = kind, name: str = name) -> None:
                    await frames.receive(reader, kind, timeout_s=30)
                    heard.append(name)

                await outsider.serve(f"potluck/{world.card.run}/{name}", handle)

            async def progress(peer: str, reader: Any, writer: Any) -> None:
                await frames.receive(reader, swarm_pb2.Progress, timeout_s=30)
                heard.append("progress")
                head = peers[0].driver.head
                expired = world.certificate(OUTSIDER, lifetime_s=-3600)
                lie = swarm_pb2.Progress(certificate=expired, round=head.round + 1, base=head.digest, tokens=800)
                await frames.send(writer, lie, timeout_s=30)

            await outsider.serve(f"potluck/{world.card.run}/progress", progress)
            for peer in peers:
                peer.driver.gossip.contacts.add(outsider.peer_id)
            await until(lambda: "progress" in heard, what="the members to try the outsider")
            await agreed(peers, max(peer.round for peer in peers) + 3)
            assert set(heard) == {"progress"}
            assert all(outsider.peer_id not in peer.driver.state.views for peer in peers)

    run(main())


def test_an_outsiders_record_is_passed_over_and_a_members_is_not(tmp_path: Path) -> None:
    world = World(tmp_path, values=1000, round_tokens=10**9)
    ended = {OUTSIDER: world.certificate(OUTSIDER, lifetime_s=-3600), 3: world.certificate(3)}

    async def main() -> None:
        async with world.peers(1) as (peer,), world.node(OUTSIDER) as outsider, world.node(3) as member:
            for index, node in ((OUTSIDER, outsider), (3, member)):
                where = await node.addresses()
                identity, token = world.identity(index), ended[index]
                value, expires = sign_record(identity, run=world.card.run, certificate=token, addresses=where)
                await node.store_record(members_key(world.card.run), node.peer_id, value, expires)
            token = world.certificate(0)
            search = MemberSearch(peer.node, peer.driver, world.identity(0), lambda: token)  # type: ignore[arg-type]
            searching = asyncio.create_task(search.forever())
            await until(lambda: peer.driver.gossip.contacts, what="somebody to be found")
            assert peer.driver.gossip.contacts == {member.peer_id}
            searching.cancel()
            await asyncio.gather(searching, return_exceptions=True)

    run(main())


# ---- a stock averager ------------------------------------------------------------------------------------------------

_STOCK = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch, hivemind

def main():
    prefix, addresses = sys.argv[1], json.loads(sys.argv[2])
    dht = hivemind.DHT(initial_peers=addresses, start=True)
    mine = [torch.full((1000,), 7.0)]
    averager = hivemind.DecentralizedAverager(
        mine, dht, prefix=prefix, start=True, min_matchmaking_time=2.0, request_timeout=1.0, allow_state_sharing=True
    )
    print("up", flush=True)
    try:
        group = averager.step(timeout=12, allow_retries=True)
    except Exception as error:
        group = None
    state = averager.load_state_from_peers(timeout=5)
    with averager.get_tensors() as tensors:
        same = bool(torch.equal(tensors[0], torch.full((1000,), 7.0)))
    found = dht.get(prefix + "/members", latest=True)
    names = list(map(str, group)) if group else None
    print(json.dumps({"group": names, "state": state is not None, "same": same}), flush=True)
    averager.shutdown()
    dht.shutdown()

if __name__ == "__main__":
    main()
"""


def test_a_stock_averager_that_knows_the_prefix_gets_into_no_group_and_gets_no_state(tmp_path: Path) -> None:
    world = World(tmp_path, p2pd=True, values=1000, round_tokens=800)
    script = tmp_path / "stock.py"
    script.write_text(_STOCK)

    async def main() -> None:
        async with world.peers(2, work_s=0.3) as peers:
            await acquaint(peers)
            await agreed(peers, 1)
            addresses = [address for peer in peers for address in await peer.node.addresses()]
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(script),
                f"potluck/{world.card.run}",
                json.dumps(addresses),
                stdout=asyncio.subprocess.PIPE,
            )
            assert process.stdout is not None
            assert (await asyncio.wait_for(process.stdout.readline(), 90)).strip() == b"up"
            start = peers[0].round
            output = await asyncio.wait_for(process.stdout.readline(), 90)
            await asyncio.wait_for(process.wait(), 60)
            assert json.loads(output) == {"group": None, "state": False, "same": True}
            await agreed(peers, start + 3)
            for peer in peers:
                assert all(set(head.weights) <= {other.me for other in peers} for head in peer.heads)
                assert not torch.any(peer.driver.head.state.parameters == 7.0)

    run(main(), timeout_s=240)


def test_a_certificate_that_runs_out_shuts_its_holder_out(tmp_path: Path) -> None:
    world = World(tmp_path, values=1000, round_tokens=10**9)

    async def main() -> None:
        async with world.peers(1) as (peer,), world.node(OUTSIDER, peer.node) as member:
            name, message = f"potluck/{world.card.run}/progress", requests(world, peer)["progress"]
            message.certificate = world.certificate(OUTSIDER, lifetime_s=2)
            assert await member.call(peer.me, name, message, swarm_pb2.Progress, timeout_s=30)
            await until(lambda: not peer.driver.roster.is_admitted(member.peer_id), what="the certificate to end")
            for token in ("", world.certificate(OUTSIDER, lifetime_s=-3600)):
                message.certificate = token
                with pytest.raises(NetworkError):
                    await member.call(peer.me, name, message, swarm_pb2.Progress, timeout_s=30)

    run(main())
