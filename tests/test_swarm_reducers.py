"""Trusted reducers: they reduce for members that nobody reaches, bring no work, have no vote, and can be done without."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import pytest

from peer.round.group import Group, Reducer
from peer.training.codecs.codec import EncodedUpdate
from protocol import swarm_pb2
from protocol.errors import VerificationError
from tests.swarm_kit import World, acquaint, agreed, run, until

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize("count", [1, 2])
def test_members_whom_nobody_reaches_average_through_those_that_only_reduce(
    tmp_path: Path, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path, values=200_000, round_tokens=None, round_seconds=1.0, min_peers=3, wire="int8")
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            homes = [await stack.enter_async_context(world.peer(i, train=False, can_reduce=False)) for i in range(3)]
            helpers = [
                await stack.enter_async_context(world.peer(3 + i, train=False, reduce_only=True)) for i in range(count)
            ]
            await acquaint([*homes, *helpers])
            await until(lambda: all(len(home.rounds.company.reducers()) == count for home in homes))
            groups: list[Group] = []
            for home in homes:
                home.rounds.group.start = noting(groups, home.rounds.group.start)  # type: ignore[method-assign]
                home.train()
            await agreed([*homes, *helpers], 3)
            for home in homes:
                agreement = home.heads[-1].agreement
                assert agreement is not None
                assert set(agreement.by_peer) == agreement.voters == {peer.me for peer in homes}
            everyone = {helper.me for helper in helpers}
            named = [{reducer.peer_id for reducer in group.reducers} for group in groups]
            assert everyone in named, "all of them reduce, if none is late for a round"
            for group, reducers in zip(groups, named, strict=True):
                assert reducers and reducers <= everyone
                assert not any(member.share for member in group.members)

    run(main())
    assert "fetched round" not in caplog.text, "who only reduces has the average, and so the state"


def noting(groups: list[Group], start: object):  # type: ignore[no-untyped-def]
    def noted(group: Group, update: EncodedUpdate | None) -> None:
        groups.append(group)
        start(group, update)  # type: ignore[operator]

    return noted


def test_a_reducer_that_vanishes_in_mid_round_is_done_without(tmp_path: Path) -> None:
    world = World(tmp_path, round_tokens=None, round_seconds=0.7, min_peers=2)

    async def main() -> None:
        async with (
            world.peers(2) as peers,
            world.peer(2, *peers, train=False, reduce_only=True) as helper,
        ):
            await until(lambda: any(peer.rounds.group.reduction for peer in [helper]), what="a group with a reducer")
            await helper.vanish()
            at = peers[0].round
            await agreed(peers, at + 3)
            for peer in peers:
                assert len(peer.handed_over) == len(set(peer.handed_over)), "work was done twice for one base"

    run(main())


def test_who_is_not_trusted_by_the_host_reduces_for_nobody(tmp_path: Path) -> None:
    world = World(tmp_path, round_tokens=None, round_seconds=0.7, min_peers=2)

    async def main() -> None:
        async with world.peers(2) as peers:
            untrusted = {"reduce_only": True, "certificate": lambda: world.certificate(2)}
            async with world.peer(2, *peers, train=False, **untrusted) as liar:
                await until(lambda: peers[0].rounds.book.get(liar.me))
                at = peers[0].round
                await agreed(peers, at + 2)
                assert all(not peer.rounds.company.reducers() for peer in peers)
                assert liar.rounds.group.since == 0.0, "it was in no group"

    run(main())


def a_group(world: World, *reducers: Reducer) -> swarm_pb2.Group:
    rules = world.rules()
    members = []
    for index in range(2):
        encoded = EncodedUpdate.encode(world.update(index), "fp32")
        data = world.claim(index, encoded).sign(world.identity(index)).data
        members.append(rules.check_member(data, world.certificate(index), False))
    return Group.build(rules, 0, members[0].peer_id, members, reducers=reducers).to_message("")


def test_a_group_with_a_reducer_that_the_host_does_not_trust_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path, values=1000)
    leader = world.identity(0).peer_id
    good = Reducer(world.identity(5).peer_id, world.certificate(5, reducer=True), 1)
    group = Group.from_message(a_group(world, good), leader, world.rules())
    assert group.reducers == (good,) and set(group.ranges(3)) == {good.peer_id}
    with pytest.raises(VerificationError, match="does not trust"):
        message = a_group(world, Reducer(good.peer_id, world.certificate(5), 1))
        Group.from_message(message, leader, world.rules())
    with pytest.raises(VerificationError, match="twice"):
        a_group(world, good, good)
    with pytest.raises(VerificationError, match="member as well"):
        a_group(world, Reducer(leader, world.certificate(0, reducer=True), 1))
    with pytest.raises(VerificationError, match="nobody in the group can be reached"):
        a_group(world, Reducer(good.peer_id, good.certificate, 0))
