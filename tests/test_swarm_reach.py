"""Members behind firewalls: two that cannot reach each other meet at one that both can, and reduce nothing."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest

from peer.round import lead
from peer.round.group import Member
from peer.round.state import Lead
from peer.training.codecs.codec import EncodedUpdate
from protocol.errors import VerificationError
from tests.swarm_kit import Peer, World, acquaint, agreed, run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_two_behind_firewalls_take_part_through_a_third_and_reduce_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, round_tokens=None, round_seconds=0.7, min_peers=3)
    groups: list[dict[str, int]] = []

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            peers: list[Peer] = []

            def note(round: int, stage: str) -> None:
                group = peers[0].driver.state.newest_group
                if stage == "group" and group is not None:
                    groups.append({member.peer: member.share for member in group.members})

            for index in range(3):
                ways = {"on_stage": note} if index == 0 else {}
                peers.append(await stack.enter_async_context(world.peer(index, train=False, **ways)))
            hub, *walled = peers
            assert world.network is not None
            world.network.cut(walled[0].me, walled[1].me)
            await acquaint([hub, walled[0]])
            await acquaint([hub, walled[1]])
            for peer in peers:
                peer.train()
            await agreed(peers, 2)
            assert not walled[0].driver.lines.is_alive(walled[1].me)
            assert groups
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
