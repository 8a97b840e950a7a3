"""State by digest: serving it to other members, and fetching it from several of them, each chunk checked as it comes.

Nothing is loaded that does not match a digest that a majority signed. Only chunks that differ from what is here are
fetched. A member that no longer has a state says so, and the fetcher asks the next one; chunks already checked are
kept, also when the fetch fails and is tried again later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterable

from peer.net import frames
from peer.net.node import Node, short
from peer.training.state import SharedState, StateAssembler
from protocol import swarm_pb2
from protocol.errors import FormatError, NetworkError, RefusedError, VerificationError
from protocol.state import STATE_CHUNK_BYTES, StateManifest, chunk_count

logger = logging.getLogger(__name__)

CHUNK_TIMEOUT_S = 20.0
_SEND_TIMEOUT_S = 30.0
_MAX_CHUNK_MESSAGE = STATE_CHUNK_BYTES + 1024
_LEAVES_PER_MESSAGE = 16384
_MAX_SOURCES = 8
_CHUNKS_PER_REQUEST = 16
PIECE_BYTES = _CHUNKS_PER_REQUEST * STATE_CHUNK_BYTES  # what is asked for at once


async def serve_state(state: SharedState | None, request: swarm_pb2.StateRequest, writer: asyncio.StreamWriter) -> None:
    """Answer a member's request; `state` is the one it named, or None when this member does not have it."""
    if state is None:
        await frames.send(writer, swarm_pb2.StateChunk(error="this member does not have that state"), timeout_s=5)
        return
    if request.leaves:
        leaves = state.leaf_hashes()
        for start in range(0, len(leaves), _LEAVES_PER_MESSAGE):
            data = b"".join(leaves[start : start + _LEAVES_PER_MESSAGE])
            await frames.send(writer, swarm_pb2.StateChunk(chunk=start, data=data), timeout_s=_SEND_TIMEOUT_S)
        return
    for chunk in range(request.first_chunk, min(request.first_chunk + request.chunks, state.chunk_count)):
        message = swarm_pb2.StateChunk(chunk=chunk, data=state.chunk(chunk))
        await frames.send(writer, message, timeout_s=_SEND_TIMEOUT_S)


async def holds(node: Node, stream_name: str, certificate: Callable[[], str], peer: str, state: SharedState) -> bool:
    """Whether a member has a state that is here, too: it gives a chunk of it, drawn at random."""
    chunk = random.randrange(state.chunk_count)
    request = swarm_pb2.StateRequest(certificate=certificate(), state=state.digest, first_chunk=chunk, chunks=1)
    with contextlib.suppress(NetworkError, FormatError):
        async with node.stream(peer, stream_name) as (reader, writer):
            await frames.send(writer, request, timeout_s=5)
            given = await frames.receive(
                reader, swarm_pb2.StateChunk, timeout_s=CHUNK_TIMEOUT_S, max_bytes=_MAX_CHUNK_MESSAGE
            )
            return bool(not given.error and given.chunk == chunk and given.data == state.chunk(chunk))
    return False


