"""Half of the weight gone for good, on real nodes: the rest waits, goes on by the coordinator's word, and is
followed."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from peer.round.events import CoordinatorSaid
from protocol.epoch import Epoch
from protocol.keys import PeerIdentity
from protocol.majority import has_majority
from tests.kit.builders import make_spec
from tests.swarm_kit import Peer, World, acquaint, agreed, run, until

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_the_rest_goes_on_by_the_coordinators_word_and_the_gone_follow_when_they_come_back(tmp_path: Path) -> None:
    world = World(
        tmp_path, p2pd=True, values=1000, spec=make_spec(rules=3), round_tokens=None, round_seconds=1.0, min_peers=2
    )

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            few = [await stack.enter_async_context(world.peer(index, tokens=400)) for index in range(2)]
            many = [await stack.enter_async_context(world.peer(index, tokens=900)) for index in (2, 3)]
            await acquaint([*few, *many])

            def decided_by_many(peer: Peer) -> bool:  # what somebody was late with counts, too: it may be another half
                weights = peer.driver.head.weights
                return len(weights) == 4 and not has_majority({one.me for one in few}, weights)

            await until(lambda: all(map(decided_by_many, (*few, *many))), what="a round of all")
            await asyncio.gather(*(peer.vanish() for peer in many))
            gone_at = many[0].driver.head
            await until(lambda: all(peer.waiting_for == "too-few" for peer in few), what="the rest to stand still")
            stuck = few[0].driver.head
            assert few[1].driver.head.digest == stuck.digest
            word = Epoch(
                epoch=1,
                run=world.card.run,
                round=stuck.round,
                state=stuck.digest,
                peers={peer.me: stuck.weights[peer.me] for peer in few},
            ).sign(PeerIdentity(world.key))
            few[0].driver.post(CoordinatorSaid(stuck.round, word))  # the other hears it from the first
            await agreed(few, stuck.round + 2)
            assert few[1].driver.head.last.epoch == 1
            back: Peer = await stack.enter_async_context(world.peer(2, *few, head=gone_at, tokens=900))
            await until(lambda: back.round > stuck.round, what="the one that was gone to follow")
            await until(lambda: any(report.took_part for report in back.reports), what="it to take part again")
            await agreed([*few, back], back.round)

    run(main())
