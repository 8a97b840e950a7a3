"""Bans: an entry in the ledger, a signed list for the members, a door that stays shut; for `service` and `host`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.ledger import Ledger, Writing
from protocol.banned import MAX_BANNED, Banned
from protocol.errors import InputError, RefusedError
from protocol.keys import PeerIdentity
from protocol.ledger_entry import MAX_REASON_CHARS, BanEntry, UnbanEntry, parse_entry

logger = logging.getLogger(__name__)

LEAST_CHARS = 6  # of the end of a peer id, to name it by


class Bans:
    """Who is banned from one run.

    Args:
        key: signs membership certificates, and the list.
        run: run digest.
    """

    def __init__(self, ledger: Ledger, key: Ed25519PrivateKey, run: str) -> None:
        self._ledger, self._key, self._run = ledger, key, run
        self._lock = threading.Lock()
        self.number, self.data = 0, b""  # of the newest list, and it, signed; empty: nobody was ever banned
        self._because: dict[str, str] = {}  # peer id -> reason, of whoever is banned
        self._read()

    def why(self, peer_id: str) -> str | None:
        """Why a peer is banned; None: it is not."""
        return self._because.get(peer_id)

    def check(self, peer_id: str) -> None:
        """Raises: RefusedError: it is banned."""
        if (reason := self.why(peer_id)) is not None:
            raise RefusedError(f"the host of this run has banned this peer: {reason}", "ask the host")

    def ban(self, peer: str, reason: str, first: Callable[[Writing], None] = lambda write: None) -> dict[str, object]:
        """Ban a member, named by its id or the end of it; what it has on hold is void.

        Args:
            first: enters in the same transaction what it is banned for.

        Raises:
            InputError: no member, or several, are called so, it is banned already, or the reason is too long.
        """
        with self._lock:
            peer = self._named(peer)
            if peer in self._because:
                raise InputError(f"{peer} is banned already: {self._because[peer]}")
            if len(self._because) >= MAX_BANNED:
                raise InputError(
                    f"{MAX_BANNED} members are banned, which is the most", "let those go who are long gone"
                )
            if not 0 < len(reason) <= MAX_REASON_CHARS:
                raise InputError(f"a reason has 1 to {MAX_REASON_CHARS} characters, got {len(reason)}")
            with self._ledger.writing() as write:
                first(write)
                round = write.tables.rounds.newest()
                void = write.ban(BanEntry(run=self._run, round=round, peer_id=peer, reason=reason))
                if (invite := write.tables.invites.of(peer)) is not None:
                    invite.revoked = True  # it would be back under another name
                note = invite.note if invite is not None else None
            self._read()
        logger.warning("banned %s after round %d: %s; %d tokens on hold are void", peer, round, reason, void)
        return {"peer_id": peer, "round": round, "void_tokens": void, "revoked_invite": note}

    def unban(self, peer: str, reason: str) -> dict[str, object]:
        """End a ban. Raises: InputError: nobody, or several, who are banned are called so."""
        with self._lock:
            found = [banned for banned in self._because if banned.endswith(peer)]
            if len(found) != 1:
                raise InputError(f"{len(found)} banned members have an id that ends in {peer}", "give the whole id")
            with self._ledger.writing() as write:
                round = write.tables.rounds.newest()
                write.unban(UnbanEntry(run=self._run, round=round, peer_id=found[0], reason=reason[:MAX_REASON_CHARS]))
            self._read()
        logger.warning("%s is banned no more", found[0])
        return {"peer_id": found[0], "round": round}

    def _named(self, peer: str) -> str:
        with self._ledger.store.reading() as tables:
            found = tables.members.ending(peer) if len(peer) >= LEAST_CHARS else []
        if len(found) != 1:
            raise InputError(
                f"{len(found)} members have an id that ends in {peer}",
                f"give its last {LEAST_CHARS} characters or more",
            )
        return found[0]

    def _read(self) -> None:
        with self._ledger.store.reading() as tables:
            leaves, self.number = tables.bans.leaves(), tables.bans.newest()
            entries = [parse_entry(tables.log.leaf(leaf)) for leaf in leaves.values()]
        self._because = {entry.peer_id: entry.reason for entry in entries if isinstance(entry, BanEntry)}
        if self.number:
            made = Banned(run=self._run, number=self.number, peers=tuple(sorted(self._because)))
            self.data = made.sign(PeerIdentity(self._key)).data
