"""Who is there: the other members as this one sees them, each by what it last said of itself.

Only authenticated peers with a valid certificate get in; what they say of their progress is believed for scheduling
alone, never for credit. Somebody of whom nothing has been heard for `ALIVE_S`, not a byte, is not counted on.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from peer.swarm.farewells import MAX_FAREWELLS, Farewells
from protocol import certificate, swarm_pb2
from protocol.certificate import Membership
from protocol.errors import RefusedError
from protocol.statements import open_farewell

INTERVAL_S = 0.3  # between two progress messages to one member
PEERS_AT_FULL_PACE = (
    8  # beyond that, members report less often: of eight it takes 0.5 Mbit/s of each uplink, of more no more
)
ALIVE_S = 3.0  # at full pace
CALL_S = 3.0  # for a small message and its answer, on a line that is not slow
CALL_MOST_S = 20.0
CALLS_MANY = 4.0  # times as long as an answer took lately
FORGET_S = 120.0
MAX_MEMBERS = 4096
_MAX_TOKENS = 2**53


@dataclass
class MemberView:
    """What one member last said of itself."""

    peer_id: str
    round: int
    base: str
    tokens: int
    attempt: int
    leaving: bool
    reduce_only: bool  # trains nothing, and is trusted by the host to reduce for all
    step_s: float
    addresses: tuple[str, ...]
    hears: int  # other members
    up_bytes_s: float
    from_me_bytes_s: float  # how fast this peer's parts came to it
    heard: float  # time.monotonic()
    patience_s: float = CALL_S  # for its answers: they queue behind bulk on a slow line


class MemberBook:
    """All members heard of."""

    def __init__(self, run: str, membership_key: Ed25519PublicKey) -> None:
        self._run, self._key = run, membership_key
        self._views: dict[str, MemberView] = {}
        self._farewells: dict[int, Farewells] = {}  # by round
        self.speakers: frozenset[str] = frozenset()  # whose weight counts in the round in hand, heard of or not
        self._checked: dict[str, tuple[str, Membership]] = {}  # peer id -> (certificate, what it says)

    def admit(self, peer_id: str, token: str) -> None:
        """Check that an authenticated peer is a member of this run.

        Raises:
            FormatError, RefusedError: it is not.
        """
        known = self._checked.get(peer_id)
        if known and known[0] == token and time.time() < known[1].expires:
            return
        membership = certificate.check(token, self._key, run=self._run)
        if membership.peer_id != peer_id:
            raise RefusedError("the certificate is another peer's")
        if len(self._checked) >= MAX_MEMBERS:
            self._checked.clear()
        self._checked[peer_id] = (token, membership)

    def is_admitted(self, peer_id: str) -> bool:
        """Whether this peer has shown a certificate that still holds."""
        known = self._checked.get(peer_id)
        return known is not None and time.time() < known[1].expires

    def certificate(self, peer_id: str) -> str:
        """The certificate that an admitted member has shown."""
        return self._checked[peer_id][0]

    def note(self, peer_id: str, message: swarm_pb2.Progress) -> MemberView:
        """Keep what an admitted member says."""
        trusted = peer_id in self._checked and self._checked[peer_id][1].reducer
        view = MemberView(
            peer_id=peer_id,
            round=message.round,
            base=message.base[:64],
            tokens=min(message.tokens, _MAX_TOKENS),
            attempt=min(message.attempt, 10**6),
            leaving=message.leaving,
            reduce_only=message.reduce_only and trusted,
            step_s=_sane(message.step_s),
            addresses=tuple(message.addresses[:16]) or self.addresses(peer_id),
            hears=min(message.hears, MAX_MEMBERS),
            up_bytes_s=_sane(message.up_bytes_s),
            from_me_bytes_s=_sane(message.from_you_bytes_s),
            heard=time.monotonic(),
        )
        if peer_id in self._views:
            view.patience_s = self._views[peer_id].patience_s
        self._views[peer_id] = view
        return view

    def addresses(self, peer_id: str) -> tuple[str, ...]:
        """Where a member said it is."""
        view = self._views.get(peer_id)
        return view.addresses if view else ()

    def heard(self, peer_id: str) -> None:
        """Something came from this member, whatever it was."""
        if peer_id in self._views:
            self._views[peer_id].heard = time.monotonic()

    def patience_s(self, peer_id: str) -> float:
        """How long to wait for a member's answer."""
        view = self._views.get(peer_id)
        return view.patience_s if view else CALL_S

    def slowness_s(self, peer_id: str) -> float:
        """The same for a member on a slow line, 0 for others."""
        patience_s = self.patience_s(peer_id)
        return patience_s if patience_s > CALL_S else 0.0

    def answered(self, peer_id: str, seconds: float | None) -> None:
        """An answer took so long, or did not come in time (None)."""
        view = self._views.get(peer_id)
        if view is not None:
            usual = 0.9 * view.patience_s if seconds is not None else 1.5 * view.patience_s
            view.patience_s = min(max(usual, CALLS_MANY * (seconds or 0.0), CALL_S), CALL_MOST_S)

    def lost(self, peer_id: str, since: float) -> None:
        """A call to this member failed, and nothing else was heard of it `since` (time.monotonic()): do not count on it."""
        view = self._views.get(peer_id)
        if view is not None and view.heard < since:
            view.heard = min(view.heard, time.monotonic() - self._alive_s(view))

    @property
    def interval_s(self) -> float:
        """How long to wait between two progress messages to one member."""
        slowness = statistics.median([view.patience_s for view in self._views.values()] or [CALL_S]) / CALL_S
        return INTERVAL_S * max(len(self._views) / PEERS_AT_FULL_PACE, slowness)

    def _alive_s(self, view: MemberView) -> float:
        return max(ALIVE_S, 4 * self.interval_s, self.slowness_s(view.peer_id))

    def silent_s(self, peer_id: str) -> float:
        """How long nothing has been heard of a member; infinite for one never heard of."""
        view = self._views.get(peer_id)
        return time.monotonic() - view.heard if view else float("inf")

    def alive(self) -> list[MemberView]:
        now = time.monotonic()
        self._views = {peer: view for peer, view in self._views.items() if now - view.heard < FORGET_S}
        return [view for view in self._views.values() if now - view.heard < self._alive_s(view)]

    def is_alive(self, peer_id: str) -> bool:
        view = self._views.get(peer_id)
        return view is not None and time.monotonic() - view.heard < self._alive_s(view)

    def known(self) -> list[MemberView]:
        return list(self._views.values())

    def get(self, peer_id: str) -> MemberView | None:
        return self._views.get(peer_id)

    def together(self, round: int, base: str) -> list[MemberView]:
        """Live members that work on this round from this base, and stay."""
        return [view for view in self.alive() if (view.round, view.base, view.leaving) == (round, base, False)]

    def take_farewells(self, envelopes: Iterable[bytes], round: int) -> None:
        """Keep what was heard of members that leave in this round or the next. Raises: FormatError, RefusedError."""
        self._farewells = {number: known for number, known in self._farewells.items() if number >= round}
        for data in itertools.islice(envelopes, MAX_FAREWELLS):
            if any(data == known for farewells in self._farewells.values() for known in farewells.envelopes):
                continue
            signed = open_farewell(data)
            said = signed.value
            known = self._farewells.get(said.round, Farewells())
            near = round <= said.round <= round + 1 and len(known.by_peer) < MAX_FAREWELLS
            # a stranger's counts for nothing, and anybody can make as many as they like
            speaks = signed.by in self.speakers or self.is_admitted(signed.by)
            if said.run == self._run and near and speaks:
                self._farewells[said.round] = known.joined(Farewells({signed.by: signed}))

    def farewells(self, round: int) -> Farewells:
        """All that is known for a round."""
        return self._farewells.get(round, Farewells())

    def to_relay(self) -> list[bytes]:
        return [data for farewells in self._farewells.values() for data in farewells.envelopes]

    def ahead(self, round: int) -> list[MemberView]:
        """Live members that say they stand on a later round than this one, the furthest first."""
        return sorted((view for view in self.alive() if view.round - 1 > round), key=lambda view: -view.round)


def _sane(value: float) -> float:
    return value if 0 <= value < 1e12 else 0.0
