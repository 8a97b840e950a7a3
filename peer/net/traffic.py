"""Traffic: how many bytes each kind of stream has carried, for a member's screen and for measurements.

A stream's kind is the last part of its name: "progress", "propose", "vote", "reduce". Counted is what is written to a
stream and read from it; what libp2p adds (names, encryption, the DHT) is not.

    >>> traffic = Traffic()
    >>> traffic.sent["vote"] += 400
    >>> traffic.sent["reduce"] += 262_144
    >>> traffic.control_bytes()
    (400, 0)
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import cast

from peer.limits.rates import LONGEST_S, LineRates, Rate

BULK = frozenset({"reduce", "state", "average"})  # kinds whose bytes grow with the model; all others are control


@dataclass
class Traffic:
    """Bytes by kind of stream, since the node's start."""

    sent: Counter[str] = field(default_factory=Counter)
    received: Counter[str] = field(default_factory=Counter)
    opened: Counter[str] = field(default_factory=Counter)  # streams to others
    rates: LineRates = field(default_factory=LineRates)  # bulk waits for them; control is counted, and goes first

    def counted(
        self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The two ends of a stream called `name`, whose bytes are counted from now on."""
        kind = name.rpartition("/")[2]
        down, up = self.rates.down, self.rates.up
        counted = _Reader(reader, self.received, kind, down), _Writer(writer, self.sent, kind, up)
        return cast(tuple[asyncio.StreamReader, asyncio.StreamWriter], counted)

    def control_bytes(self) -> tuple[int, int]:
        """(sent, received), of all that is not bulk."""
        sent, received = (
            sum(size for kind, size in sizes.items() if kind not in BULK) for sizes in (self.sent, self.received)
        )
        return sent, received


class _Reader:
    """As much of an asyncio.StreamReader as streams use."""

    def __init__(self, reader: asyncio.StreamReader, sizes: Counter[str], kind: str, rate: Rate) -> None:
        self._reader, self._sizes, self._kind, self._rate = reader, sizes, kind, rate

    async def read(self, most: int = -1) -> bytes:
        return await self._count(await self._reader.read(most))

    async def readexactly(self, size: int) -> bytes:
        return await self._count(await self._reader.readexactly(size))

    async def _count(self, data: bytes) -> bytes:
        self._sizes[self._kind] += len(data)
        wait_s = self._rate.took(len(data))
        if wait_s > 0 and self._kind in BULK:
            await asyncio.sleep(min(wait_s, LONGEST_S))
        return data


class _Writer:
    """As much of an asyncio.StreamWriter as streams use."""

    def __init__(self, writer: asyncio.StreamWriter, sizes: Counter[str], kind: str, rate: Rate) -> None:
        self._writer, self._sizes, self._kind, self._rate = writer, sizes, kind, rate
        self._wait_s = 0.0
        self.transport, self.close = writer.transport, writer.close

    def write(self, data: bytes) -> None:
        self._writer.write(data)
        self._sizes[self._kind] += len(data)
        self._wait_s = self._rate.took(len(data))

    async def drain(self) -> None:
        await self._writer.drain()
        if self._wait_s > 0 and self._kind in BULK:
            await asyncio.sleep(min(self._wait_s, LONGEST_S))
