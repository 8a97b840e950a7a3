"""Who becomes a member: challenges, admission codes, limits, certificates. `service` calls `Admission`.

Keys cost nothing, so a run is by invite unless its host says `open = true`: the invite holds a code, which nothing
tells that the coordinator shows to strangers. New identities come in at most so fast from one network, and there are at
most so many; whoever has worked is never shut out.

A challenge keeps no state until it is used: it carries its own deadline and an HMAC that binds it to one peer id.

    challenge, 56 bytes: 16 random | deadline, Unix seconds, u64 big-endian | HMAC-SHA256 over both and the peer id

    >>> challenges = Challenges(key=bytes(32))
    >>> challenge = challenges.issue("12D3KooWexample", now=1000.0)
    >>> challenges.check(challenge, "12D3KooWexample", now=1030.0)
    >>> challenges.check(challenge, "12D3KooWexample", now=1061.0)
    Traceback (most recent call last):
    ...
    protocol.errors.RefusedError: the challenge is older than 60 s
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import os
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.bans import LEAST_CHARS, Bans
from coordinator.invites import Invites
from coordinator.ledger import Ledger
from coordinator.per_minute import PerMinute
from coordinator.store.database import Tables
from protocol import certificate
from protocol.errors import FormatError, InputError, NetworkError, RefusedError
from protocol.invite import Invite
from protocol.keys import peer_public_key, verify_peer_signature
from protocol.rpc import MAX_CHALLENGE_BYTES, MAX_CODE_CHARS, enroll_message

logger = logging.getLogger(__name__)

CHALLENGE_LIFETIME_S = 60
MAX_USED = 100_000  # challenges that were answered and have not expired
MAX_ASKING = 1000  # newcomers that wait for the host's word; more are not written down
MAX_GUESSERS = 10_000  # networks that sent a wrong code
RENEWED_S = 60.0  # a renewal that follows another so soon is not written down
LONGEST_WAIT_S = 64.0  # after wrong codes
_CHALLENGE = struct.Struct(">16sQ32s")


class Challenges:
    """Gives out challenges and takes each back once."""

    def __init__(self, key: bytes | None = None) -> None:
        self._key = os.urandom(32) if key is None else key
        self._used: OrderedDict[bytes, int] = OrderedDict()  # HMAC -> deadline

    def issue(self, peer_id: str, now: float) -> bytes:
        nonce, deadline = os.urandom(16), int(now) + CHALLENGE_LIFETIME_S
        return _CHALLENGE.pack(nonce, deadline, self._tag(nonce, deadline, peer_id))

    def check(self, challenge: bytes, peer_id: str, now: float) -> None:
        """Check that this challenge was issued to this peer and is fresh.

        Raises:
            FormatError: not a challenge.
            RefusedError: another coordinator's, another peer's, or too old.
        """
        nonce, deadline, tag = self._parse(challenge)
        if not hmac.compare_digest(tag, self._tag(nonce, deadline, peer_id)):
            raise RefusedError("the challenge was not given to this peer by this coordinator", "ask for a new one")
        if now > deadline:
            raise RefusedError(f"the challenge is older than {CHALLENGE_LIFETIME_S} s", "ask for a new one")

    def use(self, challenge: bytes, now: float) -> None:
        """Spend a challenge that was checked.

        Raises:
            RefusedError: it was spent before.
            NetworkError: too many were spent in the last minute.
        """
        _, deadline, tag = self._parse(challenge)
        while self._used and next(iter(self._used.values())) < now:
            self._used.popitem(last=False)
        if tag in self._used:
            raise RefusedError("the challenge was used before", "ask for a new one")
        if len(self._used) >= MAX_USED:
            raise NetworkError("too many peers enroll at once", "try again in a minute")
        self._used[tag] = deadline

    def _tag(self, nonce: bytes, deadline: int, peer_id: str) -> bytes:
        return hmac.digest(self._key, nonce + deadline.to_bytes(8, "big") + peer_id.encode(), hashlib.sha256)

    def _parse(self, challenge: bytes) -> tuple[bytes, int, bytes]:
        if len(challenge) != _CHALLENGE.size or len(challenge) > MAX_CHALLENGE_BYTES:
            raise FormatError(f"a challenge has {_CHALLENGE.size} bytes, got {len(challenge)}")
        nonce, deadline, tag = _CHALLENGE.unpack(challenge)
        return nonce, deadline, tag


class CodeGuard:
    """Compares admission codes, and makes a network that sends wrong ones wait, twice as long each time."""

    def __init__(self, code: str | None) -> None:
        self._code = code
        self._guessers: OrderedDict[str, tuple[int, float]] = OrderedDict()  # address -> (wrong codes, wait until)

    def check(self, code: str, address: str, now: float) -> None:
        """Check a code that came from `address`. None at all is no guess, and makes nobody wait.

        Raises:
            RefusedError: a wrong code, or one that came before the wait was over.
        """
        if self._code is None:
            return
        if not code:
            raise _uninvited()
        wrong, until = self._guessers.get(address, (0, 0.0))
        if now < until:
            raise RefusedError(
                f"too many wrong admission codes: wait {until - now:.0f} s", "ask the host for a fresh invite"
            )
        if len(code) <= MAX_CODE_CHARS and hmac.compare_digest(code.encode(), self._code.encode()):
            self._guessers.pop(address, None)
            return
        self._guessers[address] = (wrong + 1, now + min(2.0**wrong, LONGEST_WAIT_S))
        self._guessers.move_to_end(address)
        if len(self._guessers) > MAX_GUESSERS:
            self._guessers.popitem(last=False)
        raise _uninvited()


def _uninvited() -> RefusedError:
    hint = "ask the host for an invite with the code"
    return RefusedError("this run is by invite: the admission code is wrong or missing", hint)


@dataclass(frozen=True)
class Policy:
    """Whom a run lets in, beyond the code.

    Args:
        max_members: so many certificates that have not ended.
        per_minute: so many new members from one network.
        approve: the host says yes itself to each new member that has no invite of its own.
    """

    max_members: int = 10_000
    per_minute: int = 20
    approve: bool = False


class Admission:
    """Makes members of one run.

    Args:
        ledger: in whose store the members are; it says who is banned.
        key: signs certificates; the run card names it.
        run: run digest.
        code: the admission code; None admits everyone who has the invite.
        lifetime_s: of certificates.
        reducer_code: admits, too, and makes its holder a trusted reducer; None: there are none.
    """

    def __init__(
        self,
        ledger: Ledger,
        key: Ed25519PrivateKey,
        run: str,
        code: str | None,
        lifetime_s: int,
        reducer_code: str | None = None,
        policy: Policy = Policy(),
    ) -> None:
        self._store, self._key, self._run, self._lifetime_s = ledger.store, key, run, lifetime_s
        self.bans = Bans(ledger, key, run)
        self.invites = Invites(ledger.store)
        self._policy, self._newcomers = policy, PerMinute(policy.per_minute)
        self._challenges = Challenges()
        self._guard = CodeGuard(code)
        self._code = code or ""
        self._reducer_guard = CodeGuard(reducer_code) if reducer_code else None
        self._lock = threading.Lock()

    def challenge(self, peer_id: str, now: float | None = None) -> bytes:
        """A challenge for `peer_id`. Raises: FormatError: not a peer id."""
        peer_public_key(peer_id)
        return self._challenges.issue(peer_id, time.time() if now is None else now)

    def enroll(
        self, peer_id: str, challenge: bytes, signature: bytes, code: str, address: str, now: float | None = None
    ) -> str:
        """Admit a peer, or renew its membership; returns its certificate. A member that renews needs no code.

        Args:
            address: the network that the call came from; wrong codes and newcomers are counted by it.

        Raises:
            FormatError: not a peer id or not a challenge.
            RefusedError: it is banned; the challenge, the signature or the code does not hold; or the run is full.
            NetworkError: too many newcomers from there, or the host has not said yes to it yet; it may try again.
        """
        now = time.time() if now is None else now
        self.bans.check(peer_id)
        self._challenges.check(challenge, peer_id, now)
        verify_peer_signature(peer_id, signature, enroll_message(self._run, challenge))
        with self._store.reading() as tables:
            known = tables.members.renewed(peer_id) is not None
        own = self.invites.is_one(code)
        with self._lock:
            reducer = not own and self._is_reducer(code, address, now)
            if not known and not reducer and not own:
                self._guard.check(code, address, now)
            if not known and not self._is_approved(peer_id):
                self._count_newcomer(address, now)
                if not own and not reducer:
                    self._ask_for(peer_id, now)
            self._challenges.use(challenge, now)
        self._enter(peer_id, code, now)
        return certificate.issue(
            self._key, run=self._run, peer_id=peer_id, lifetime_s=self._lifetime_s, now=now, reducer=reducer
        )

    def _count_newcomer(self, network: str, now: float) -> None:
        """Raises: NetworkError: too many came from there."""
        if wait_s := self._newcomers.take(network, now):
            raise NetworkError(
                f"too many new members from your network at once: wait {wait_s:.0f} s", "it is tried again by itself"
            )

    def orders(self, run: Invite) -> dict[str, Callable[..., dict[str, Any]]]:
        """What the owner may order here, by name (`coordinator.orders`); `run`: the run's own invite."""
        invite = self.invites.giving(run, is_open=run.code is None and not self._policy.approve)
        return {
            "ban": self.bans.ban,
            "unban": self.bans.unban,
            "approve": self.approve,
            "invite": invite,
            "revoke": self.invites.revoke,
        }

    def approve(self, peer: str) -> dict[str, Any]:
        """Say yes to a newcomer, before or after it asks.

        Args:
            peer: its id, or the end of it, of one that asks.

        Raises:
            InputError: nobody that asks, or several, are called so.
        """
        with self._store.writing() as tables:
            asking = [row.peer_id for row in tables.invites.asking(MAX_ASKING)]
            found = [asks for asks in asking if asks.endswith(peer)] if len(peer) >= LEAST_CHARS else []
            if len(found) != 1:
                try:
                    peer_public_key(peer)
                except FormatError as error:
                    raise InputError(
                        f"{len(found)} newcomers that ask have an id that ends in {peer}",
                        f"give its last {LEAST_CHARS} characters or more, or the whole of it before it asks",
                    ) from error
                found = [peer]
            tables.invites.newcomer(found[0], time.time()).approved = True
        logger.info("approved %s", found[0])
        return {"peer_id": found[0]}

    def _is_approved(self, peer_id: str) -> bool:
        if not self._policy.approve:
            return False
        with self._store.reading() as tables:
            return tables.invites.is_approved(peer_id)

    def _ask_for(self, peer_id: str, now: float) -> None:
        """Raises: NetworkError: its host says yes to each newcomer itself, and has not yet."""
        if not self._policy.approve:
            return
        with self._store.writing() as tables:
            if len(tables.invites.asking(MAX_ASKING)) < MAX_ASKING:
                tables.invites.newcomer(peer_id, now)
        raise NetworkError(
            f"the host lets each new member in itself: send it this peer's id, {peer_id}",
            "it is tried again by itself",
        )

    def _enter(self, peer_id: str, code: str, now: float) -> None:
        """Write down that a peer is a member. Raises: RefusedError: the run is full, or the invite is used up."""
        with self._store.reading() as tables:
            renewed = tables.members.renewed(peer_id)
        if renewed is not None and abs(now - renewed) < RENEWED_S:
            return
        with self._store.writing() as tables:
            renewed = tables.members.renewed(peer_id)
            if renewed is None or renewed + self._lifetime_s < now:
                self._check_room(tables, peer_id, now)
            if renewed is None:
                self.invites.use(tables, code, peer_id, now)
            tables.members.renew(peer_id, now)
        if renewed is None:
            logger.info("admitted %s", peer_id)

    def _check_room(self, tables: Tables, peer_id: str, now: float) -> None:
        """Raises: RefusedError: as many as there may be hold certificates, and this one has no credit."""
        held = tables.members.count_since(now - self._lifetime_s)
        if held >= self._policy.max_members and not tables.credits.has(peer_id):
            raise RefusedError(
                f"this run is full: it has {held} members, and its host allows {self._policy.max_members}",
                "try again when some have left, or ask the host to raise host.max_members",
            )

    def _is_reducer(self, code: str, address: str, now: float) -> bool:
        """Whether the code is the trusted reducers'; whoever guesses at it waits, and is an ordinary peer meanwhile."""
        if self._reducer_guard is None or code in ("", self._code):
            return False
        with contextlib.suppress(RefusedError):
            self._reducer_guard.check(code, address, now)
            return True
        return False
