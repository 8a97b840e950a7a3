"""Heads over the network: showing others where this member stands, asking where they do, and getting their states.

The agreement is checked signature by signature, the manifest against the digest that was signed, each chunk against the
manifest. Where the averages since its own head are small, a member takes those and makes the state itself. Which head
is followed says the core (`peer.round.follow`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from typing import Any

from peer.net.average_fetch import AverageFetch, serve_average
from peer.net.exchange import StateFetch, serve_state
from peer.net.talk import Talk
from peer.round.actions import Fetch
from peer.round.events import Fetched, HeadNotShown, HeadShown, NotFetched
from peer.sync.averages import Average, is_small
from peer.sync.shelf import CHAIN_ROUNDS, Shelf
from peer.training.state import SharedState
from protocol import swarm_pb2
from protocol.agreement import Agreement
from protocol.errors import FormatError, NetworkError, RefusedError, RoundAborted, VerificationError
from protocol.run_card import RunCard
from protocol.run_spec import RunSpec
from protocol.state import StateManifest

logger = logging.getLogger(__name__)

MAX_MANIFESTS = 8


class Heads:
    """Serves this member's states, and fetches the others'."""

    def __init__(self, talk: Talk, card: RunCard, shelf: Shelf) -> None:
        self._talk, self._card, self._shelf = talk, card, shelf
        self.asked_at = float("-inf")  # when another last fetched a piece of what is here, time.monotonic()
        self._manifests: dict[str, StateManifest] = {}  # of states that were offered, checked
        self._unfinished: StateFetch | None = None  # the newest fetch that failed: its chunks are not fetched again

    async def start(self) -> None:
        await self._talk.serve("head", swarm_pb2.HeadRequest, self._answer_head)
        await self._talk.serve("state", swarm_pb2.StateRequest, self._answer_state)
        await self._talk.serve("average", swarm_pb2.AverageRequest, self._answer_average)

    # ---- where others stand ------------------------------------------------------------------------------------------

    async def ask(self, peer: str, since: int, more_s: float) -> HeadShown | HeadNotShown:
        """What a member shows: the agreements since a round, up to its head."""
        reply: swarm_pb2.HeadReply | None = None
        try:
            request = swarm_pb2.HeadRequest(certificate=self._talk.certificate(), since=since)
            reply = await self._talk.call(peer, "head", request, swarm_pb2.HeadReply, more_s=more_s)
            if len(reply.chain) > CHAIN_ROUNDS:
                raise FormatError(f"expected at most {CHAIN_ROUNDS} agreements")
            data = [*reply.chain, reply.agreement] if reply.agreement else []
            chain = await asyncio.get_running_loop().run_in_executor(None, self._opened, data)
            if chain:
                self.note_manifest(reply.manifest, chain[-1].state, chain[-1].round)
            return HeadShown(peer, since, chain)
        except (NetworkError, FormatError, RefusedError) as error:
            logger.info("the head of %s could not be had: %s", peer[-8:], error.message)
            return HeadNotShown(peer, error.message, answered=reply is not None)

    def _opened(self, data: Sequence[bytes]) -> list[Agreement]:
        """Nothing is checked after the first misfit."""
        card, found, last = self._card, [], ""
        for item in data:
            agreement = Agreement.from_bytes(item, run=card.run, membership_key=card.member_key)
            if last and agreement.base != last:
                raise VerificationError(f"round {agreement.round} does not start from the round before")
            last = agreement.state
            found.append(agreement)
        return found

    def note_manifest(self, data: bytes, digest: str, round: int) -> StateManifest:
        """Check what a member offers, and remember it. Raises: FormatError, VerificationError."""
        manifest, own = StateManifest.from_bytes(data), self._shelf.head.state.manifest()
        if manifest.digest != digest or manifest.tensors != own.tensors or manifest.round != round:
            raise VerificationError(f"expected the manifest of state {digest[:12]}…, of this run's model, got another")
        while len(self._manifests) >= MAX_MANIFESTS:
            del self._manifests[next(iter(self._manifests))]
        self._manifests[digest] = manifest
        return manifest

    # ---- their states ------------------------------------------------------------------------------------------------

    async def get(self, wanted: Fetch) -> Fetched | NotFetched:
        """Have a state on the shelf, from here or from other members."""
        try:
            if self._shelf.find(wanted.state) is None:
                sources = [peer for peer in dict.fromkeys(wanted.sources) if peer != self._talk.me]
                state = await self._from_averages(list(wanted.chain), sources)
                self._shelf.propose(state or await self._whole(wanted.state, sources))
            return Fetched(wanted.state)
        except (NetworkError, FormatError, RefusedError) as error:
            return NotFetched(wanted.state, error.message)

    async def _whole(self, digest: str, sources: list[str]) -> SharedState:
        manifest = self._manifests.get(digest)
        for source in sources:
            if manifest is not None:
                break
            request = swarm_pb2.HeadRequest(certificate=self._talk.certificate(), state=digest)
            with contextlib.suppress(NetworkError, FormatError, VerificationError):
                reply = await self._talk.call(source, "head", request, swarm_pb2.HeadReply)
                if reply.manifest:
                    found = StateManifest.from_bytes(reply.manifest)
                    manifest = self.note_manifest(reply.manifest, digest, found.round)
        if manifest is None:
            raise NetworkError(f"nobody could give state {digest[:12]}…")
        return await self._fetch(manifest, sources)

    async def _fetch(self, manifest: StateManifest, sources: list[str]) -> SharedState:
        started, fetch = time.monotonic(), self._unfinished
        if fetch is None or fetch.manifest.digest != manifest.digest:
            talk = self._talk
            fetch = StateFetch(talk.node, talk.stream_name("state"), talk.certificate, manifest)
        self._unfinished = fetch
        state = await fetch.run(sources, self._shelf.held())
        self._unfinished = None
        size = manifest.parameter_bytes + manifest.outer_bytes
        logger.info(
            "fetched round %d: %.3f of %.3f MB in %.1f s",
            manifest.round, fetch.fetched_bytes / 1e6, size / 1e6, time.monotonic() - started,
        )  # fmt: skip
        return state

    async def _from_averages(self, chain: list[Agreement], sources: list[str]) -> SharedState | None:
        """What the averages of the rounds since this member's head lead to; None when too large or not to be had.

        Args:
            chain: the agreements from there on.
            sources: members that stand where it leads.
        """
        state, wire, started, size = self._shelf.head.state, self._card.spec.sync.wire, time.monotonic(), 0
        if not chain or not is_small(wire):
            return None
        for agreement in chain:
            values = self._card.spec.sync.fragment_values(agreement.round, state.parameters.numel())
            average = await self._average(agreement.state, values, sources)
            arguments = (average, self._card.spec, state)
            after = await asyncio.get_running_loop().run_in_executor(None, _applied, *arguments)
            if average is None or after is None or after.digest != agreement.state:
                logger.info("round %d: no average that leads to its state; fetching that whole", agreement.round)
                return None
            state, size = after, size + average.size_bytes
            self._shelf.keep_average(agreement.state, average)
        logger.info(
            "made round %d from averages of %.3f MB in %.1f s", chain[-1].round, size / 1e6, time.monotonic() - started
        )
        return state

    async def _average(self, state: str, values: int, sources: list[str]) -> Average | None:
        """From several members at once; if one of them does not have it, from one that has just spoken."""
        talk = self._talk
        fetch = AverageFetch(
            talk.node, talk.stream_name("average"), talk.certificate, lambda peer, size: talk.lines.heard(peer)
        )
        for asked in (sources, sources[:1]):
            try:
                return await fetch.run(state, self._card.spec.sync.wire, values, asked)
            except (NetworkError, FormatError) as error:
                logger.debug("the average that led to %s…: %s", state[:12], error.message)
        return None

    # ---- what others ask ---------------------------------------------------------------------------------------------

    async def _answer_head(self, request: swarm_pb2.HeadRequest, reader: Any, writer: Any, peer: str) -> None:
        if request.state:
            held = self._shelf.find(request.state)
            await self._talk.reply(writer, swarm_pb2.HeadReply(manifest=held.manifest().to_bytes() if held else b""))
            return
        head = self._shelf.head
        reply = swarm_pb2.HeadReply(
            certificate=self._talk.certificate(),
            round=head.round,
            state=head.digest,
            agreement=head.agreement.to_bytes() if head.agreement else b"",
            manifest=head.state.manifest().to_bytes(),
            chain=self._shelf.chain_since(request.since),
        )
        await self._talk.reply(writer, reply)

    async def _answer_state(self, request: swarm_pb2.StateRequest, reader: Any, writer: Any, peer: str) -> None:
        self.asked_at = time.monotonic()
        await serve_state(self._shelf.find(request.state), request, writer)

    async def _answer_average(self, request: swarm_pb2.AverageRequest, reader: Any, writer: Any, peer: str) -> None:
        self.asked_at = time.monotonic()
        await serve_average(self._shelf.average(request.state), request, writer)


def _applied(average: Average | None, spec: RunSpec, state: SharedState) -> SharedState | None:
    """The state that an average leads to; None when it leads nowhere."""
    try:
        return average.applied_to(spec, state) if average is not None else None
    except (FormatError, RoundAborted):
        return None
