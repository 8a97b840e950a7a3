"""Members behind firewalls: two that cannot reach each other meet at one that both can, and reduce nothing."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peer.net.node import Node
from peer.round import lead
from peer.round.group import Group, Member
from peer.round.state import Lead
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
            real = hub.driver.reducing.start

            def start(group: Group, *rest: Any) -> None:
                groups.append({member.peer: member.share for member in group.members})
                real(group, *rest)

            hub.driver.reducing.start = start  # type: ignore[method-assign]
            await acquaint([hub, walled[0]])
            await acquaint([hub, walled[1]])
            for peer in peers:
                peer.train()
            await agreed(peers, 2)
            assert not walled[0].driver.lines.is_alive(walled[1].me)
            for shares in groups:
                assert shares[hub.me] > 0 and shares[walled[0].me] == shares[walled[1].me] == 0
            for peer in peers:
                agreement = peer.heads[-1].agreement
                assert agreement is not None and set(agreement.by_peer) == {each.me for each in peers}

    run(main())


def members_of(world: World, count: int) -> list[Member]:
    made = []
    for index in range(count):
        claim = world.claim(index, EncodedUpdate.encode(world.update(index), "fp32")).sign(world.identity(index))
        made.append(Member(claim.by, claim, world.certificate(index), True))
    return made


def gathered(unheard: dict[str, set[str]]) -> Lead:
    """A leader's answers: who does not hear whom."""
    phase = Lead(0, 0.0, 1.0, (), frozenset(), left_out={})
    phase.unheard = {peer: frozenset(others) for peer, others in unheard.items()}
    return phase


def test_when_nobody_can_be_reached_by_all_the_least_reachable_is_left_out(tmp_path: Path) -> None:
    members = members_of(World(tmp_path, values=1000), 4)
    a, b, c, d = (member.peer for member in members)
    phase = gathered({a: {b, d}, b: {a}, c: {d}, d: set()})
    assert lead.reducing(members, phase) == set()
    left = lead.connected(members, phase)
    assert {member.peer for member in left} in ({b, c}, {a, c}, {a, b, c}) and phase.left_out
    assert lead.reducing(left, phase)


def test_a_lone_member_that_cannot_reduce_makes_no_group(tmp_path: Path) -> None:
    (alone,) = members_of(World(tmp_path, values=1000), 1)
    with pytest.raises(VerificationError, match="nobody in the group"):
        lead.connected([replace(alone, can_reduce=False, share=0)], gathered({}))
