"""The all-reduce over real nodes: exact, the same bytes for all; and what each kind of bad member comes to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peer.swarm.members import MemberBook

from peer.net import frames
from peer.net.allreduce import MOST_AHEAD, Reduction
from peer.net.node import Node
from peer.net.pace import Limits, Pace
from peer.round.group import Group, Member
from peer.training.aggregate import aggregator
from peer.training.codecs.codec import CHUNK_VALUES, EncodedUpdate
from protocol import swarm_pb2
from protocol.errors import NetworkError, RoundAborted
from tests.swarm_kit import World, run, until, with_chunk

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

NAME = "reduce"
LIMITS = Limits(silence_s=600.0, total_s=600.0)  # beyond a test's deadline: only what it is about ends an attempt
SILENT = Limits(silence_s=4.0, total_s=600.0)  # for those who wait for one; a busy machine is silent for a second


@dataclass
class Party:
    """One member's side of an all-reduce."""

    node: Node
    reduction: Reduction

    @property
    def me(self) -> str:
        return self.node.peer_id


class Attempt:
    """One group and its members' reductions, over real nodes."""

    def __init__(
        self,
        world: World,
        nodes: list[Node],
        *,
        limits: Limits = LIMITS,
        reducers: int | None = None,
        shares: tuple[int, ...] = (1, 1, 1, 1, 1, 1, 1, 1),
    ) -> None:
        self.world, self.limits = world, limits
        self.book = MemberBook(world.card.run, world.card.member_key)
        count = len(nodes)
        self.updates = [EncodedUpdate.encode(world.update(index), world.spec.sync.wire) for index in range(count)]
        claims = [world.claim(index, update) for index, update in enumerate(self.updates)]
        envelopes = [made.sign(world.identity(index)) for index, made in enumerate(claims)]
        self.group = Group.build(
            world.rules(),
            0,
            nodes[0].peer_id,
            [
                Member(
                    node.peer_id,
                    world.certificate(i),
                    claims[i],
                    envelopes[i],
                    reducers is None or i < reducers,
                    shares[i] if reducers is None or i < reducers else 0,
                )
                for i, node in enumerate(nodes)
            ],
        )
        self.parties = [self._party(index, node) for index, node in enumerate(nodes)]

    def _party(self, index: int, node: Node) -> Party:
        token = self.world.certificate(index)
        how, update = aggregator(self.world.spec.sync.clip), self.updates[index]
        made = Reduction(self.group, node.peer_id, update, node, NAME, token, Pace(self.limits), self.book, how)
        return Party(node, made)

    async def serve(self, which: list[Party] | None = None) -> None:
        for party in self.parties if which is None else which:
            await party.node.serve(NAME, self._handler(party))

    def _handler(self, party: Party) -> Callable[..., Any]:
        async def handle(peer: str, reader: Any, writer: Any) -> None:
            first = await frames.receive(reader, swarm_pb2.Part, timeout_s=30)
            if peer in self.group.by_peer:
                await party.reduction.serve(peer, first, reader, writer)

        return handle

    async def run(self, which: list[Party] | None = None) -> list[Any]:
        parties = self.parties if which is None else which
        return await asyncio.gather(*(party.reduction.run() for party in parties), return_exceptions=True)


@contextlib.asynccontextmanager
async def attempt(tmp_path: Path, count: int = 3, **options: Any) -> AsyncIterator[Attempt]:
    sync = options.pop("sync", {})
    world = World(tmp_path, **sync)
    async with world.nodes(count) as nodes:
        yield Attempt(world, nodes, **options)


def all_failed(outcomes: list[Any]) -> bool:
    return all(isinstance(outcome, RoundAborted) for outcome in outcomes)


