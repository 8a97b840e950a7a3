"""Members behind firewalls: two that cannot reach each other meet at one that both can, and reduce nothing."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from peer.swarm import leading

from peer.net.node import Node
from peer.round.group import Member
from peer.training.codecs.codec import EncodedUpdate
from protocol.errors import NetworkError, VerificationError
from tests.swarm_kit import Peer, World, acquaint, agreed, run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def wall_off(*nodes: Node) -> None:
    """No streams between these nodes, in either direction."""
    ids = {node.peer_id for node in nodes}
    for node in nodes:
        real_stream, real_connect = node.stream, node.connect

        @contextlib.asynccontextmanager
        async def stream(peer_id: str, name: str, *rest: Any, real: Any = real_stream) -> AsyncIterator[Any]:
            if peer_id in ids:
                raise NetworkError("a firewall")
            async with real(peer_id, name, *rest) as both:
                yield both

        async def connect(addresses: Any, real: Any = real_connect) -> set[str]:
            return await real(a for a in addresses if a.rpartition("/")[2] not in ids)

        node.stream, node.connect = stream, connect  # type: ignore[method-assign]


def test_two_behind_firewalls_take_part_through_a_third_and_reduce_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, round_tokens=None, round_seconds=0.7, min_peers=3)

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            peers: list[Peer] = [await stack.enter_async_context(world.peer(index, train=False)) for index in range(3)]
            hub, *walled = peers
            wall_off(*(peer.node for peer in walled))
            groups: list[dict[str, int]] = []
            real = hub.rounds._start_group

            def start(group: Any) -> None:
                groups.append({member.peer_id: member.share for member in group.members})
                real(group)

            hub.rounds._start_group = start  # type: ignore[method-assign]
            await acquaint([hub, walled[0]])
            await acquaint([hub, walled[1]])
            for peer in peers:
                peer.train()
            await agreed(peers, 2)
            assert walled[0].rounds.book.get(walled[1].me) is None or not walled[0].rounds.book.is_alive(walled[1].me)
            for shares in groups:
                assert shares[hub.me] > 0 and shares[walled[0].me] == shares[walled[1].me] == 0
            for peer in peers:
                agreement = peer.heads[-1].agreement
                assert agreement is not None and set(agreement.by_peer) == {each.me for each in peers}

    run(main())


def members_of(world: World, count: int) -> list[Member]:
    made = []
    for index in range(count):
        envelope = world.claim(index, EncodedUpdate.encode(world.update(index), "fp32")).sign(world.identity(index))
        made.append(world.rules().check_member(envelope.data, world.certificate(index), True))
    return made


def test_when_nobody_can_be_reached_by_all_the_least_reachable_is_left_out(tmp_path: Path) -> None:
    world = World(tmp_path, values=1000)
    members = members_of(world, 4)
    a, b, c, d = (member.peer_id for member in members)
    answers = leading.Answers(unheard={a: {b, d}, b: {a}, c: {d}, d: set()})
    left = leading._connected(members, answers)
    assert {member.peer_id for member in left} in ({b, c}, {a, c}, {a, b, c}) and answers.left_out
    assert leading._reducers(left, answers)
    assert leading._reducers(members, answers) == set()


def test_a_lone_member_that_cannot_reduce_makes_no_group(tmp_path: Path) -> None:
    (alone,) = members_of(World(tmp_path, values=1000), 1)
    closed = Member(alone.peer_id, alone.certificate, alone.claim, alone.envelope, can_reduce=False, share=0)
    with pytest.raises(VerificationError, match="nobody in the group"):
        leading._connected([closed], leading.Answers())
