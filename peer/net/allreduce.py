"""The all-reduce of one attempt: a butterfly, as hivemind's, with what that one lacks.

Each reducer owns a range of chunks. A member opens one stream to each reducer, sends its chunks of that range and gets
the averaged ones back on the same stream. What differs from hivemind's: a chunk counts only with a Merkle proof that
its sender claimed it before the group formed; weights come from the claims; chunks are averaged in group order,
whenever they came, by the run's `peer.training.aggregate`; the average is encoded once and all members, the reducer
too, decode the same bytes; and a part that does not come fails the attempt for everybody instead of being averaged
without. Nothing has a fixed time: bytes that come, however slowly, are progress; see `peer.net.pace` for how long there
may be none.

Who only reduces takes part with no update of its own, and gets all averages, as the members do.

    reduction = Reduction(group, update, talk, pace, aggregator(spec.sync.clip))
    averaged = await reduction.run()      # flat fp32 [N]; or RoundAborted, and nothing has changed
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import torch

from peer.net import frames
from peer.net.node import CONNECT_TIMEOUT_S, short
from peer.net.pace import MEASURED_FROM_BYTES, Pace
from peer.net.talk import Talk
from peer.round.group import Group
from peer.sync.averages import is_small
from peer.training.aggregate import Aggregator
from peer.training.codecs.codec import EncodedUpdate, average_codec, chunk_sizes, codec, verify_chunk
from peer.training.reduce import average_chunk
from protocol import swarm_pb2
from protocol.errors import FormatError, NetworkError, PotluckError, RefusedError, RoundAborted

STREAM = "reduce"
WATCH_INTERVAL_S = 0.25
LEAST_AHEAD, MOST_AHEAD = 4, 24  # chunks; further ahead, lines idle at the end for who is behind
LONGEST_WAIT_S = 600.0  # on one stream; `_watch` looks whether the other side is still there
_MAX_PART_BYTES = 1 << 20


@dataclass
class Arrival:
    """How one sender's parts come in."""

    first: float = 0.0  # time.monotonic() when some came
    last: float = 0.0
    bytes: int = 0  # that came after the first

    def count(self, size: int) -> None:
        self.last = time.monotonic()
        if self.first:
            self.bytes += size
        else:
            self.first = self.last

    @property
    def bytes_s(self) -> float:
        """0 when too little came to tell."""
        return self.bytes / max(self.last - self.first, 1e-3) if self.bytes >= MEASURED_FROM_BYTES else 0.0


