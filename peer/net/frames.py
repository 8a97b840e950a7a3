"""Frames: how protobuf messages travel on a libp2p stream, with a bound that is checked before anything is read.

    4-byte big-endian length | protobuf message

hivemind's own framing believes any 8-byte length that a stranger sends; this one does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from protocol.errors import FormatError, NetworkError

MAX_FRAME_BYTES = 12 << 20  # the largest is a group of 1024 signed claims
FIRST_FRAME_BYTES = 64 << 10  # from a peer that has not shown a certificate yet
SLOWEST_BYTES_S = 4000  # a sender that is slower than that is not worth waiting for
_HEADER_BYTES = 4
_PIECE_BYTES = 64 << 10

M = TypeVar("M", bound=Message)


async def send(writer: asyncio.StreamWriter, message: Message, *, timeout_s: float) -> None:
    """Send one message, waiting for the other side to take it.

    Raises:
        NetworkError: the stream broke, or the other side took nothing for `timeout_s`.
    """
    data = message.SerializeToString()
    try:
        writer.write(len(data).to_bytes(_HEADER_BYTES, "big"))
        for start in range(0, max(len(data), 1), _PIECE_BYTES):
            writer.write(data[start : start + _PIECE_BYTES])
            async with asyncio.timeout(timeout_s):  # wait_for loses a cancellation now and then (Python 3.11)
                await writer.drain()
    except (OSError, TimeoutError, RuntimeError) as error:
        writer.transport.abort()  # closing would keep what was not taken in memory
        raise NetworkError(f"could not send: {type(error).__name__}") from error


async def receive(
    reader: asyncio.StreamReader,
    kind: type[M],
    *,
    timeout_s: float | None,
    max_bytes: int = MAX_FRAME_BYTES,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> M:
    """Receive one message.

    Args:
        timeout_s: the longest silence. A large message on a slow line may take longer in all, at no less than
            `SLOWEST_BYTES_S`. None: without end, where somebody else watches the stream; that costs half as much.
        on_bytes: called with how many bytes came, whenever some did.

    Raises:
        NetworkError: the stream ended, or nothing came for `timeout_s`, or too slowly.
        FormatError: longer than `max_bytes`, or not a message of this kind.
    """
    try:
        size = int.from_bytes(await _read(reader, _HEADER_BYTES, timeout_s, on_bytes), "big")
        if size > max_bytes:
            raise FormatError(f"expected a message of at most {max_bytes} bytes, got {size}")
        if timeout_s is None:
            data = await _read(reader, size, None, on_bytes)
        else:
            async with asyncio.timeout(timeout_s + size / SLOWEST_BYTES_S):
                data = await _read(reader, size, timeout_s, on_bytes)
    except asyncio.IncompleteReadError as error:
        raise NetworkError("the other side closed the stream") from error
    except TimeoutError as error:
        raise NetworkError(f"nothing came for {timeout_s or 0:.1f} s, or far too slowly") from error
    except OSError as error:
        raise NetworkError(f"the stream broke: {error}") from error
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise FormatError(f"not a {kind.__name__}") from error
    return message


async def _read(
    reader: asyncio.StreamReader, size: int, timeout_s: float | None, on_bytes: Callable[[int], None]
) -> bytes:
    if timeout_s is None:
        return await reader.readexactly(size)
    data = bytearray()
    while len(data) < size:
        async with asyncio.timeout(timeout_s):
            piece = await reader.read(min(size - len(data), _PIECE_BYTES))
        if not piece:
            raise asyncio.IncompleteReadError(bytes(data), size)
        data += piece
        on_bytes(len(piece))
    return bytes(data)