def reference(made: Attempt) -> torch.Tensor:
    """The weighted mean of the decoded updates, in float64; of sparse ones over those who sent a value, if more than one."""
    weights = [made.group.weights[party.me] for party in made.parties]
    parts = [update.decode().double() * weight for update, weight in zip(made.updates, weights, strict=True)]
    total = torch.full_like(parts[0], sum(weights))
    if made.world.spec.sync.wire == "topk":
        shares = [(part != 0) * weight for part, weight in zip(parts, weights, strict=True)]
        several = torch.stack(parts).count_nonzero(0) > 1
        total = torch.where(several, torch.stack(shares).sum(0), total)
    return torch.stack(parts).sum(0) / total


# ---- when all is well -----------------------------------------------------------------------------------------------------


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
        async with attempt(tmp_path, reducers=1) as made:
            await made.serve(made.parties[:1])  # nobody else serves anything
            outcomes = await made.run()
            assert len({outcome.numpy().tobytes() for outcome in outcomes}) == 1

    run(main())


@pytest.mark.parametrize("shares", [(2, 1, 0), (1, 0, 0), (1, 7, 2)])
def test_how_the_reducing_is_shared_changes_nothing_in_the_result(tmp_path: Path, shares: tuple[int, ...]) -> None:
    async def main() -> None:
        async with attempt(tmp_path, sync={"wire": "int8"}, shares=shares) as made:
            await made.serve()
            outcomes = await made.run()
            assert len({outcome.numpy().tobytes() for outcome in outcomes}) == 1
            assert (outcomes[0].double() - reference(made)).abs().max().item() < 0.03
            chunks = {party.me: len(party.reduction._mine) for party in made.parties}
            assert [chunks[party.me] == 0 for party in made.parties] == [share == 0 for share in shares] or shares == (
                1,
                7,
                2,
            )

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


# ---- bad senders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda chunk: bytes(len(chunk)),
        lambda chunk: b"\x00\x00\xc0\x7f" + chunk[4:],  # NaN
        lambda chunk: b"\x00\x00\x80\x7f" + chunk[4:],  # infinity
        lambda chunk: chunk[:-4],
        lambda chunk: chunk + b"\0\0\0\0",
        lambda chunk: b"",
    ],
    ids=["other values", "NaN", "infinity", "short", "long", "empty"],
)
def test_a_chunk_that_its_sender_did_not_claim_fails_the_attempt_and_names_it(
    tmp_path: Path, make: Callable[[bytes], bytes]
) -> None:
    async def main() -> None:
        async with attempt(tmp_path) as made:
            await made.serve()
            liar = made.parties[2]
            first = next(iter(made.group.ranges(3)[made.parties[0].me]))
            liar.reduction._update = with_chunk(
                liar.reduction._update, first, make(liar.reduction._update.chunks[first])
            )
            assert all_failed(await made.run())
            assert made.parties[0].reduction.culprit == liar.me

    run(main())


def test_claimed_values_that_are_not_finite_fail_the_attempt_and_name_their_sender(tmp_path: Path) -> None:
    """The claim's Merkle root is over NaN itself: the proof holds, the values do not."""

    async def main() -> None:
        async with attempt(tmp_path) as made:
            liar = made.parties[2]
            honest = made.updates[2]
            poison = b"\x00\x00\xc0\x7f" + honest.chunks[0][4:]
            update = EncodedUpdate(honest.codec, honest.values, honest.chunk_values, (poison, *honest.chunks[1:]))
            claim = made.world.claim(2, update)
            members = list(made.group.members)
            members[2] = replace(members[2], claim=claim, envelope=claim.sign(made.world.identity(2)))
            made.group = Group.build(made.world.rules(), 0, members[0].peer_id, members)
            made.updates[2] = update
            made.parties = [made._party(index, party.node) for index, party in enumerate(made.parties)]
            await made.serve()
            assert all_failed(await made.run())
            assert made.parties[0].reduction.culprit == liar.me

    run(main())


