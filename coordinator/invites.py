"""Invites of one's own for each person or group: a code with a quota and an end, kept as its digest. `Admission` asks.

A newcomer's code is the run's own, which `invite.txt` holds, or one of these. Whoever is banned takes along the invite
that it came by: nobody comes in by it any more, while those who did stay.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any

from coordinator.store.database import Store, Tables
from protocol.canonical import sha256_hex
from protocol.errors import InputError, RefusedError
from protocol.invite import Invite

DAY_S = 86_400.0
MOST_USES, MOST_DAYS, MAX_NOTE_CHARS = 10_000, 3650, 60


class Invites:
    """The invites of one run."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def make(self, note: str, uses: int, days: int, now: float | None = None) -> str:
        """A new code.

        Args:
            note: whom it is for; each is given once.
            uses: how many may come in by it.
            days: for so long.

        Raises:
            InputError: one of them is out of bounds, or the note is taken.
        """
        now = time.time() if now is None else now
        if not 0 < len(note) <= MAX_NOTE_CHARS or not 0 < uses <= MOST_USES or not 0 < days <= MOST_DAYS:
            raise InputError(
                f"an invite has a note of 1 to {MAX_NOTE_CHARS} characters, 1 to {MOST_USES} uses and 1 to {MOST_DAYS} "
                "days"
            )
        code = secrets.token_urlsafe(16)
        with self._store.writing() as tables:
            if tables.invites.noted(note) is not None:
                raise InputError(f"there is an invite with the note {note} already", "give another note")
            tables.invites.add(_digest(code), note, uses, now + days * DAY_S)
        return code

    def giving(self, run: Invite, *, is_open: bool) -> Callable[[str, int, int], dict[str, Any]]:
        """What makes an invite when the owner asks; arguments as for `make`.

        Args:
            run: the run's own invite.
            is_open: whoever reaches the host may join.
        """

        def give(note: str, uses: int, days: int) -> dict[str, Any]:
            if is_open:
                raise InputError(
                    "this run is open: whoever reaches this host can join", "take open = true out of run.toml"
                )
            return {"invite": str(run.model_copy(update={"code": self.make(note, uses, days)}))}

        return give

    def revoke(self, note: str) -> dict[str, Any]:
        """Let nobody in by an invite any more. Raises: InputError: there is none with this note."""
        with self._store.writing() as tables:
            row = tables.invites.noted(note)
            if row is None:
                raise InputError(f"there is no invite with the note {note}", "`potluck invites FOLDER` lists them")
            row.revoked = True
            return {"note": note, "uses": row.uses, "most": row.most}

    def is_one(self, code: str) -> bool:
        """Whether a code is one of these, good or not."""
        with self._store.reading() as tables:
            return bool(code) and tables.invites.find(_digest(code)) is not None

    def use(self, tables: Tables, code: str, peer_id: str, now: float) -> None:
        """Let a newcomer in by a code, if it is one of these; in the transaction that enters it as a member.

        Raises:
            RefusedError: it was revoked, is over, or was used up.
        """
        row = tables.invites.find(_digest(code)) if code else None
        if row is None:
            return
        if row.revoked:
            raise RefusedError("this invite is no longer good", _HINT)
        if now > row.ends:
            raise RefusedError("this invite is over", _HINT)
        if row.uses >= row.most:
            raise RefusedError(f"this invite was for {row.most}, and so many have come in by it", _HINT)
        row.uses += 1
        tables.invites.note_use(peer_id, row)


_HINT = "ask the host for another one"


def _digest(code: str) -> str:
    return sha256_hex(code.encode())
