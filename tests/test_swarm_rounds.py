"""Rounds of whole drivers: they commit, or abort and keep the work.

Two of these run over p2pd, the others over a network in memory.

What the rules decide when somebody vanishes, lies or gets another state is in `test_round_*`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from peer.net.box_bytes import from_bytes
from peer.net.opening import Opening
from peer.round.events import CoordinatorSaid
from peer.round.state import Timing
from peer.sync.shelf import Head
from peer.training.codecs.codec import EncodedUpdate
from protocol import swarm_pb2
from protocol.agreement import Agreement
from protocol.errors import NetworkError
from tests.swarm_kit import World, agreed, run, until

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SMALL = 1000  # values; one chunk


def small(tmp_path: Path, **options: Any) -> World:
    return World(tmp_path, **({"values": SMALL} | options))


# ---- over p2pd -------------------------------------------------------------------------------------------------------


def test_rounds_commit_with_one_state_for_all_and_every_claim_in_them(tmp_path: Path) -> None:
    world = World(tmp_path, p2pd=True, min_peers=3, wire="int8")

    async def main() -> None:
        async with world.peers(3) as peers:
            for number in (1, 2, 3):
                await agreed(peers, number)
            agreement = next(head.agreement for head in peers[0].heads if head.round == 1)
            assert agreement is not None
            assert set(agreement.by_peer) == {peer.me for peer in peers}
            again = Agreement.from_bytes(agreement.to_bytes(), run=world.card.run, membership_key=world.card.member_key)
            assert again.state == peers[0].state(1)
            updates = [EncodedUpdate.encode(world.update(index), "int8").decode() for index in range(3)]
            mean = torch.stack(updates).double().mean(0)
            wanted = world.genesis.parameters.double() - mean
            got = next(head.state.parameters for head in peers[0].heads if head.round == 1)
            assert (got.double() - wanted).abs().max().item() < 0.05

    run(main())


def test_a_member_that_is_killed_in_mid_round_does_not_stop_the_others(tmp_path: Path) -> None:
    world = World(tmp_path, p2pd=True, round_tokens=None, round_seconds=0.7, min_peers=2)

    async def main() -> None:
        async with world.peers(3) as peers:
            victim = peers[2]

            def all_average() -> bool:
                reduction = victim.driver.reducing.reduction
                weights = victim.driver.head.weights
                return len(weights) == 3 and reduction is not None and len(reduction.group.members) == 3

            await until(all_average, what="a group of all three, after another one")
            await victim.vanish()
            at = peers[0].round
            await agreed(peers[:2], at + 2)

    run(main())


# ---- in memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wire", "kind"),
    [("int8", "mean"), ("topk", "mean"), ("int8", "trimmed"), ("topk", "centered"), ("int2", "trimmed")],
)
def test_a_member_whose_update_is_a_thousand_times_too_long_moves_the_state_by_twice_the_others_length(
    tmp_path: Path, wire: str, kind: str
) -> None:
    """By the run's `sync.clip` and `sync.aggregate`, in whichever member reduces its chunks."""

    class Loud(World):
        def update(self, index: int, round: int = 1) -> torch.Tensor:
            return super().update(index, round) * (-1000.0 if index == 0 else 1.0)

    world = Loud(tmp_path, min_peers=3, wire=wire, clip=2.0, aggregate=kind)

    async def main() -> None:
        async with world.peers(3) as peers:
            await agreed(peers, 1)
            head = next(head for head in peers[1].heads if head.round == 1)
            by = (head.state.parameters - world.genesis.parameters).norm().item()
            assert 0 < by < 2 * world.update(1).norm().item()

    run(main())


def test_a_late_joiner_fetches_the_state_and_takes_part(tmp_path: Path) -> None:
    world = small(tmp_path, round_tokens=800)

    async def main() -> None:
        async with world.peers(2, work_s=0.5) as peers:
            await agreed(peers, 2)
            async with world.peer(2, *peers, work_s=0.5) as late:
                await until(lambda: any(report.took_part for report in late.reports), what="the late one to take part")
                first = next(report.round for report in late.reports if report.took_part)
                assert late.heads[0].round >= 2
                await agreed([*peers, late], first)

    run(main())