def test_chunks_in_another_order_fail_the_attempt(tmp_path: Path) -> None:
    async def main() -> None:
        async with attempt(tmp_path, count=2, sync={"values": 400_000}) as made:
            await made.serve()
            liar = made.parties[1].reduction

            async def backwards(writer: Any, chunks: range) -> None:
                for chunk in reversed(chunks):
                    part = swarm_pb2.Part(chunk=chunk, data=liar._update.chunks[chunk], proof=liar._update.proof(chunk))
                    await frames.send(writer, part, timeout_s=30)

            liar._send_chunks = backwards  # type: ignore[method-assign]
            assert all_failed(await made.run())
            assert made.parties[0].reduction.culprit == made.parties[1].me

    run(main())


def test_a_proof_of_hostile_length_fails_the_attempt(tmp_path: Path) -> None:
    async def main() -> None:
        async with attempt(tmp_path, count=2) as made:
            await made.serve()
            liar = made.parties[1].reduction

            async def endless(writer: Any, chunks: range) -> None:
                proof = [b"\0" * 32] * 10_000
                chunk = chunks[0]
                await frames.send(writer, swarm_pb2.Part(chunk=chunk, data=b"x", proof=proof), timeout_s=30)

            liar._send_chunks = endless  # type: ignore[method-assign]
            assert all_failed(await made.run())

    run(main())


def test_a_sender_that_is_silent_fails_the_attempt_for_all_and_is_named(tmp_path: Path) -> None:
    async def main() -> None:
        async with attempt(tmp_path, limits=SILENT) as made:
            await made.serve()
            present = made.parties[:2]
            assert all_failed(await made.run(present))
            silent = made.parties[2].me
            assert silent in {party.reduction.culprit for party in present}

    run(main())


def test_a_sender_that_stops_half_way_fails_the_attempt(tmp_path: Path) -> None:
    async def main() -> None:
        async with attempt(tmp_path, count=2, sync={"values": 400_000}, limits=SILENT) as made:
            await made.serve()
            lazy = made.parties[1].reduction
            sent = lazy._send_chunks

            async def half(writer: Any, chunks: range) -> None:
                await sent(writer, chunks[:1])
                await asyncio.sleep(60)

            lazy._send_chunks = half  # type: ignore[method-assign]
            outcomes = await made.run()
            assert all_failed(outcomes)
            assert made.parties[0].reduction.culprit == lazy._me

    run(main())


def test_a_fast_sender_is_held_until_the_slowest_has_come_nearer(tmp_path: Path) -> None:
    async def main() -> None:
        values = 4 * MOST_AHEAD * CHUNK_VALUES  # a member's share of what all may be ahead would be more
        async with attempt(tmp_path, reducers=1, sync={"values": values, "wire": "int4"}) as made:
            await made.serve(made.parties[:1])
            reducer, fast, slow = (party.reduction for party in made.parties)
            sent, go_on = slow._send_chunks, asyncio.Event()

            async def late(writer: Any, chunks: range) -> None:
                await go_on.wait()
                await sent(writer, chunks)

            slow._send_chunks = late  # type: ignore[method-assign]
            running = asyncio.create_task(made.run())
            await until(lambda: fast._me in reducer._held or running.done(), what="the fast sender to be held")
            kept = sum(fast._me in parts for parts in reducer._parts.values())
            go_on.set()
            first, *others = await running
            assert kept == MOST_AHEAD
            assert isinstance(first, torch.Tensor) and all(torch.equal(first, other) for other in others)

    run(main())


# ---- bad reducers ---------------------------------------------------------------------------------------------------------


def test_a_reducer_that_cannot_be_reached_fails_the_attempt_and_is_named(tmp_path: Path) -> None:
    async def main() -> None:
        async with attempt(tmp_path) as made:
            await made.serve(made.parties[:2])
            outcomes = await made.run(made.parties[:2])
            assert all_failed(outcomes)
            named = {party.reduction.culprit for party in made.parties[:2]}  # who only hears of it names nobody
            assert made.parties[2].me in named <= {made.parties[2].me, ""}

    run(main())


