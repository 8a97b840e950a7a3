"""Catching up: a member that is behind fetches the head of the others.

The agreement is checked signature by signature, the manifest against the digest that was signed, each chunk against the
manifest. Where the averages since its own head are small, it takes those and makes the state itself. A head is taken if each
round on the way to it follows the one before (`protocol.succession`), and for no other reason: how many stand on it says
nothing. Who is so far behind that the others no longer hold all agreements in between starts from one that the coordinator
has in its ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable
from typing import Any

from peer.swarm.averages import Average, AverageFetch, is_small, serve_average
from peer.swarm.exchange import StateFetch, serve_state
from peer.swarm.head import Head, Position
from peer.swarm.talk import Talk
from peer.training.state import SharedState
from protocol import swarm_pb2
from protocol.agreement import Agreement
from protocol.errors import FormatError, NetworkError, RefusedError, RoundAborted, VerificationError
from protocol.run_card import RunCard
from protocol.run_spec import RunSpec
from protocol.state import StateManifest
from protocol.succession import Last, check_follows

logger = logging.getLogger(__name__)

BEHIND_S = 0.6  # before fetching the next round: most of the time the missing vote is about to come
RETRY_S = 1.0  # after nobody could hand over a head
HEAD_SOON_S, HEAD_TIMEOUT_S = 2.0, 20.0  # to answer with a head: first all are asked briefly, for one may never answer
FAILED_S = 30.0  # that a member which could not give its head is not asked again


class _Unshown(VerificationError):
    """The agreements between here and a head are not all at hand any more."""


class CatchUp:
    """Serves this member's states, and fetches the others'.

    Args:
        named: the coordinator's word on who begins; empty: not known.
    """

    def __init__(self, talk: Talk, card: RunCard, position: Position, named: Callable[[], bytes]) -> None:
        self._talk, self._card, self._position, self._named = talk, card, position, named
        self.anchor: Agreement | None = None  # as the coordinator's ledger has it
        self.wants_anchor = False  # others are ahead, and cannot show all the way from here
        self._behind_since: float | None = None
        self._retry_at = 0.0
        self.asked_at = float("-inf")  # when another last fetched a piece of what is here, time.monotonic()
        self._failed: dict[str, float] = {}  # peer id -> until when not to ask it again
        self._unfinished: StateFetch | None = None  # the newest fetch that failed: its chunks are not fetched again

    async def start(self) -> None:
        await self._talk.serve("head", swarm_pb2.HeadRequest, self._answer_head)
        await self._talk.serve("state", swarm_pb2.StateRequest, self._answer_state)
        await self._talk.serve("average", swarm_pb2.AverageRequest, self._answer_average)

    async def better_head(self, now: float) -> Head | None:
        """A later head that live members stand on and that follows from this one's, fetched and checked; None: there is none."""
        mine = self._position.head
        ahead = self._talk.book.ahead(mine.round)
        if not ahead:
            self._behind_since, self.wants_anchor = None, False
            return None
        if self._behind_since is None:
            self._behind_since = now
        waited = ahead[0].round - 1 > mine.round + 1 or now - self._behind_since >= BEHIND_S
        if not waited or now < self._retry_at:
            return None
        self._failed = {peer: until for peer, until in self._failed.items() if until > now}
        for more_s, view in itertools.product((HEAD_SOON_S, HEAD_TIMEOUT_S), ahead):
            source = view.peer_id
            if source in self._failed:
                continue
            reply: swarm_pb2.HeadReply | None = None
            try:
                reply = await self._ask_head(source, mine.round, more_s)
                return await self._take_head(reply, source)
            except (NetworkError, FormatError, RefusedError) as error:
                logger.info("round %d could not be fetched from %s: %s", view.round - 1, source[-8:], error.message)
                self.wants_anchor |= isinstance(error, _Unshown)
                if reply or more_s == HEAD_TIMEOUT_S:
                    self._failed[source] = time.monotonic() + FAILED_S
        self._retry_at = time.monotonic() + RETRY_S
        return None

    async def shows_later(self, source: str) -> bool:
        """Whether a member shows that the run has gone on from this member's head: nothing is fetched."""
        mine = self._position.head
        try:
            reply = await self._ask_head(source, mine.round, HEAD_SOON_S)
            agreement = self._open(reply.agreement)
            return agreement.round > mine.round and bool(await self._since(mine.last, agreement, list(reply.chain)))
        except (NetworkError, FormatError, RefusedError) as error:
            logger.debug("%s shows no later round: %s", source[-8:], error.message)
            return False

    async def held_or_fetched(self, digest: str, sources: list[str]) -> SharedState:
        """The state with this digest, from here or from other members.

        Raises:
            NetworkError: nobody could give it.
        """
        held = self._position.find(digest)
        if held is not None:
            return held
        for source in self._others(sources):
            request = swarm_pb2.HeadRequest(certificate=self._talk.certificate(), state=digest)
            with contextlib.suppress(NetworkError, FormatError, VerificationError):
                reply = await self._talk.call(source, "head", request, swarm_pb2.HeadReply)
                if reply.manifest:
                    return await self._fetch(self._check_manifest(reply.manifest, digest), sources)
        raise NetworkError(f"nobody could give state {digest[:12]}…")

    async def _ask_head(self, source: str, since: int, more_s: float) -> swarm_pb2.HeadReply:
        request = swarm_pb2.HeadRequest(certificate=self._talk.certificate(), since=since)
        return await self._talk.call(source, "head", request, swarm_pb2.HeadReply, more_s=more_s)

    async def _take_head(self, reply: swarm_pb2.HeadReply, source: str) -> Head:
        """Fetch the head that a member offers, which may be a later one than it spoke of, if it follows from this one's."""
        mine, agreement = self._position.head, self._open(reply.agreement)
        if agreement.round <= mine.round:
            raise VerificationError(f"it offers round {agreement.round}, expected a later one than {mine.round}")
        try:
            since = await self._since(mine.last, agreement, list(reply.chain))
        except _Unshown:
            if self.anchor is None or self.anchor.round <= mine.round:
                raise
            reply = await self._ask_head(source, self.anchor.round, HEAD_SOON_S)
            agreement, since = self._open(reply.agreement), []
            await self._check_anchored(self.anchor, agreement, list(reply.chain))
        manifest = self._check_manifest(reply.manifest, agreement.state)
        if manifest.round != agreement.round:
            raise VerificationError("the manifest is of another round than the agreement")
        sources = [view.peer_id for view in self._talk.book.alive() if view.base == agreement.state]
        sources = self._others([source, *sources])
        state = self._position.find(agreement.state) or await self._from_averages(since, sources)
        state = state or await self._fetch(manifest, sources)
        return Head(state, agreement)

    def _open(self, data: bytes) -> Agreement:
        return Agreement.from_bytes(data, run=self._card.run, membership_key=self._card.member_key)

    async def _check_anchored(self, anchor: Agreement, newest: Agreement, chain: list[bytes]) -> None:
        """Check that a head follows from the round that the coordinator's ledger has. Raises: FormatError, RefusedError."""
        if newest.round > anchor.round:
            await self._since(Last.of(anchor), newest, chain)
        elif (newest.round, newest.state) != (anchor.round, anchor.state):
            raise VerificationError(f"round {newest.round} is not what the coordinator's ledger has for it, or older")

    async def _since(self, last: Last, newest: Agreement, chain: list[bytes]) -> list[Agreement]:
        """The agreements from a round to another head, each of which follows the one before.

        Args:
            newest: of the other head.
            chain: the agreements in between.

        Raises:
            _Unshown: some of them are not here, or, from genesis on, nothing shows who may begin.
            FormatError, RefusedError: one of them does not hold, or does not follow.
        """
        if newest.round - last.round - 1 != len(chain):
            raise _Unshown(f"round {newest.round} comes without the agreements since round {last.round}")
        return await asyncio.get_running_loop().run_in_executor(None, self._followed, last, newest, chain)

    def _followed(self, last: Last, newest: Agreement, chain: list[bytes]) -> list[Agreement]:
        found = []
        for agreement in itertools.chain(map(self._open, chain), [newest]):  # nothing is checked after the first misfit
            if last.round == 0 and not agreement.beginners:
                raise _Unshown("round 1 does not say whom the coordinator named to begin")
            check_follows(agreement, last, self._card.spec, self._named() or None)
            last = Last.of(agreement)
            found.append(agreement)
        return found

    async def _from_averages(self, since: list[Agreement], sources: list[str]) -> SharedState | None:
        """What the averages of the rounds since this member's head lead to; None when they are too large or not to be had.

        Args:
            since: the agreements from there on.
            sources: members that stand where it leads.
        """
        state, wire, started, size = self._position.head.state, self._card.spec.sync.wire, time.monotonic(), 0
        if not since or not is_small(wire):
            return None
        for agreement in since:
            values = self._card.spec.sync.fragment_values(agreement.round, state.parameters.numel())
            average = await self._average(agreement.state, values, sources)
            arguments = (average, self._card.spec, state)
            after = await asyncio.get_running_loop().run_in_executor(None, _applied, *arguments)
            if average is None or after is None or after.digest != agreement.state:
                logger.info("round %d: no average that leads to its state; fetching that whole", agreement.round)
                return None
            state, size = after, size + average.size_bytes
            self._position.keep_average(agreement.state, average)
        logger.info(
            "made round %d from averages of %.3f MB in %.1f s", since[-1].round, size / 1e6, time.monotonic() - started
        )
        return state

    async def _average(self, state: str, values: int, sources: list[str]) -> Average | None:
        """From several members at once; if one of them does not have it, from one that has just spoken."""
        talk = self._talk
        fetch = AverageFetch(
            talk.node, talk.stream_name("average"), talk.certificate, lambda peer, size: talk.book.heard(peer)
        )
        for asked in (sources, sources[:1]):
            try:
                return await fetch.run(state, self._card.spec.sync.wire, values, asked)
            except (NetworkError, FormatError) as error:
                logger.debug("the average that led to %s…: %s", state[:12], error.message)
        return None

    def _check_manifest(self, data: bytes, digest: str) -> StateManifest:
        manifest, own = StateManifest.from_bytes(data), self._position.head.state.manifest()
        if manifest.digest != digest or manifest.tensors != own.tensors:
            raise VerificationError(f"expected the manifest of state {digest[:12]}…, of this run's model, got another")
        return manifest

    async def _fetch(self, manifest: StateManifest, sources: list[str]) -> SharedState:
        started, fetch = time.monotonic(), self._unfinished
        if fetch is None or fetch.manifest.digest != manifest.digest:
            talk = self._talk
            fetch = StateFetch(talk.node, talk.stream_name("state"), talk.certificate, manifest)
        self._unfinished = fetch
        state = await fetch.run(self._others(sources), self._position.held())
        self._unfinished = None
        size = manifest.parameter_bytes + manifest.outer_bytes
        logger.info(
            "fetched round %d: %.3f of %.3f MB in %.1f s",
            manifest.round, fetch.fetched_bytes / 1e6, size / 1e6, time.monotonic() - started,
        )  # fmt: skip
        return state

    def _others(self, peers: list[str]) -> list[str]:
        return [peer for peer in dict.fromkeys(peers) if peer != self._talk.me]

    async def _answer_head(self, request: swarm_pb2.HeadRequest, reader: Any, writer: Any, peer: str) -> None:
        if request.state:
            held = self._position.find(request.state)
            await self._talk.reply(writer, swarm_pb2.HeadReply(manifest=held.manifest().to_bytes() if held else b""))
            return
        head = self._position.head
        reply = swarm_pb2.HeadReply(
            certificate=self._talk.certificate(),
            round=head.round,
            state=head.digest,
            agreement=head.agreement.to_bytes() if head.agreement else b"",
            manifest=head.state.manifest().to_bytes(),
            chain=self._position.chain_since(request.since),
        )
        await self._talk.reply(writer, reply)

    async def _answer_state(self, request: swarm_pb2.StateRequest, reader: Any, writer: Any, peer: str) -> None:
        self.asked_at = time.monotonic()
        await serve_state(self._position.find(request.state), request, writer)

    async def _answer_average(self, request: swarm_pb2.AverageRequest, reader: Any, writer: Any, peer: str) -> None:
        self.asked_at = time.monotonic()
        await serve_average(self._position.average(request.state), request, writer)


def _applied(average: Average | None, spec: RunSpec, state: SharedState) -> SharedState | None:
    """The state that an average leads to; None when it leads nowhere."""
    try:
        return average.applied_to(spec, state) if average is not None else None
    except (FormatError, RoundAborted):
        return None
