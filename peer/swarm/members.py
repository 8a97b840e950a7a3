"""Who is there: the other members as this one sees them, each by what it last said of itself.

Only authenticated peers with a valid certificate get in; what they say of their progress is believed for scheduling
alone, never for credit. Somebody who has not been heard for `ALIVE_S` is not counted on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from peer.round_rules import Branch
from protocol import certificate, swarm_pb2
from protocol.errors import RefusedError

ALIVE_S = 3.0
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
    tokens_per_s: float
    attempt: int
    leaving: bool
    can_reduce: bool
    history_tokens: int
    step_s: float
    addresses: tuple[str, ...]
    heard: float  # time.monotonic()


class MemberBook:
    """All members heard of."""

    def __init__(self, run: str, membership_key: Ed25519PublicKey) -> None:
        self._run, self._key = run, membership_key
        self._views: dict[str, MemberView] = {}
        self._left: dict[
            str, tuple[int, str, bool]
        ] = {}  # peer id -> round and base that it left, whether it had voted
        self._checked: dict[str, tuple[str, int]] = {}  # peer id -> (certificate, expiry)

    def admit(self, peer_id: str, token: str) -> None:
        """Check that an authenticated peer is a member of this run.

        Raises:
            FormatError, RefusedError: it is not.
        """
        known = self._checked.get(peer_id)
        if known and known[0] == token and time.time() < known[1]:
            return
        membership = certificate.check(token, self._key, run=self._run)
        if membership.peer_id != peer_id:
            raise RefusedError("the certificate is another peer's")
        if len(self._checked) >= MAX_MEMBERS:
            self._checked.clear()
        self._checked[peer_id] = (token, membership.expires)

    def is_admitted(self, peer_id: str) -> bool:
        """Whether this peer has shown a certificate that still holds."""
        known = self._checked.get(peer_id)
        return known is not None and time.time() < known[1]

    def note(self, peer_id: str, message: swarm_pb2.Progress) -> MemberView:
        """Keep what an admitted member says."""
        view = MemberView(
            peer_id=peer_id,
            round=message.round,
            base=message.base[:64],
            tokens=min(message.tokens, _MAX_TOKENS),
            tokens_per_s=_sane(message.tokens_per_s),
            attempt=min(message.attempt, 10**6),
            leaving=message.leaving,
            can_reduce=message.can_reduce,
            history_tokens=min(message.history_tokens, _MAX_TOKENS),
            step_s=_sane(message.step_s),
            addresses=tuple(message.addresses[:16]),
            heard=time.monotonic(),
        )
        self._views[peer_id] = view
        if view.leaving:  # kept beyond `FORGET_S`: a round may take longer
            self._left[peer_id] = (view.round, view.base, message.voted)
        else:
            self._left.pop(peer_id, None)
        return view

    def lost(self, peer_id: str) -> None:
        """A call to this member failed: do not count on it until it is heard again."""
        if peer_id in self._views:
            self._views[peer_id].heard = min(self._views[peer_id].heard, time.monotonic() - ALIVE_S)

    def alive(self) -> list[MemberView]:
        now = time.monotonic()
        self._views = {peer: view for peer, view in self._views.items() if now - view.heard < FORGET_S}
        return [view for view in self._views.values() if now - view.heard < ALIVE_S]

    def is_alive(self, peer_id: str) -> bool:
        view = self._views.get(peer_id)
        return view is not None and time.monotonic() - view.heard < ALIVE_S

    def known(self) -> list[MemberView]:
        return list(self._views.values())

    def get(self, peer_id: str) -> MemberView | None:
        return self._views.get(peer_id)

    def together(self, round: int, base: str) -> list[MemberView]:
        """Live members that work on this round from this base, and stay."""
        return [view for view in self.alive() if (view.round, view.base, view.leaving) == (round, base, False)]

    def left(self, round: int, base: str) -> set[str]:
        """Members that left without a vote in this round, and have not been heard to come back.

        One that has voted in it, or went on to the next round, may have committed it: that one is still counted.
        """
        return {
            peer
            for peer, (their_round, their_base, voted) in self._left.items()
            if their_round < round or ((their_round, their_base) == (round, base) and not voted)
        }

    def branches(self) -> list[Branch]:
        """The histories that live members stand on."""
        found: dict[str, Branch] = {}
        for view in self.alive():
            known = found.get(view.base)
            supporters = known.supporters + 1 if known else 1
            found[view.base] = Branch(view.round - 1, view.base, view.history_tokens, supporters)
        return list(found.values())


def _sane(value: float) -> float:
    return value if 0 <= value < 1e12 else 0.0
