"""State by digest over streams in memory: some sources vanish, some lie; nothing unchecked is loaded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from peer.net import exchange, frames
from peer.net.exchange import StateFetch, serve_state
from peer.net.node import Node
from peer.training.state import SharedState
from protocol import swarm_pb2
from protocol.errors import NetworkError, VerificationError
from protocol.state import STATE_CHUNK_BYTES
from tests.swarm_kit import World, run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

NAME = "state"
VALUES = 5 * STATE_CHUNK_BYTES // 4 + 77  # six chunks of parameters


def big_state(outer: int = 1) -> SharedState:
    values = torch.linspace(-3, 3, VALUES)
    return SharedState(4, (("w", (VALUES,)),), values, tuple(values * (i + 2) for i in range(outer)), 9)


Spoil = Callable[[swarm_pb2.StateRequest, swarm_pb2.StateChunk], swarm_pb2.StateChunk | None]


class _Spoilt:
    """A writer's stand-in that changes each message before it is sent; None ends the stream."""

    def __init__(self, request: swarm_pb2.StateRequest, writer: asyncio.StreamWriter, spoil: Spoil) -> None:
        self._request, self._writer, self._spoil = request, writer, spoil
        self.transport = writer.transport
        self._written = b""

    def write(self, data: bytes) -> None:
        self._written += data
        if len(self._written) < 4 + int.from_bytes(self._written[:4], "big"):
            return
        message, self._written = self._written[4:], b""
        changed = self._spoil(self._request, swarm_pb2.StateChunk.FromString(message))
        if changed is None:
            raise OSError("gone")
        encoded = changed.SerializeToString()
        self._writer.write(len(encoded).to_bytes(4, "big") + encoded)

    async def drain(self) -> None:
        await self._writer.drain()


async def serve(
    node: Node, state: SharedState | None, spoil: Spoil | None = None, name: str = NAME
) -> list[swarm_pb2.StateRequest]:
    asked: list[swarm_pb2.StateRequest] = []

    async def handle(peer: str, reader: Any, writer: Any) -> None:
        request = await frames.receive(reader, swarm_pb2.StateRequest, timeout_s=30)
        asked.append(request)
        await serve_state(state, request, _Spoilt(request, writer, spoil) if spoil else writer)  # type: ignore[arg-type]

    await node.serve(name, handle)
    return asked


@contextlib.asynccontextmanager
async def sources(tmp_path: Path, count: int) -> AsyncIterator[tuple[Node, list[Node]]]:
    async with World(tmp_path).nodes(count + 1) as (fetcher, *others):
        yield fetcher, others


def fetch(node: Node, state: SharedState, name: str = NAME) -> StateFetch:
    return StateFetch(node, name, lambda: "certificate", state.manifest())


def wrong_data(request: swarm_pb2.StateRequest, chunk: swarm_pb2.StateChunk) -> swarm_pb2.StateChunk:
    if not request.leaves:
        chunk.data = bytes(len(chunk.data))
    return chunk


def wrong_leaves(request: swarm_pb2.StateRequest, chunk: swarm_pb2.StateChunk) -> swarm_pb2.StateChunk:
    if request.leaves:
        chunk.data = bytes(len(chunk.data))
    return chunk


def too_many_leaves(request: swarm_pb2.StateRequest, chunk: swarm_pb2.StateChunk) -> swarm_pb2.StateChunk:
    if request.leaves:
        chunk.data = chunk.data * 1000
    return chunk


def odd_leaves(request: swarm_pb2.StateRequest, chunk: swarm_pb2.StateChunk) -> swarm_pb2.StateChunk:
    if request.leaves:
        chunk.data = chunk.data[:-1]
    return chunk


def short_chunks(request: swarm_pb2.StateRequest, chunk: swarm_pb2.StateChunk) -> swarm_pb2.StateChunk:
    if not request.leaves:
        chunk.data = chunk.data[:-4]
    return chunk


def other_numbers(request: swarm_pb2.StateRequest, chunk: swarm_pb2.StateChunk) -> swarm_pb2.StateChunk:
    if not request.leaves:
        chunk.chunk += 1
    return chunk