@pytest.mark.parametrize(
    "answer",
    [
        swarm_pb2.Part(chunk=999, data=b""),
        swarm_pb2.Part(chunk=2, data=b"short"),
        swarm_pb2.Part(chunk=2, data=b"\x00\x00\xc0\x7f" * 18_928),
        swarm_pb2.Part(error="I do not feel like it"),
    ],
    ids=["another chunk", "short", "NaN", "refusal"],
)
def test_a_reducers_bad_answer_fails_the_attempt(tmp_path: Path, answer: swarm_pb2.Part) -> None:
    async def main() -> None:
        async with attempt(tmp_path) as made:
            await made.serve(made.parties[:2])

            async def bad(peer: str, reader: Any, writer: Any) -> None:
                await frames.receive(reader, swarm_pb2.Part, timeout_s=30)
                await frames.send(writer, answer, timeout_s=30)
                await reader.read()

            await made.parties[2].node.serve(NAME, bad)
            assert all_failed(await made.run(made.parties[:2]))

    run(main())


def test_a_reducer_that_answers_each_member_differently_is_seen_in_the_bytes(tmp_path: Path) -> None:
    async def main() -> None:
        async with attempt(tmp_path) as made:
            await made.serve(made.parties[:2])
            liar = made.parties[2]
            told = []

            async def two_faced(peer: str, reader: Any, writer: Any) -> None:
                first = await frames.receive(reader, swarm_pb2.Part, timeout_s=30)
                told.append(peer)
                values = torch.full((liar.reduction._sizes[first.chunk],), float(len(told)))
                part = swarm_pb2.Part(chunk=first.chunk, data=values.numpy().tobytes())
                await frames.send(writer, part, timeout_s=30)

            await liar.node.serve(NAME, two_faced)
            results = asyncio.gather(*(party.reduction.run() for party in made.parties[:2]))
            lying = asyncio.create_task(liar.reduction.run())
            one, other = await results
            lying.cancel()
            await asyncio.gather(lying, return_exceptions=True)
            assert one.numpy().tobytes() != other.numpy().tobytes()

    run(main())


# ---- strangers and streams ------------------------------------------------------------------------------------------------


def test_a_second_stream_of_a_member_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with attempt(tmp_path) as made:
            await made.serve()
            one, two = made.parties[0], made.parties[1]
            chunk = made.group.ranges(3)[one.me][0]
            part = swarm_pb2.Part(chunk=chunk, data=made.updates[1].chunks[chunk], proof=made.updates[1].proof(chunk))
            running = asyncio.create_task(made.run())
            await until(lambda: two.me in one.reduction._served)
            async with two.node.stream(one.me, NAME) as (reader, writer):
                await frames.send(writer, part, timeout_s=30)
                with pytest.raises(NetworkError):
                    await frames.receive(reader, swarm_pb2.Part, timeout_s=30)
            outcomes = await running
            assert not any(isinstance(outcome, BaseException) for outcome in outcomes), outcomes

    run(main())


def test_giving_up_tells_every_member_why(tmp_path: Path) -> None:
    async def main() -> None:
        async with attempt(tmp_path, limits=LIMITS) as made:
            await made.serve()
            running = asyncio.gather(*(party.reduction.run() for party in made.parties[:2]), return_exceptions=True)
            one, two = made.parties[:2]
            await until(lambda: two.me in one.reduction._served and one.me in two.reduction._served, what="streams")
            one.reduction.fail("the owner pulled the plug")
            outcomes = await running
            assert all_failed(outcomes)
            assert "pulled the plug" in outcomes[1].message

    run(main())


def test_the_whole_has_a_deadline_of_its_own(tmp_path: Path) -> None:
    async def main() -> None:
        async with attempt(tmp_path, sync={"values": 10_000}, limits=Limits(silence_s=60, total_s=1)) as made:
            await made.serve()
            assert all_failed(await made.run(made.parties[:2]))

    run(main())