class StateFetch:
    """Fetches one state from several members in parallel; `run` may be tried again."""

    def __init__(self, node: Node, stream_name: str, certificate: Callable[[], str], manifest: StateManifest) -> None:
        self._node, self._stream_name, self._certificate, self.manifest = node, stream_name, certificate, manifest
        self._assembler: StateAssembler | None = None
        self.fetched_bytes = 0

    async def run(self, sources: list[str], held: Iterable[SharedState] = ()) -> SharedState:
        """Fetch and check the whole state.

        Args:
            sources: peer ids that say they have it.
            held: states that are here; chunks that are the same are not fetched.

        Raises:
            NetworkError: none of them could give all of it.
        """
        if self._assembler is None:
            self._assembler = await self._start(sources)
            await asyncio.get_running_loop().run_in_executor(None, self._take_held, self._assembler, held)
        assembler = self._assembler
        left = list(sources)
        while assembler.missing and left:  # each time round, whoever failed is left out
            missing, asked = assembler.missing, left[:_MAX_SOURCES]
            queue = _runs(missing)
            gave = await asyncio.gather(*(self._worker(source, assembler, queue) for source in asked))
            left = [source for source, good in zip(asked, gave, strict=True) if good] + left[_MAX_SOURCES:]
        if assembler.missing:
            raise NetworkError(
                f"{len(assembler.missing)} of {assembler.chunk_count} chunks of the state could not be fetched"
            )
        return await asyncio.get_running_loop().run_in_executor(None, assembler.state)

    def _take_held(self, assembler: StateAssembler, held: Iterable[SharedState]) -> None:
        for state in held:
            if state.names_shapes == self.manifest.tensors and len(state.outer) == self.manifest.outer_vectors:
                assembler.take(state)

    async def _start(self, sources: list[str]) -> StateAssembler:
        for source in sources:
            with contextlib.suppress(NetworkError, FormatError, VerificationError):
                return StateAssembler(self.manifest, await self._leaves(source))
        raise NetworkError("no member could describe the state", "trying again with others")

    async def _leaves(self, source: str) -> list[bytes]:
        expected = chunk_count(self.manifest.parameter_bytes) + chunk_count(self.manifest.outer_bytes)
        request = swarm_pb2.StateRequest(certificate=self._certificate(), state=self.manifest.digest, leaves=True)
        leaves: list[bytes] = []
        async with self._node.stream(source, self._stream_name) as (reader, writer):
            await frames.send(writer, request, timeout_s=5)
            while len(leaves) < expected:
                message = await self._next(reader)
                if len(message.data) % 32 or not message.data or len(leaves) + len(message.data) // 32 > expected:
                    raise FormatError("leaf hashes are 32 bytes each, one a chunk")
                leaves += [message.data[i : i + 32] for i in range(0, len(message.data), 32)]
        return leaves

    async def _worker(self, source: str, assembler: StateAssembler, queue: list[list[int]]) -> bool:
        """Fetch runs of chunks from one member until none are left, or it fails; whether it gave all it was asked."""
        while queue:
            wanted = queue.pop(0)
            try:
                await self._fetch_run(source, assembler, wanted)
            except (NetworkError, FormatError, RefusedError) as error:
                logger.debug("%s could not give chunks %d to %d: %s", short(source), wanted[0], wanted[-1], error)
                queue.append(wanted)
                return False
        return True

    async def _fetch_run(self, source: str, assembler: StateAssembler, wanted: list[int]) -> None:
        request = swarm_pb2.StateRequest(
            certificate=self._certificate(), state=self.manifest.digest, first_chunk=wanted[0], chunks=len(wanted)
        )
        async with self._node.stream(source, self._stream_name) as (reader, writer):
            await frames.send(writer, request, timeout_s=5)
            for chunk in wanted:
                message = await self._next(reader)
                if message.chunk != chunk:
                    raise FormatError(f"sent state chunk {message.chunk}, expected {chunk}")
                assembler.put(chunk, message.data)
                self.fetched_bytes += len(message.data)

    async def _next(self, reader: asyncio.StreamReader) -> swarm_pb2.StateChunk:
        message = await frames.receive(
            reader, swarm_pb2.StateChunk, timeout_s=CHUNK_TIMEOUT_S, max_bytes=_MAX_CHUNK_MESSAGE
        )
        if message.error:
            raise NetworkError(message.error[:200])
        return message


def _runs(missing: list[int]) -> list[list[int]]:
    """Sorted chunk numbers as runs of neighbours, each short enough for one request."""
    runs: list[list[int]] = []
    for chunk in missing:
        if runs and chunk == runs[-1][-1] + 1 and len(runs[-1]) < _CHUNKS_PER_REQUEST:
            runs[-1].append(chunk)
        else:
            runs.append([chunk])
    return runs
