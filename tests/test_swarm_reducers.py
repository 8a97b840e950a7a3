"""Trusted reducers: they reduce for members that nobody reaches, bring no work, have no vote, and can be done without.

What they do in a round is in `test_round_vanishing`, too.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import pytest

from peer.net import wire
from peer.net.opening import Opening
from peer.round import turns
from peer.round.group import Group, Member, Reducer
from peer.training.codecs.codec import EncodedUpdate
from protocol.errors import VerificationError
from tests.swarm_kit import World, acquaint, agreed, run, until

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize("count", [1, 2])
def test_members_whom_nobody_reaches_average_through_those_that_only_reduce(
    tmp_path: Path, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path, values=200_000, round_tokens=None, round_seconds=1.5, min_peers=3, wire="int8")
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            homes = [await stack.enter_async_context(world.peer(i, train=False, can_reduce=False)) for i in range(3)]
            helpers = [
                await stack.enter_async_context(world.peer(3 + i, train=False, reduce_only=True)) for i in range(count)
            ]
            await acquaint([*homes, *helpers])
            everyone = {helper.me for helper in helpers}

            def all_know() -> bool:
                states = [home.driver.state for home in homes]
                return all(set(turns.reducers(state, state.now)) == everyone for state in states)

            await until(all_know)
            for home in homes:
                home.train()
            await agreed([*homes, *helpers], 3)
            for home in homes:
                agreement = home.heads[-1].agreement
                assert agreement is not None
                assert set(agreement.by_peer) == agreement.voters == {peer.me for peer in homes}

    run(main())
    assert "fetched round" not in caplog.text, "who only reduces has the average, and so the state"


def test_who_is_not_trusted_by_the_host_reduces_for_nobody(tmp_path: Path) -> None:
    world = World(tmp_path, values=1000, round_tokens=None, round_seconds=0.5, min_peers=2)
    token = world.certificate(2)

    async def main() -> None:
        async with (
            world.peers(2) as peers,
            world.peer(2, *peers, train=False, reduce_only=True, certificate=lambda: token) as liar,
        ):
            await until(lambda: liar.me in peers[0].driver.state.views)
            await agreed(peers, max(peer.round for peer in peers) + 2)
            assert not any(peer.driver.state.views[liar.me].said.reduce_only for peer in peers)
            assert liar.driver.state.newest_group is None, "it was in no group"

    run(main())


def a_group(world: World, *reducers: Reducer) -> Group:
    members = []
    for index in range(2):
        encoded = EncodedUpdate.encode(world.update(index), "fp32")
        claim = world.claim(index, encoded).sign(world.identity(index))
        members.append(Member(claim.by, claim, world.certificate(index), False, 0))
    leader = members[0].peer
    return Group(1, world.genesis.digest, 0, leader, tuple(members), word=world.named, reducers=reducers)


def test_a_group_with_a_reducer_that_the_host_does_not_trust_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path, values=1000)
    leader, terms = world.identity(0).peer_id, world.terms(word=world.named)

    def opened(group: Group) -> Group:
        message = wire.group_message(group, "")
        return wire.group(message, leader, Opening(world.card.run, world.card.member_key)).weighed(terms)

    good = Reducer(world.identity(5).peer_id, world.certificate(5, reducer=True), 1)
    group = opened(a_group(world, good))
    assert group.reducers == (good,) and set(group.ranges(3)) == {good.peer}
    for bad, why in (
        ((Reducer(good.peer, world.certificate(5), 1),), "does not trust"),
        ((good, good), "twice"),
        ((Reducer(leader, world.certificate(0, reducer=True), 1),), "member as well"),
        ((Reducer(good.peer, good.certificate, 0),), "nobody in the group can be reached"),
    ):
        with pytest.raises(VerificationError, match=why):
            opened(a_group(world, *bad))
