"""The all-reduce over streams in memory: exact, the same bytes for all, and no stranger's or second stream counts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from peer.net.pace import Patience
from tests.reduce_kit import Attempt, all_failed, attempt, meanwhile
from tests.swarm_kit import run, until

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def reference(made: Attempt) -> torch.Tensor:
    """The weighted mean of the decoded updates, in float64.

    Of sparse ones it is over those who sent a value, if more than one did.
    """
    weights = [made.group.weights[party.me] for party in made.parties]
    parts = [update.decode().double() * weight for update, weight in zip(made.updates, weights, strict=True)]
    total = torch.full_like(parts[0], sum(weights))
    if made.world.spec.sync.wire == "topk":
        shares = [(part != 0) * weight for part, weight in zip(parts, weights, strict=True)]
        several = torch.stack(parts).count_nonzero(0) > 1
        total = torch.where(several, torch.stack(shares).sum(0), total)
    return torch.stack(parts).sum(0) / total


# ---- when all is well ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wire", "error"), [("fp32", 1e-6), ("fp16", 2e-3), ("int8", 0.03), ("int4", 0.25), ("topk", 0.25)]
)
def test_the_average_is_the_weighted_mean_and_the_same_bytes_for_all(tmp_path: Path, wire: str, error: float) -> None:
    async def main() -> None:
        async with attempt(tmp_path, sync={"wire": wire}) as made:
            await made.serve()
            outcomes = await made.run()
            first = outcomes[0]
            assert isinstance(first, torch.Tensor)
            assert {outcome.numpy().tobytes() for outcome in outcomes} == {first.numpy().tobytes()}
            assert (first.double() - reference(made)).abs().max().item() < error

    run(main())


def test_members_that_cannot_be_reached_take_part_all_the_same(tmp_path: Path) -> None:
    async def main() -> None:
        async with attempt(tmp_path, shares=(1, 0, 0)) as made:
            await made.serve(made.parties[:1])  # nobody else serves anything
            outcomes = await made.run()
            assert len({outcome.numpy().tobytes() for outcome in outcomes}) == 1

    run(main())


@pytest.mark.parametrize("shares", [(2, 1, 0), (1, 7, 2)])
def test_how_the_reducing_is_shared_changes_nothing_in_the_result(tmp_path: Path, shares: tuple[int, ...]) -> None:
    async def main() -> None:
        async with attempt(tmp_path, sync={"wire": "int8"}, shares=shares) as made:
            await made.serve()
            outcomes = await made.run()
            assert len({outcome.numpy().tobytes() for outcome in outcomes}) == 1
            assert (outcomes[0].double() - reference(made)).abs().max().item() < 0.03
            chunks = made.group.ranges(3)
            assert sorted(chunk for part in chunks.values() for chunk in part) == [0, 1, 2]
            assert (shares == (2, 1, 0)) == (made.parties[2].me not in chunks)

    run(main())


def test_a_group_of_one_averages_with_itself(tmp_path: Path) -> None:
    async def main() -> None:
        async with attempt(tmp_path, count=1) as made:
            (outcome,) = await made.run()
            assert torch.equal(outcome, made.updates[0].decode())

    run(main())


def test_more_members_than_chunks_leave_some_with_nothing_to_reduce(tmp_path: Path) -> None:
    async def main() -> None:
        async with attempt(tmp_path, count=4, sync={"values": 70_000}) as made:
            await made.serve()
            outcomes = await made.run()
            assert len({outcome.numpy().tobytes() for outcome in outcomes}) == 1

    run(main())


# ---- strangers and streams -------------------------------------------------------------------------------------------


def test_a_second_stream_of_a_member_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with attempt(tmp_path) as made:
            await made.serve()
            one, two, three = made.parties
            async with meanwhile(made.run([one, two])) as running:
                await until(lambda: "reduce" in one.stages)
                await two.sends(one, two.part(0, data=b"another"))
                first, second = await asyncio.gather(running, three.reduction.run())
            assert all(isinstance(outcome, torch.Tensor) for outcome in (*first, second))

    run(main())


def test_giving_up_tells_every_member_why(tmp_path: Path) -> None:
    async def main() -> None:
        async with attempt(tmp_path) as made:
            await made.serve()
            one, two = made.parties[:2]
            async with meanwhile(made.run([one, two])) as running:
                await until(lambda: "reduce" in one.stages and "reduce" in two.stages, what="streams")
                one.reduction.fail("the owner pulled the plug")
                outcomes = await running
            assert all_failed(outcomes)
            assert "pulled the plug" in outcomes[1].message

    run(main())


def test_the_whole_has_a_deadline_of_its_own(tmp_path: Path) -> None:
    async def main() -> None:
        async with attempt(tmp_path, sync={"values": 10_000}, patience=Patience(silence_s=60, total_s=1)) as made:
            await made.serve()
            assert all_failed(await made.run(made.parties[:2]))

    run(main())
