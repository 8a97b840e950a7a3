"""Bad members of an all-reduce: each fails it for all, and is named where it can be seen who it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from peer.net import frames
from peer.net.allreduce import MOST_AHEAD
from peer.training.codecs.codec import CHUNK_VALUES, EncodedUpdate, chunk_sizes
from protocol import swarm_pb2
from tests.reduce_kit import LIMITS, SILENT, all_failed, attempt, meanwhile
from tests.swarm_kit import run, until, with_chunk

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


# ---- bad senders -----------------------------------------------------------------------------------------------------


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
        # the first member reduces chunk 0
        async with attempt(tmp_path, spoilt=lambda update: with_chunk(update, 0, make(update.chunks[0]))) as made:
            await made.serve()
            assert all_failed(await made.run())
            assert made.parties[0].reduction.culprit == made.parties[2].me

    run(main())


def test_claimed_values_that_are_not_finite_fail_the_attempt_and_name_their_sender(tmp_path: Path) -> None:
    """The claim's Merkle root is over NaN itself: the proof holds, the values do not."""

    def poisoned(update: EncodedUpdate) -> EncodedUpdate:
        return replace(update, chunks=(b"\x00\x00\xc0\x7f" + update.chunks[0][4:], *update.chunks[1:]))

    async def main() -> None:
        async with attempt(tmp_path, claimed=poisoned) as made:
            await made.serve()
            assert all_failed(await made.run())
            assert made.parties[0].reduction.culprit == made.parties[2].me

    run(main())


@pytest.mark.parametrize("bad", ["another order", "a proof of hostile length", "it stops half way"])
def test_a_sender_that_does_not_send_what_it_owes_fails_the_attempt_for_all_and_is_named(
    tmp_path: Path, bad: str
) -> None:
    async def main() -> None:
        patience = SILENT if bad == "it stops half way" else LIMITS
        async with attempt(tmp_path, sync={"values": 400_000}, shares=(1, 0, 0), patience=patience) as made:
            await made.serve(made.parties[:1])
            reducer, _, liar = made.parties
            chunks = range(len(liar.update.chunks))
            parts = {
                "another order": [liar.part(chunk) for chunk in reversed(chunks)],
                "a proof of hostile length": [liar.part(0, data=b"x", proof=[b"\0" * 32] * 1500)],
                "it stops half way": [liar.part(chunk) for chunk in chunks[:3]],
            }[bad]
            async with meanwhile(liar.sends(reducer, *parts)):
                assert all_failed(await made.run(made.parties[:2]))
            assert reducer.reduction.culprit == liar.me

    run(main())


def test_a_sender_that_is_silent_fails_the_attempt_for_all_and_is_named(tmp_path: Path) -> None:
    async def main() -> None:
        async with attempt(tmp_path, patience=SILENT) as made:
            await made.serve()
            present = made.parties[:2]
            assert all_failed(await made.run(present))
            silent = made.parties[2].me
            assert silent in {party.reduction.culprit for party in present}

    run(main())


def test_a_fast_sender_is_held_until_the_slowest_has_come_nearer(tmp_path: Path) -> None:
    async def main() -> None:
        values = 4 * MOST_AHEAD * CHUNK_VALUES  # a member's share of what all may be ahead would be more
        async with attempt(tmp_path, shares=(1, 0, 0), sync={"values": values, "wire": "fp16"}) as made:
            await made.serve(made.parties[:1])
            reducer, fast, slow = made.parties
            async with meanwhile(made.run([reducer, fast])) as running:
                held = reducer.reduction._held
                await until(lambda: fast.me in held or running.done(), what="the fast sender to be held")
                kept = sum(fast.me in parts for parts in reducer.reduction._parts.values())
                third = await slow.reduction.run()
                first, second = await running
            assert kept == MOST_AHEAD
            assert torch.equal(first, second) and torch.equal(first, third)

    run(main())


# ---- bad reducers ----------------------------------------------------------------------------------------------------


def test_a_reducer_that_cannot_be_reached_fails_the_attempt_and_is_named(tmp_path: Path) -> None:
    async def main() -> None:
        async with attempt(tmp_path, patience=SILENT) as made:
            gone = made.parties[2]
            await made.serve(made.parties[:2])
            assert all_failed(await made.run(made.parties[:2]))
            named = {party.reduction.culprit for party in made.parties[:2]}  # who only hears of it names nobody
            assert named <= {gone.me, ""}

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

            async def bad(first: Any, reader: Any, writer: Any, peer: str) -> None:
                await frames.send(writer, answer, timeout_s=30)
                await reader.read()

            await made.parties[2].serve(bad)
            assert all_failed(await made.run(made.parties[:2]))

    run(main())


def test_a_reducer_that_answers_each_member_differently_is_seen_in_the_bytes(tmp_path: Path) -> None:
    async def main() -> None:
        async with attempt(tmp_path) as made:
            await made.serve(made.parties[:2])
            told: list[str] = []

            async def two_faced(first: swarm_pb2.Part, reader: Any, writer: Any, peer: str) -> None:
                told.append(peer)
                size = chunk_sizes(made.world.values, CHUNK_VALUES)[first.chunk]
                values = torch.full((size,), float(len(told)))
                await frames.send(
                    writer, swarm_pb2.Part(chunk=first.chunk, data=values.numpy().tobytes()), timeout_s=30
                )

            await made.parties[2].serve(two_faced)
            async with meanwhile(made.parties[2].reduction.run()):
                one, other = await made.run(made.parties[:2])
            assert one.numpy().tobytes() != other.numpy().tobytes()

    run(main())