class Reduction:
    """One member's part in one all-reduce.

    Args:
        update: this member's own; None: it only reduces.
        aggregator: the run's; each reducer's result must be that of any other.
        stage: told "send" before each stream's first part, "reduce" at each sender's first part.
    """

    def __init__(
        self,
        group: Group,
        update: EncodedUpdate | None,
        talk: Talk,
        pace: Pace,
        aggregator: Aggregator,
        stage: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._pace, self._aggregator, self._stage = pace, aggregator, stage
        self.group, self._me, self._update = group, talk.me, update
        self._talk, self._lines = talk, talk.lines
        me = self._me
        self._digest = group.members[0].claim.value.update  # all are of one size and codec
        self._sizes = chunk_sizes(self._digest.values, self._digest.chunk_values)
        self._ranges = group.ranges(len(self._sizes))
        self._mine = self._ranges.get(me, range(0))
        self._codec, self._average_codec = codec(self._digest.codec), average_codec(self._digest.codec)
        self._parts: dict[int, dict[str, bytes]] = {chunk: {} for chunk in self._mine}
        loop = asyncio.get_running_loop()
        self._results: dict[int, asyncio.Future[bytes]] = {chunk: loop.create_future() for chunk in self._mine}
        self._averaged = torch.empty(self._digest.values)
        self.results: dict[int, bytes] | None = {} if is_small(self._digest.codec) else None  # as they travelled
        self._owed = {peer: len(self._mine) if peer in group.by_peer else 0 for peer in group.everyone if peer != me}
        self._heard = dict.fromkeys(self._owed, time.monotonic())
        self._awaited: set[str] = set()  # reducers that have not sent all of their averages
        self._arrivals = {peer: Arrival() for peer in self._owed}
        # senders may be ahead of the slowest by so many chunks that all together keep one encoded update at most
        self._window = min(max(LEAST_AHEAD, len(self._sizes) // len(group.members)), MOST_AHEAD)
        self._held: set[str] = set()  # senders that are that far ahead
        self._done, self._moved = 0, asyncio.Event()  # how many chunks are averaged
        self._longest_gap_s = 0.0
        self.seconds = 0.0  # that it took
        self._served: set[str] = set()  # who has opened its one stream
        self._failure: asyncio.Future[None] = loop.create_future()
        self.culprit = ""  # the member whose silence or bad data ended the attempt, when that is known

    async def run(self) -> torch.Tensor:
        """Take part; returns the average of the group's updates, flat fp32 [N].

        Raises:
            RoundAborted: something did not come, was not what its sender had claimed, or another member gave up.
        """
        both_ways = sum(
            self._codec.encoded_bytes(size) + self._average_codec.encoded_bytes(size) for size in self._sizes
        )
        started, total_s = time.monotonic(), self._pace.total_s(both_ways)
        tasks = [
            asyncio.create_task(self._exchange(peer))
            for peer, chunks in self._ranges.items()
            if peer != self._me and chunks
        ]
        tasks += [asyncio.create_task(self._contribute_own()), asyncio.create_task(self._watch())]
        everything: asyncio.Future[Any] = asyncio.gather(*tasks[:-1], *self._results.values())
        try:
            ends: list[asyncio.Future[Any]] = [everything, self._failure]
            done, _ = await asyncio.wait(ends, timeout=total_s, return_when=asyncio.FIRST_COMPLETED)
            if everything in done:
                everything.result()
                self.seconds = time.monotonic() - started
                self._pace.went_well(self._longest_gap_s, self.seconds)
                self._pace.arrived({peer: item.bytes_s for peer, item in self._arrivals.items() if item.bytes_s})
                return self._averaged
            self._pace.failed()
            missing = [*(peer for peer, owed in self._owed.items() if owed), *self._awaited]
            self.fail(f"the all-reduce took longer than {total_s:.0f} s", missing[0] if missing else "")
            self._failure.result()
            raise AssertionError("a failure without a reason")
        except (NetworkError, FormatError, RefusedError) as error:
            self.fail(error.message)
            raise RoundAborted(error.message) from error
        finally:
            self.fail("this member is done with the group")
            everything.cancel()
            for task in tasks:
                task.cancel()
            for result in self._results.values():
                result.cancel()
            await asyncio.gather(*tasks, everything, return_exceptions=True)

    def fail(self, reason: str, culprit: str = "") -> None:
        """Give the attempt up; everyone connected is told why. Harmless when it is over."""
        if not self._failure.done():
            self.culprit = culprit
            self._failure.set_exception(RoundAborted(reason))
            self._failure.exception()  # seen: nobody may be waiting for it any more

    def _to_blame(self, peer: str, error: PotluckError) -> str:
        """Whose fault it is: bad data are their sender's; that a stream ends is not.

        It also ends when its other side has given up.
        """
        return "" if isinstance(error, NetworkError) and self._lines.is_alive(peer) else peer

    async def _watch(self) -> None:
        """Fails the attempt when a member owes parts and is silent, or owes averages and is gone."""
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            now = time.monotonic()
            for peer, heard in sorted(self._heard.items(), key=lambda item: item[1]):  # who was silent longest is named
                silent_s, silence_s = now - heard, max(self._pace.silence_s, self._lines.slowness_s(peer))
                if self._lines.is_alive(peer):  # its line may be slow, or it has not heard of the group yet
                    silence_s = max(silence_s, self._pace.most_s)
                # a reducer sends nothing while it waits for the slowest sender: it is there as long as it says so
                gone = peer in self._awaited and not self._lines.is_alive(peer)
                owes = self._owed[peer] and peer not in self._held
                if silent_s > silence_s and (owes or gone):
                    self._pace.failed()
                    self.fail(f"no data from {short(peer)} for {silent_s:.0f} s", peer)
                    return

    def _count(self, peer: str, size: int) -> None:
        """Some bytes came from a member."""
        now = time.monotonic()
        if self._owed[peer]:
            self._longest_gap_s = max(self._longest_gap_s, now - self._heard[peer])
        self._heard[peer] = now
        self._lines.heard(peer)

    async def _contribute_own(self) -> None:
        if self._update is not None:
            for chunk in self._mine:
                await self._accept(self._me, chunk, self._update.chunks[chunk])

    async def _exchange(self, reducer: str) -> None:
        """Send a reducer its chunks, and take the averages from it."""
        try:
            open_s = max(CONNECT_TIMEOUT_S, self._lines.patience_s(reducer))
            async with self._talk.node.stream(reducer, self._talk.stream_name(STREAM), open_s) as (reader, writer):
                sending = asyncio.create_task(self._send_chunks(writer, self._ranges[reducer]))
                try:
                    await self._receive_averages(reducer, reader)
                    await sending
                finally:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
        except (NetworkError, FormatError) as error:
            self.fail(f"{short(reducer)}: {error.message}", self._to_blame(reducer, error))
            raise

    async def _receive_averages(self, reducer: str, reader: asyncio.StreamReader) -> None:
        self._awaited.add(reducer)
        for chunk in self._ranges[reducer]:
            reply = await frames.receive(
                reader,
                swarm_pb2.Part,
                timeout_s=LONGEST_WAIT_S,
                max_bytes=_MAX_PART_BYTES,
                on_bytes=lambda count: self._count(reducer, count),
            )
            if reply.error:
                raise RoundAborted(f"{short(reducer)}: {reply.error[:200]}")
            if reply.chunk != chunk:
                raise FormatError(f"sent chunk {reply.chunk}, expected {chunk}")
            self._take_result(chunk, reply.data)
        self._awaited.discard(reducer)

    async def _send_chunks(self, writer: asyncio.StreamWriter, chunks: range) -> None:
        update = self._update
        for chunk in chunks if update is not None else chunks[:1]:
            part = swarm_pb2.Part(chunk=chunk)
            if update is not None:
                part.data, part.proof[:] = update.chunks[chunk], update.proof(chunk)
            if chunk == chunks[0]:
                self._stage("send")
                part.certificate, part.group, part.attempt = (
                    self._talk.certificate(),
                    self.group.digest,
                    self.group.attempt,
                )
            await frames.send(writer, part, timeout_s=LONGEST_WAIT_S)

    def _take_result(self, chunk: int, data: bytes) -> None:
        start = chunk * self._digest.chunk_values
        self._averaged[start : start + self._sizes[chunk]] = self._average_codec.decode(data, self._sizes[chunk])
        if self.results is not None:
            self.results[chunk] = data

    async def serve(
        self, peer: str, first: swarm_pb2.Part, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Reduce for `peer`, who has opened a stream and sent `first`; the caller has checked that it is in the group.

        Raises:
            FormatError: it has opened one before.
        """
        if peer in self._served:
            raise FormatError(f"{short(peer)} opened a second stream")
        self._served.add(peer)
        self._stage("reduce")
        receiving = asyncio.create_task(self._receive_chunks(peer, first, reader))  # none from who only reduces
        try:
            async for chunk, data in self._averages():
                await frames.send(writer, swarm_pb2.Part(chunk=chunk, data=data), timeout_s=LONGEST_WAIT_S)
            await receiving
        except RoundAborted as error:
            with contextlib.suppress(NetworkError):
                await frames.send(writer, swarm_pb2.Part(error=error.message), timeout_s=2)
        except (NetworkError, FormatError, RefusedError) as error:
            self.fail(f"{short(peer)}: {error.message}", self._to_blame(peer, error))
        finally:
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)

    async def _averages(self) -> AsyncIterator[tuple[int, bytes]]:
        for chunk in self._mine:
            result = self._results[chunk]
            ends: list[asyncio.Future[Any]] = [result, self._failure]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not result.done() or result.cancelled():
                self._failure.result()
            yield chunk, result.result()

    async def _receive_chunks(self, peer: str, first: swarm_pb2.Part, reader: asyncio.StreamReader) -> None:
        if peer not in self.group.by_peer:
            return
        digest, part = self.group.by_peer[peer].claim.value.update, first

        def count(size: int) -> None:
            self._arrivals[peer].count(size)
            self._count(peer, size)

        count(len(first.data))
        try:
            for chunk in self._mine:
                if chunk != self._mine[0]:
                    await self._room(peer, chunk)
                    part = await frames.receive(
                        reader, swarm_pb2.Part, timeout_s=LONGEST_WAIT_S, max_bytes=_MAX_PART_BYTES, on_bytes=count
                    )
                if part.chunk != chunk:
                    raise FormatError(f"sent chunk {part.chunk}, expected {chunk}")
                verify_chunk(digest, chunk, part.data, list(part.proof))
                self._owed[peer] -= 1
                await self._accept(peer, chunk, part.data)
        except (NetworkError, FormatError, RefusedError) as error:
            self.fail(f"{short(peer)}: {error.message}", self._to_blame(peer, error))
            raise

    async def _room(self, peer: str, chunk: int) -> None:
        """Wait until a sender may be so far ahead of the slowest: what comes early must be kept."""
        while chunk - self._mine[0] - self._done >= self._window:
            self._held.add(peer)
            await self._moved.wait()
        self._held.discard(peer)
        self._heard[peer] = time.monotonic()

    async def _accept(self, peer: str, chunk: int, data: bytes) -> None:
        """Keep one member's chunk; with the last one, average them, in group order, and encode once."""
        parts = self._parts[chunk]
        parts[peer] = data
        if len(parts) < len(self.group.members):
            return
        order = [member.peer for member in self.group.members]
        weights = [self.group.weights[peer_id] for peer_id in order]
        loop, kept = asyncio.get_running_loop(), [parts[peer_id] for peer_id in order]
        averaged = await loop.run_in_executor(
            None, average_chunk, self._digest.codec, self._aggregator, kept, weights, self._sizes[chunk]
        )
        del self._parts[chunk]
        self._take_result(chunk, averaged)
        self._done += 1
        self._moved.set()
        self._moved.clear()
        if not self._results[chunk].done():
            self._results[chunk].set_result(averaged)
