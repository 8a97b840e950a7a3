"""Averages over the network: giving one to a member that asks for it, and fetching one from several at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from peer.net import frames
from peer.net.node import Node
from peer.sync.averages import Average
from peer.training.codecs.codec import CHUNK_VALUES, average_codec, chunk_sizes
from protocol import swarm_pb2
from protocol.errors import FormatError, NetworkError

CHUNK_TIMEOUT_S = 20.0
_SEND_TIMEOUT_S = 30.0
_MOST_SOURCES = 4
_OVERHEAD_BYTES = 1024


async def serve_average(
    average: Average | None, request: swarm_pb2.AverageRequest, writer: asyncio.StreamWriter
) -> None:
    """Answer a member's request; `average` is the one it named, or None when it is not here."""
    if average is None:
        await frames.send(writer, swarm_pb2.Part(error="this member does not have that average"), timeout_s=5)
        return
    for chunk in range(request.first_chunk, min(request.first_chunk + request.chunks, len(average.chunks))):
        part = swarm_pb2.Part(chunk=chunk, data=average.chunks[chunk])
        await frames.send(writer, part, timeout_s=_SEND_TIMEOUT_S)


class AverageFetch:
    """Fetches averages from several members at once, each giving a part.

    Args:
        on_bytes: told how many bytes came from a member.
    """

    def __init__(
        self, node: Node, stream_name: str, certificate: Callable[[], str], on_bytes: Callable[[str, int], None]
    ) -> None:
        self._node, self._stream_name, self._certificate = node, stream_name, certificate
        self._on_bytes = on_bytes

    async def run(self, state: str, codec_name: str, values: int, sources: list[str]) -> Average:
        """The average that led to `state`, not checked by anything yet.

        Raises:
            NetworkError: one of the sources did not give its part.
            FormatError: a part is larger than any average.
        """
        sizes = chunk_sizes(values, CHUNK_VALUES)
        asked = sources[: min(_MOST_SOURCES, len(sizes))]
        if not asked:
            raise NetworkError("no member that has the average")
        bounds = [len(sizes) * index // len(asked) for index in range(len(asked) + 1)]
        most = average_codec(codec_name).encoded_bytes(max(sizes)) + _OVERHEAD_BYTES
        tasks = [
            asyncio.create_task(self._fetch(source, state, range(bounds[i], bounds[i + 1]), most))
            for i, source in enumerate(asked)
        ]
        try:
            found = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return Average(codec_name, values, tuple(chunk for part in found for chunk in part))

    async def _fetch(self, source: str, state: str, chunks: range, most: int) -> list[bytes]:
        request = swarm_pb2.AverageRequest(
            certificate=self._certificate(), state=state, first_chunk=chunks.start, chunks=len(chunks)
        )
        found = []
        async with self._node.stream(source, self._stream_name) as (reader, writer):
            await frames.send(writer, request, timeout_s=5)
            for chunk in chunks:
                part = await frames.receive(
                    reader,
                    swarm_pb2.Part,
                    timeout_s=CHUNK_TIMEOUT_S,
                    max_bytes=most,
                    on_bytes=lambda size: self._on_bytes(source, size),
                )
                if part.error:
                    raise NetworkError(part.error[:200])
                if part.chunk != chunk:
                    raise FormatError(f"sent chunk {part.chunk} of an average, expected {chunk}")
                found.append(part.data)
        return found
