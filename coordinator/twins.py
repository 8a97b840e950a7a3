"""One identity on two computers: a home that was copied. `service` tells both, by what they announce.

Each process draws a session at its start, signs it, and shows it with every announcement. A restart is a change of
session; only two processes that run at the same time take turns. Who was there first goes on, and the other is to stop:
two that sign by one key could sign for two states. Whoever has but seen a member's certificate cannot announce as that
member while it is there.

    >>> from protocol.keys import PeerIdentity
    >>> from protocol.rpc import draw_session
    >>> run, me = "ab" * 32, PeerIdentity.generate()
    >>> twins, (a, b, c) = Twins(run), [draw_session(me, run) for _ in range(3)]
    >>> [twins.seen(me.peer_id, session, now) for session, now in ((a, 0.0), (b, 2.0), (b, 4.0))]  # a restart
    [<Twin.NONE: 0>, <Twin.NONE: 0>, <Twin.NONE: 0>]
    >>> [twins.seen(me.peer_id, session, now) for session, now in ((c, 6.0), (b, 7.0), (c, 8.0))]  # a copy
    [<Twin.NONE: 0>, <Twin.CAME_LATER: 1>, <Twin.CAME_FIRST: 2>]
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field

from protocol.errors import RefusedError
from protocol.rpc import Twin, check_session

logger = logging.getLogger(__name__)

FORGET_S = 60.0  # a session that does not announce itself any more
MAX_PEERS = 10_000


@dataclass
class _Sessions:
    first: bytes
    later: bytes = b""
    seen: dict[bytes, float] = field(default_factory=dict)
    is_proven: bool = False  # the first came again after the later one

    def forget(self, now: float) -> None:
        self.seen = {session: at for session, at in self.seen.items() if now - at <= FORGET_S}
        if self.later not in self.seen:
            self.later, self.is_proven = b"", False


class Twins:
    """Which sessions each identity has announced itself by; safe to use from several threads.

    Args:
        run: run digest.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._peers: dict[str, _Sessions] = {}
        self._lock = threading.Lock()

    def seen(self, peer_id: str, session: bytes, now: float) -> Twin:
        """Note an announcement.

        Args:
            session: empty: from a peer that shows none.
            now: seconds, monotonic.

        Raises:
            FormatError: a session of another length.
            SignatureError: another has made it.
            RefusedError: none is shown, and this peer is here with one.
        """
        with self._lock:
            item = self._peers.get(peer_id)
            if not session:
                if item is not None and any(now - at <= FORGET_S for at in item.seen.values()):
                    raise RefusedError("this member is here, and shows a session with what it announces", "show yours")
                return Twin.NONE
            if item is None or session not in item.seen:
                check_session(session, peer_id, self._run)
            if item is None:
                self._make_room(now)
                item = self._peers[peer_id] = _Sessions(session)
            item.forget(now)
            before = item.is_proven
            twin = _meet(item, session)
            item.seen[session] = now
        if item.is_proven and not before:
            logger.warning("%s: two computers use this identity; the one that came later is told to stop", peer_id)
        return twin

    def _make_room(self, now: float) -> None:
        if len(self._peers) < MAX_PEERS:
            return
        for peer_id, item in list(self._peers.items()):
            item.forget(now)
            if not item.seen:
                del self._peers[peer_id]
        while len(self._peers) >= MAX_PEERS:
            del self._peers[next(iter(self._peers))]


def _meet(item: _Sessions, session: bytes) -> Twin:
    if session == item.first:
        item.is_proven = item.is_proven or bool(item.later)
        return Twin.CAME_LATER if item.is_proven else Twin.NONE
    if session != item.later:  # a restart, or a copy: that is known when the first comes again
        if item.later and not item.is_proven:
            item.first = item.later
        item.later = session
        if not item.seen:
            item.first, item.later = session, b""
    return Twin.CAME_FIRST if item.is_proven and session == item.later else Twin.NONE
