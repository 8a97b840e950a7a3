"""The last copy: whether the run's newest state would be gone with this member, and which of the others have it.

`peer.handing_on` asks while this member leaves. What another says of itself is cheap, so only these count as having it:
who was in the agreement on it and stands there, and who gives a piece of it, drawn at random, that is right.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from peer.net.exchange import PIECE_BYTES, holds
from peer.net.heads import Heads
from peer.net.talk import Talk
from peer.round import follow, turns, views
from peer.round.events import HeadShown
from peer.round.state import State, View
from peer.sync.shelf import Shelf
from protocol.errors import FormatError, RefusedError
from protocol.majority import has_majority
from protocol.run_card import RunCard

CHECKED_AT_ONCE = 8
CHECK_S = 10.0  # for all of those
LEAST_S, GUESSED_BYTES_S, TIMES = 20.0, 1e6, 3.0  # see `giving_s`
STALLED_S = 120.0  # without being asked for a piece, or three times as long as one takes on this line


@dataclass(frozen=True)
class Copies:
    """Who has the newest state that this member has.

    Args:
        round: its round.
        is_newest: the run may still need it: it is not the genesis, nor the last round's, nor older than another's.
        holders: others that stay and have it.
        others: how many stay, whatever they have.
        run_waits: whether no round can be made any more when this member is gone and nobody speaks for it.
        seconds: that giving it away may take on this member's line.
        is_stalled: nobody has asked for a piece of it for so long that nobody will.
    """

    round: int
    is_newest: bool
    holders: frozenset[str] = frozenset()
    others: int = 0
    run_waits: bool = False
    seconds: float = 0.0
    is_stalled: bool = False


def giving_s(size_bytes: int, line_bytes_s: float) -> float:
    """How long to wait until another has fetched a state: three times what it needs on this line.

    Args:
        line_bytes_s: this member's uplink; 0: not measured.

    >>> giving_s(50_000_000, 2_500_000), giving_s(1000, 0)
    (80.0, 20.003)
    """
    return LEAST_S + TIMES * size_bytes / (line_bytes_s or GUESSED_BYTES_S)


class LastCopy:
    """Looks for other copies of this member's head."""

    def __init__(self, heads: Heads, talk: Talk, card: RunCard, shelf: Shelf, state: State) -> None:
        self._heads, self._talk, self._card = heads, talk, card
        self._shelf, self._state = shelf, state
        self._since: float | None = None  # when it was first asked, time.monotonic()
        self._shown: set[tuple[str, str]] = set()  # (peer id, state) of those that have given a piece of it

    async def look(self) -> Copies:
        """What is so now; asks others, for `CHECK_S` at most."""
        now = time.monotonic()
        self._since = self._since or now
        head, rounds, me = self._shelf.head, self._card.spec.run.rounds, self._talk.me
        staying = [view for view in views.alive(self._state, now) if not view.said.leaving]
        over = head.round == 0 or (rounds and head.round >= rounds)
        if over or self._state.ledger_round > head.round or await self._is_behind(staying):
            return Copies(head.round, False)
        acceptors, line = turns.acceptors(self._state), views.up_bytes_s(self._state)
        patience_s = max(STALLED_S, giving_s(PIECE_BYTES, line))
        return Copies(
            round=head.round,
            is_newest=True,
            holders=await self._holders(staying),
            others=len(staying),
            run_waits=not has_majority(set(acceptors) - {me}, acceptors),
            seconds=giving_s(4 * head.state.parameters.numel() * (1 + len(head.state.outer)), line),
            is_stalled=now - max(self._since, self._heads.asked_at) >= patience_s,
        )

    async def _holders(self, staying: list[View]) -> frozenset[str]:
        head = self._shelf.head
        there = {view.peer for view in staying if view.said.base == head.digest}
        known = {peer for peer in there if peer in head.weights or (peer, head.digest) in self._shown}
        return frozenset(known or await self._those_that_show(there))

    async def _those_that_show(self, peers: set[str]) -> set[str]:
        state, talk = self._shelf.head.state, self._talk

        async def check(peer: str) -> None:
            if await holds(talk.node, talk.stream_name("state"), talk.certificate, peer, state):
                self._shown.add((peer, state.digest))

        await _some(peers, check)
        return {peer for peer in peers if (peer, state.digest) in self._shown}

    async def _is_behind(self, staying: list[View]) -> bool:
        """Whether somebody shows that the run has gone on without this member."""
        found: list[str] = []

        async def check(peer: str) -> None:
            if await self._shows_later(peer):
                found.append(peer)

        await _some({view.peer for view in staying if view.said.round > self._state.round}, check)
        return bool(found)

    async def _shows_later(self, peer: str) -> bool:
        """Whether a member shows that the run has gone on from this member's head: nothing is fetched."""
        state, last = self._state, self._shelf.head.last
        shown = await self._heads.ask(peer, last.round, state.config.timing.head_soon_s)
        if not isinstance(shown, HeadShown) or not shown.chain or shown.chain[0].round != last.round + 1:
            return False
        try:
            follow.check_chain(self._card.spec, last, shown.chain, state.word)
        except (FormatError, RefusedError):
            return False
        return True


async def _some(peers: set[str], check: Callable[[str], Awaitable[None]]) -> None:
    """Ask some of them at the same time, another choice each time."""
    chosen = random.sample(sorted(peers), min(CHECKED_AT_ONCE, len(peers)))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CHECK_S):
            await asyncio.gather(*(check(peer) for peer in chosen))
