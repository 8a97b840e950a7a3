"""Frames from strangers: bounded before they are read, and never waited for without end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.net import frames
from protocol import swarm_pb2
from protocol.errors import FormatError, NetworkError
from tests.swarm_kit import run

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def pair() -> AsyncIterator[tuple[Pair, Pair]]:
    """Both ends of a real stream."""
    left, right = socket.socketpair()
    one, other = await asyncio.open_unix_connection(sock=left), await asyncio.open_unix_connection(sock=right)
    try:
        yield one, other
    finally:
        for _, writer in (one, other):
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def received(data: bytes, *, end: bool = True, **options: float) -> swarm_pb2.Progress:
    async with pair() as ((reader, _), (_, writer)):
        writer.write(data)
        if end:
            writer.write_eof()
        return await frames.receive(reader, swarm_pb2.Progress, **({"timeout_s": 5.0} | options))


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(4, "big") + message


def test_a_message_comes_as_it_was_sent() -> None:
    async def main() -> None:
        async with pair() as ((reader, _), (_, writer)):
            sent = swarm_pb2.Progress(certificate="c", round=3, tokens=2**60)
            await frames.send(writer, sent, timeout_s=30)
            await frames.send(writer, swarm_pb2.Progress(), timeout_s=30)
            assert await frames.receive(reader, swarm_pb2.Progress, timeout_s=30) == sent
            assert await frames.receive(reader, swarm_pb2.Progress, timeout_s=30) == swarm_pb2.Progress()

    run(main())


@pytest.mark.parametrize("size", [101, 2**20, 2**31, 2**32 - 1])
def test_a_frame_beyond_the_bound_is_refused_by_its_length_alone(size: int) -> None:
    with pytest.raises(FormatError, match=f"at most 100 bytes, got {size}"):
        run(received(size.to_bytes(4, "big"), end=False, max_bytes=100))


def test_a_frame_of_just_the_bound_is_read() -> None:
    message = swarm_pb2.Progress(base="x" * 96).SerializeToString()
    assert run(received(framed(message), max_bytes=len(message))).base == "x" * 96


@pytest.mark.parametrize("data", [b"", b"\0", b"\0\0\0", b"\0\0\0\5abc"])
def test_a_stream_that_ends_within_a_frame_is_a_network_error(data: bytes) -> None:
    with pytest.raises(NetworkError, match="closed the stream"):
        run(received(data))


@pytest.mark.parametrize("data", [b"", b"\0\0", b"\0\0\0\5ab"])
def test_silence_within_a_frame_is_a_network_error_after_the_deadline(data: bytes) -> None:
    with pytest.raises(NetworkError, match="nothing came"):
        run(received(data, end=False, timeout_s=0.2))


def test_one_byte_at_a_time_does_not_push_the_deadline_out() -> None:
    async def main() -> None:
        async with pair() as ((reader, _), (_, writer)):

            async def drip() -> None:
                writer.write(framed(b"")[:3] + b"\xff")
                while True:
                    writer.write(b"x")
                    await asyncio.sleep(0.02)

            dripping = asyncio.create_task(drip())
            with pytest.raises(NetworkError, match="nothing came"):
                await frames.receive(reader, swarm_pb2.Progress, timeout_s=0.5)
            dripping.cancel()
            await asyncio.gather(dripping, return_exceptions=True)

    run(main())


def test_garbage_is_a_format_error() -> None:
    with pytest.raises(FormatError, match="not a Progress"):
        run(received(framed(b"\xff" * 40)))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_named_error(data: bytes) -> None:
    with contextlib.suppress(FormatError, NetworkError):
        run(received(data, max_bytes=150))


def test_who_takes_nothing_is_given_up_and_its_bytes_are_not_kept() -> None:
    async def main() -> None:
        async with pair() as (_, (_, writer)):
            with pytest.raises(NetworkError, match="could not send"):
                await frames.send(writer, swarm_pb2.StateChunk(data=b"x" * (8 << 20)), timeout_s=0.3)
            await asyncio.sleep(0.05)
            assert writer.transport.get_write_buffer_size() == 0

    run(main())


def test_sending_on_a_closed_stream_is_a_network_error() -> None:
    async def main() -> None:
        async with pair() as ((_, theirs), (_, writer)):
            theirs.close()
            with pytest.raises(NetworkError, match="could not send"):
                for _ in range(50):
                    await frames.send(writer, swarm_pb2.StateChunk(data=b"x" * 100_000), timeout_s=2)

    run(main())
