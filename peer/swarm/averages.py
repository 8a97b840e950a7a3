"""A round's average, kept as it travelled: who missed a round makes the new state from it, instead of fetching that whole.

So does who starts again: most rounds are on disk as their averages (`peer.disk.kept_states`).

An int4 average is an eighth of the state's size, an int2 one of a sixth of the values a ninetieth. Nobody signs it. What
it leads to is signed: if that is another state than the agreed one, it is thrown away, and the state itself is fetched.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from peer.swarm import frames
from peer.swarm.node import Node
from peer.training.codecs.codec import CHUNK_VALUES, chunk_sizes, codec
from peer.training.outer import outer_step
from peer.training.state import SharedState
from peer.training.tensor_file import write_tensors
from protocol import swarm_pb2
from protocol.errors import FormatError, InputError, NetworkError
from protocol.run_spec import RunSpec

CHUNK_TIMEOUT_S = 20.0
_SEND_TIMEOUT_S = 30.0
_MOST_SOURCES = 4
_OVERHEAD_BYTES = 1024


@dataclass(frozen=True, eq=False)
class Average:
    """What a group averaged.

    Args:
        codec: its name.
        values: fp32 values.
        chunks: of `CHUNK_VALUES` values each, as the reducers sent them.
    """

    codec: str
    values: int
    chunks: tuple[bytes, ...]

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.chunks))

    def decode(self) -> torch.Tensor:
        """Flat fp32 [values]. Raises: FormatError: bytes that no reducer writes."""
        coder, vector = codec(self.codec), torch.empty(self.values)
        for part, data in zip(vector.split(CHUNK_VALUES), self.chunks, strict=True):
            part.copy_(coder.decode_average(data, part.numel()))
        return vector

    def applied_to(self, spec: RunSpec, base: SharedState) -> SharedState:
        """The state that it leads to from `base`, hashed: compare its digest with the agreed one.

        Raises:
            FormatError: bytes that no reducer writes, or another number of values.
            RoundAborted: values that are not finite.
        """
        state = outer_step(spec, base, self.decode())
        _ = state.digest
        return state

    def save(self, path: Path) -> None:
        """Write it to a file, whole or not at all. Raises: InputError: the disk is full, or the folder cannot be written."""
        tensors = {
            "data": torch.frombuffer(bytearray(b"".join(self.chunks)), dtype=torch.uint8),
            "sizes": torch.tensor([len(chunk) for chunk in self.chunks]),
        }
        write_tensors(path, tensors, {"codec": self.codec, "values": str(self.values)})

    @classmethod
    def load(cls, path: Path) -> Average:
        """Read what `save` wrote. Raises: InputError: unreadable, or damaged so that it shows."""
        try:
            with safe_open(path, framework="pt") as file:
                about, data, sizes = file.metadata() or {}, file.get_tensor("data"), file.get_tensor("sizes").tolist()
            name, values = about["codec"], int(about["values"])
            fits = len(sizes) == len(chunk_sizes(values, CHUNK_VALUES)) and min(sizes) >= 0 and sum(sizes) == len(data)
            if not fits:
                raise FormatError("its chunks are not those of so many values")
            whole = data.numpy().tobytes()
            ends = list(itertools.accumulate(sizes))
            return cls(name, values, tuple(whole[end - size : end] for end, size in zip(ends, sizes, strict=True)))
        except (SafetensorError, OSError, KeyError, ValueError, FormatError) as error:
            raise InputError(f"{path}: not an average, or it is damaged: {error}") from error


def is_small(codec_name: str) -> bool:
    """Whether averages of this codec are worth keeping: at most half as large as what they lead to."""
    return codec(codec_name).average_bytes(CHUNK_VALUES) <= 2 * CHUNK_VALUES


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
        most = codec(codec_name).average_bytes(max(sizes)) + _OVERHEAD_BYTES
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
