"""Who counts as having the newest state: who has shown it, and nobody who only says so."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch

from peer.net import frames
from peer.net.node import Node
from peer.training.codecs.codec import EncodedUpdate
from peer.training.outer import outer_step
from protocol import swarm_pb2
from protocol.errors import NetworkError
from tests.swarm_kit import Peer, World, agreed, run, until

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

LIAR = 1  # by index: a certified member that speaks to the others by hand


def a_world(tmp_path: Path, round_seconds: float = 0.5) -> World:
    return World(tmp_path, values=1000, round_tokens=None, round_seconds=round_seconds)


def blind(world: World, peer: Peer, now: bool = True) -> None:
    """It cannot ask others for their heads."""
    assert world.network is not None
    (world.network.closed.add if now else world.network.closed.discard)((peer.me, "head"))


@contextlib.asynccontextmanager
async def lying(world: World, liar: Node, peer: Peer, **said: Any) -> AsyncIterator[None]:
    """While this is entered, a liar tells a member where it says that it stands; by default where that one does."""

    async def tell() -> None:
        while True:
            head = peer.driver.head
            fields = {"round": head.round + 1, "base": head.digest, "certificate": world.certificate(LIAR)} | said
            with contextlib.suppress(NetworkError):  # who is busy hears it the next time
                name = f"potluck/{world.card.run}/progress"
                await liar.call(peer.me, name, swarm_pb2.Progress(**fields), swarm_pb2.Progress, timeout_s=60)
            await asyncio.sleep(0.1)

    task = asyncio.create_task(tell())
    try:
        await until(lambda: peer.driver.lines.is_alive(liar.peer_id))
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_the_only_one_is_found_out_and_another_that_fetched_its_state_counts(tmp_path: Path) -> None:
    world = a_world(tmp_path)

    async def main() -> None:
        async with world.peer(0) as one, world.peer(1, one, train=False) as other:
            blind(world, other)
            await until(
                lambda: one.round >= 1 and one.driver.lines.is_alive(other.me), what="a round that one has alone"
            )
            await one.driver.begin_leaving()
            copies = await one.driver.copies()
            assert (copies.round, copies.is_newest, copies.holders, copies.others) == (one.round, True, frozenset(), 1)
            assert copies.run_waits and copies.seconds > 20
            blind(world, other, now=False)
            await until(lambda: other.round == one.round, what="the other to fetch from one that is leaving")
            await until(lambda: one.driver.state.views[other.me].said.base == one.driver.head.digest)
            assert (await one.driver.copies()).holders == {other.me}
            at = one.round
            await one.stop()
            other.train()
            await agreed([other], at + 2)

    run(main())


def test_who_only_says_that_it_has_the_state_neither_counts_nor_gets_the_weight(tmp_path: Path) -> None:
    world = a_world(tmp_path)

    async def main() -> None:
        async with world.peer(0) as one, world.node(LIAR, one.node) as liar, lying(world, liar, one):
            await until(lambda: one.round >= 1)
            await one.driver.begin_leaving()
            await until(lambda: one.driver.state.views[liar.peer_id].said.base == one.driver.head.digest)
            for _ in range(20):  # on a busy machine it may be held for gone in the very moment of counting
                copies = await one.driver.copies()
                assert not copies.holders
                if copies.others == 1:
                    break
                await until(lambda: one.driver.lines.is_alive(liar.peer_id))
            assert copies.others == 1
            await one.stop()
            assert not one.driver.state.box.farewells, "its weight stays its own, for when it comes back"

    run(main())


def forged_head(world: World, peer: Peer) -> swarm_pb2.HeadReply:
    """A state of the liar's own, after a member's head, with an agreement that only the liar has signed."""
    head, encoded = peer.driver.head, EncodedUpdate.encode(torch.full((world.values,), 9.0), world.spec.sync.wire)
    state = outer_step(world.spec, head.state, encoded.decode())
    made = world.claim(LIAR, encoded, round=head.round + 1, base=head.digest, tokens=2**20, batches=2**20)
    agreement = world.agreement([made.sign(world.identity(LIAR))], state.digest, head.last)
    return swarm_pb2.HeadReply(
        certificate=world.certificate(LIAR),
        round=state.round,
        state=state.digest,
        agreement=agreement.to_bytes(),
        manifest=state.manifest().to_bytes(),
    )


@pytest.mark.parametrize("shows", ["nothing", "a state that only it has signed"])
def test_who_says_without_proof_that_it_is_further_on_is_not_believed(tmp_path: Path, shows: str) -> None:
    world = a_world(tmp_path)

    async def main() -> None:
        async with world.peer(0) as one, world.node(LIAR, one.node) as liar:
            await until(lambda: one.round >= 1)
            await one.driver.begin_leaving()
            asked: list[swarm_pb2.HeadRequest] = []

            async def answer(peer: str, reader: Any, writer: Any) -> None:
                asked.append(await frames.receive(reader, swarm_pb2.HeadRequest, timeout_s=30))
                await frames.send(writer, forged_head(world, one), timeout_s=30)

            if shows != "nothing":
                await liar.serve(f"potluck/{world.card.run}/head", answer)
            async with lying(world, liar, one, round=999, base="f" * 64):
                assert (await one.driver.copies()).is_newest
                assert bool(asked) == (shows != "nothing")
                head = one.driver.head
                assert head.weights == {one.me: head.weights[one.me]}, "nor is it taken"

    run(main())


def test_who_has_been_left_behind_is_not_needed(tmp_path: Path) -> None:
    world = a_world(tmp_path)

    async def main() -> None:
        async with world.peer(0) as one, world.peer(1, one, train=False) as behind:
            await until(lambda: behind.round >= 1)
            blind(world, behind)
            await until(lambda: one.round > behind.round)
            await until(lambda: behind.driver.state.views[one.me].said.round > behind.driver.state.round)
            blind(world, behind, now=False)
            assert not (await behind.driver.copies()).is_newest

    run(main())


def test_of_members_that_made_the_round_together_none_is_the_only_one(tmp_path: Path) -> None:
    world = a_world(tmp_path, round_seconds=0.7)

    async def main() -> None:
        async with world.peers(3, work_s=0.1) as peers:
            one, *others = peers
            await until(lambda: len(one.driver.head.weights) == 3, what="a round of all")
            await one.driver.begin_leaving()

            async def is_held() -> bool:
                copies = await one.driver.copies()
                return bool(copies.holders) or not copies.is_newest

            while not await is_held():
                await asyncio.sleep(0.02)  # counting may ask nobody, and then it lets nothing else run
            await one.stop()
            assert one.driver.state.box.farewells
            await agreed(others, max(peer.round for peer in others) + 2)

    run(main())