def nan_chunks(request: swarm_pb2.StateRequest, chunk: swarm_pb2.StateChunk) -> swarm_pb2.StateChunk:
    if not request.leaves:
        chunk.data = b"\x00\x00\xc0\x7f" * (len(chunk.data) // 4)
    return chunk


def vanishes(request: swarm_pb2.StateRequest, chunk: swarm_pb2.StateChunk) -> swarm_pb2.StateChunk | None:
    return chunk if request.leaves or chunk.chunk % 2 == 0 else None


def has_it_no_more(request: swarm_pb2.StateRequest, chunk: swarm_pb2.StateChunk) -> swarm_pb2.StateChunk:
    return chunk if request.leaves else swarm_pb2.StateChunk(error="gone since")


def test_a_state_comes_as_it_is_from_several_members(tmp_path: Path) -> None:
    async def main() -> None:
        async with sources(tmp_path, 3) as (fetcher, others):
            for outer in (0, 1, 2):
                state, name = big_state(outer), f"outer-{outer}"
                asked = [await serve(node, state, name=name) for node in others]
                got = await fetch(fetcher, state, name).run([node.peer_id for node in others])
                assert got.digest == state.digest and torch.equal(got.parameters, state.parameters)
                assert len(got.outer) == outer and sum(len(requests) for requests in asked) >= 2

    run(main())


SPOILS = (
    wrong_data,
    wrong_leaves,
    too_many_leaves,
    odd_leaves,
    short_chunks,
    other_numbers,
    nan_chunks,
    vanishes,
    has_it_no_more,
)


def test_what_one_source_spoils_is_fetched_from_another(tmp_path: Path) -> None:
    state = big_state()

    async def main() -> None:
        async with sources(tmp_path, 2) as (fetcher, (bad, good)):
            for spoil in SPOILS:
                name = spoil.__name__
                spoilt = await serve(bad, state, spoil, name)
                await serve(good, state, name=name)
                got = await fetch(fetcher, state, name).run([bad.peer_id, good.peer_id])
                assert got.digest == state.digest, name
                assert spoilt, f"{name}: the bad source was never asked"

    run(main())


def test_from_bad_sources_alone_nothing_is_loaded(tmp_path: Path) -> None:
    state = big_state()

    async def main() -> None:
        async with sources(tmp_path, 2) as (fetcher, others):
            for spoil in (wrong_data, wrong_leaves, nan_chunks, vanishes):
                name = spoil.__name__
                for node in others:
                    await serve(node, state, spoil, name)
                with pytest.raises(NetworkError):
                    await fetch(fetcher, state, name).run([node.peer_id for node in others])
                    pytest.fail(f"{name}: it was loaded")

    run(main())


def test_a_member_that_is_gone_or_does_not_have_the_state_is_passed_over(tmp_path: Path) -> None:
    state = big_state()

    async def main() -> None:
        async with sources(tmp_path, 3) as (fetcher, (without, silent, good)):
            await serve(without, None)
            await serve(good, state)
            nobody = World(tmp_path).identity(9).peer_id
            order = [nobody, without.peer_id, silent.peer_id, good.peer_id]
            assert (await fetch(fetcher, state).run(order)).digest == state.digest
            with pytest.raises(NetworkError, match="no member could describe"):
                await fetch(fetcher, state).run(order[:3])
            with pytest.raises(NetworkError):
                await fetch(fetcher, state).run([])

    run(main())


def test_a_source_that_falls_silent_is_given_up_after_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "CHUNK_TIMEOUT_S", 1.0)
    state = big_state()

    async def main() -> None:
        async with sources(tmp_path, 2) as (fetcher, (silent, good)):

            async def hold(peer: str, reader: Any, writer: Any) -> None:
                await reader.read()

            await silent.serve(NAME, hold)
            await serve(good, state)
            got = await fetch(fetcher, state).run([silent.peer_id, good.peer_id])
            assert got.digest == state.digest

    run(main())


def test_only_the_chunks_that_differ_from_what_is_here_are_fetched(tmp_path: Path) -> None:
    state = big_state()
    values = state.parameters.clone()
    values[0], values[-1] = 5.0, 6.0  # in the first chunk and in the last one
    here = SharedState(4, state.names_shapes, values, state.outer, 9)

    async def main() -> None:
        async with sources(tmp_path, 1) as (fetcher, (source,)):
            await serve(source, state)
            repair = fetch(fetcher, state)
            assert (await repair.run([source.peer_id], [here])).digest == state.digest
            differing = {0, -(-4 * VALUES // STATE_CHUNK_BYTES) - 1}
            assert repair.fetched_bytes == sum(len(state.chunk(index)) for index in differing)

    run(main())


def test_a_fetch_that_failed_goes_on_with_what_it_has(tmp_path: Path) -> None:
    state = big_state()
    size = sum(len(state.chunk(index)) for index in range(state.chunk_count))

    async def main() -> None:
        async with sources(tmp_path, 2) as (fetcher, (short, good)):
            await serve(short, state, vanishes)
            asked = await serve(good, state)
            broken = fetch(fetcher, state)
            with pytest.raises(NetworkError, match="could not be fetched"):
                await broken.run([short.peer_id])
            assert 0 < broken.fetched_bytes < size
            assert (await broken.run([good.peer_id])).digest == state.digest
            assert broken.fetched_bytes == size, "nothing was fetched twice"
            assert not any(request.leaves for request in asked)

    run(main())


def test_hostile_chunk_numbers_are_answered_with_what_there_is(tmp_path: Path) -> None:
    state = big_state(0)

    async def main() -> None:
        async with sources(tmp_path, 1) as (fetcher, (source,)):
            await serve(source, state)
            for first, chunks in ((0, 2**32 - 1), (2**32 - 1, 1), (5, 0), (10**6, 10**6)):
                request = swarm_pb2.StateRequest(state=state.digest, first_chunk=first, chunks=chunks)
                got = []
                async with fetcher.stream(source.peer_id, NAME) as (reader, writer):
                    await frames.send(writer, request, timeout_s=60)
                    with pytest.raises(NetworkError, match="closed the stream"):
                        while True:
                            got.append((await frames.receive(reader, swarm_pb2.StateChunk, timeout_s=60)).chunk)
                assert got == list(range(first, min(first + chunks, state.chunk_count))), (first, chunks)

    run(main())


def test_a_manifest_of_another_model_or_another_state_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path, values=100)

    async def main() -> None:
        async with world.peer(0, train=False) as peer:
            heads = peer.driver.heads

            def check(data: bytes, digest: str) -> Any:
                return heads.note_manifest(data, digest, world.genesis.round)

            own = world.genesis.manifest()
            assert check(own.to_bytes(), own.digest) == own
            other_shape = own.model_copy(update={"tensors": (("w", (10, 10)),)})
            huge = own.model_copy(update={"tensors": (("w", (2**40, 2**20)),)})
            with pytest.raises(VerificationError, match="expected the manifest"):
                check(own.to_bytes(), "0" * 64)
            for manifest in (other_shape, huge):
                with pytest.raises(VerificationError, match="this run's model"):
                    check(manifest.to_bytes(), manifest.digest)

    run(main())