def test_a_member_that_sends_no_parts_is_left_out_and_no_work_is_lost(tmp_path: Path) -> None:
    world = World(tmp_path, round_tokens=None, round_seconds=0.5, min_peers=2)

    async def main() -> None:
        async with world.peers(3) as peers:
            *others, mute = peers
            await until(lambda: len(mute.driver.head.weights) == 3, what="a round of all three")
            assert world.network is not None
            world.network.nowhere.add((mute.me, "reduce"))
            start = max(peer.round for peer in peers)
            await agreed(others, start + 3)
            for peer in others:
                assert len(peer.handed_over) == len(set(peer.handed_over)), "work was done twice for one base"
            reasons = [
                why for peer in others for report in peer.reports for who, why in report.left_out if who == mute.me
            ]
            assert any("no data" in why for why in reasons), reasons

    run(main())


def test_a_state_whose_votes_were_lost_is_completed_by_the_next_attempt(tmp_path: Path) -> None:
    """With the claims, the votes and the promises that its leader has to show, over the wire."""
    world = small(tmp_path, round_tokens=None, round_seconds=0.5, min_peers=3)
    timing = Timing(majority_s=1.0)

    async def main() -> None:
        async with world.peers(3, timing=timing) as peers:
            await agreed(peers, 1)
            assert world.network is not None
            world.network.closed |= {(peer.me, "vote") for peer in peers}

            def all_voted() -> set[str]:
                """The states, where all have voted and nobody has gone on."""
                boxes = [(peer.driver.state.box, peer.round + 1) for peer in peers]
                voted = [box.ballots[0].state for box, round in boxes if box.voted(round)]
                return set(voted) if len(voted) == len(peers) else set()

            states = await until(all_voted, what="votes to be lost")
            at = peers[0].round + 1
            await until(lambda: all(any("no majority" in why for why in peer.aborted) for peer in peers))
            world.network.closed.clear()
            assert {await agreed(peers, at)} == states
            assert any(report.attempts > 1 for peer in peers for report in peer.reports if report.round == at)

    run(main())


def test_what_a_member_promised_and_voted_is_in_its_box_after_a_restart(tmp_path: Path) -> None:
    world = small(tmp_path, round_tokens=800)
    opening = Opening(world.card.run, world.card.member_key)

    async def main() -> None:
        async with world.peers(2) as peers:
            await agreed(peers, 2)
            boxes = [from_bytes(data, opening) for data in peers[0].saved]
        voted = next(box for box in boxes if box.ballots and box.round == 2)
        assert voted.group is not None and voted.group.digest == voted.ballots[0].group and not voted.is_forgotten
        head = next(head for head in peers[0].heads if head.round == 1)
        async with world.peer(0, head=Head(head.state, head.agreement), box=voted, train=False) as again:
            vote = again.driver.state.votes[again.me].value
            assert (vote.round, vote.state) == (2, peers[0].state(2))

    run(main())


@pytest.mark.parametrize("where", ["promise", "commit"])
def test_a_disk_that_is_full_for_a_while_does_not_stop_a_member(tmp_path: Path, where: str) -> None:
    world = small(tmp_path, round_tokens=100)
    failures = [OSError("no space left on device")] * 3

    def full(data: object) -> None:
        if failures:
            raise failures.pop()

    async def main() -> None:
        options: dict[str, Any] = {"saves": full} if where == "promise" else {"keeps": full}
        async with world.peer(0, **options) as peer:
            await until(lambda: not failures and peer.round >= 5, what="rounds after the failures")
            assert sum("no space left" in why for why in peer.aborted) == 3

    run(main())


def test_a_part_from_outside_the_group_is_not_answered(tmp_path: Path) -> None:
    world = World(tmp_path, round_tokens=800)

    async def main() -> None:
        async with world.peers(2) as peers, world.node(7, *(peer.node for peer in peers)) as outsider:
            assert world.network is not None
            world.network.nowhere |= {(peer.me, "reduce") for peer in peers}
            group = (await until(lambda: peers[0].driver.reducing.reduction, what="a group")).group
            part = swarm_pb2.Part(group=group.digest, attempt=group.attempt, certificate=world.certificate(7))
            with pytest.raises(NetworkError):
                await outsider.call(peers[0].me, f"potluck/{world.card.run}/reduce", part, swarm_pb2.Part, timeout_s=60)

    run(main())


def test_a_member_whom_the_coordinator_has_not_named_waits_for_the_word(tmp_path: Path) -> None:
    world = small(tmp_path, round_tokens=100)
    word, world.named = world.named, None  # type: ignore[assignment]

    async def main() -> None:
        async with world.peer(0) as peer:
            await until(lambda: peer.waiting_for == "wants-a-beginner")
            await asyncio.sleep(0.2)
            assert peer.round == 0
            peer.driver.post(CoordinatorSaid(0, word))
            await agreed([peer], 1)

    run(main())
