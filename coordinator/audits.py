"""The audits of one run on its host: who is to show the work of which claim, and what was shown until it is replayed.

`reports` draws which claims are replayed, `service` asks for them and takes what comes, `auditor` replays it.

    reveals/<claim>/    head.json, reveal.bin: as `protocol.reveal` has them
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from coordinator.ledger import Ledger
from coordinator.store.database import Tables
from coordinator.store.rows import ClaimRow
from peer.training.reveal import size_of
from protocol import disk
from protocol.agreement import Agreement
from protocol.audit import MOST_LATER
from protocol.credit_book import due_to_draw, due_until
from protocol.digests import Digest
from protocol.errors import FormatError
from protocol.ledger_entry import ClaimEntry, parse_entry
from protocol.reveal import RevealHead
from protocol.run_card import RunCard
from protocol.signed import Signed
from protocol.statements import Claim

logger = logging.getLogger(__name__)

MOST_ASKED = 16  # claims of one member at a time
MOST_WAITING = 8  # reveals on this disk, or on their way to it
HEAD, BYTES, PART = "head.json", "reveal.bin", ".part"


class ToShow(NamedTuple):
    """What a member hears of its claims."""

    drawn_until: int  # up to this round it is drawn what is replayed
    claims: tuple[Digest, ...]  # of its own, which it is to show


@dataclass(frozen=True)
class Drawn:
    """A claim that was drawn."""

    row: ClaimRow
    digest: Digest
    agreement: Agreement  # of its round

    @property
    def claim(self) -> Signed[Claim]:
        return next(made for made in self.agreement.claims if made.digest == self.digest)


class AuditDesk:
    """Asks for reveals and keeps them; safe to use from several threads.

    Args:
        folder: `reveals` in the run folder.
        show_s: from asking for a claim that nothing is shown of, to its verdict, at least; meanwhile its author has no
            credit.
    """

    def __init__(self, ledger: Ledger, card: RunCard, folder: Path, show_s: float) -> None:
        self._ledger, self._card, self.folder, self._show_s = ledger, card, folder, show_s
        self.is_on = card.spec.audit.share > 0
        self._lock = threading.Lock()
        self._coming: set[Digest] = set()  # claims that are being received
        self._asked: dict[Digest, float] = {}  # since when, time.monotonic()
        self._turned_away: dict[Digest, float] = {}  # when there was no room here last, likewise
        self.wake = threading.Event()  # something has come

    def ask(self, peer_id: str) -> ToShow:
        """What a member is to show now."""
        if not self.is_on:
            return ToShow(0, ())
        with self._ledger.store.reading() as tables:
            until = due_to_draw(tables.rounds.newest(), self._card.spec.run.rounds)
            digests = [_digest(tables, row) for row in tables.claims.drawn(peer_id)]
        wanted = tuple(digest for digest in digests if not self.has(digest))[:MOST_ASKED]
        with self._lock:
            for digest in wanted:
                self._asked.setdefault(digest, time.monotonic())
        return ToShow(until, wanted)

    def has(self, claim: Digest) -> bool:
        """Whether this claim's reveal is here."""
        return (self.folder / claim).is_dir()

    def receive(self, peer_id: str, claim: Digest, head: bytes, pieces: Iterable[bytes]) -> bool:
        """Take what a member shows; False: it is not wanted, or there is no room for it now.

        Raises:
            FormatError, VerificationError: not what the claim names.
            InputError: the disk is full.
        """
        drawn = self._find(peer_id, claim)
        if drawn is None or not self._begin(claim):
            return False
        partial = self.folder / (claim + PART)
        try:
            read = RevealHead.from_bytes(head, drawn.claim.value)
            size = size_of(read, drawn.claim.value)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            with disk.writing(self.folder):
                disk.check_room(self.folder, size)
                (partial / HEAD).write_bytes(head)
                _write(partial / BYTES, size, pieces)
                os.replace(partial, self.folder / claim)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            with self._lock:
                self._coming.discard(claim)
        self.wake.set()
        return True

    def next(self) -> tuple[Drawn, Path] | None:
        """A claim whose reveal is here, and its folder; what nobody wants any more is thrown away."""
        found = sorted(self.folder.glob("*"), key=lambda path: path.stat().st_mtime) if self.folder.is_dir() else []
        with self._ledger.store.reading() as tables:
            drawn = {_digest(tables, row): row for row in tables.claims.drawn()} if found else {}
            for path in found:
                if path.name in drawn:
                    return _drawn(tables, drawn[path.name]), path
                if path.suffix != PART:
                    shutil.rmtree(path, ignore_errors=True)
        return None

    def before(self, drawn: Drawn) -> tuple[Agreement | None, list[Agreement]]:
        """The round that a claim's work goes on from, and later ones of its author, if they are too many."""
        trajectory = drawn.claim.value.trajectory
        start = trajectory.start if trajectory is not None else None
        if start is None:
            return None, []
        with self._ledger.store.reading() as tables:
            data = tables.rounds.agreement(start.round)
            later = tables.claims.rounds_between(drawn.row, start.round)
            many = [_agreement(tables, round) for round in later[:MOST_LATER]] if len(later) >= MOST_LATER else []
        return Agreement.stored(data) if data is not None else None, many

    def unshown(self) -> list[tuple[Drawn, bool]]:
        """Claims that nothing was shown of for too long, and whether that is because there was no room here."""
        now, least, found = time.monotonic(), self._card.spec.audit.reveal_rounds, []
        with self._ledger.store.reading() as tables:
            for row in tables.claims.drawn():
                digest = _digest(tables, row)
                with self._lock:
                    asked, no_room = self._asked.get(digest), self._turned_away.get(digest)
                    is_coming = digest in self._coming
                if asked is None or is_coming or self.has(digest):
                    continue
                if now - max(asked, no_room or 0.0) < self._show_s:
                    continue
                if tables.claims.later(row) >= least:
                    found.append((_drawn(tables, row), no_room is not None))
        return found

    def drop(self, claim: Digest) -> None:
        """This reveal is not needed any more."""
        shutil.rmtree(self.folder / claim, ignore_errors=True)
        with self._lock:
            self._asked.pop(claim, None)
            self._turned_away.pop(claim, None)

    def due(self, tables: Tables) -> int:
        """The round up to which claims are credit now."""
        spec = self._card.spec
        return due_until(tables.rounds.newest(), hold=spec.credit.hold_rounds, last=spec.run.rounds)

    def _begin(self, claim: Digest) -> bool:
        with self._lock:
            if claim in self._coming or self.has(claim):
                return False
            waiting = len(list(self.folder.glob("*"))) if self.folder.is_dir() else 0
            if waiting >= MOST_WAITING:
                self._turned_away[claim] = time.monotonic()
                return False
            self._coming.add(claim)
            return True

    def _find(self, peer_id: str, claim: Digest) -> Drawn | None:
        with self._ledger.store.reading() as tables:
            for row in tables.claims.drawn(peer_id):
                if _digest(tables, row) == claim:
                    return _drawn(tables, row)
        return None


def _digest(tables: Tables, row: ClaimRow) -> Digest:
    entry = parse_entry(tables.log.leaf(row.leaf))
    assert isinstance(entry, ClaimEntry), "its row says so"
    return entry.claim


def _drawn(tables: Tables, row: ClaimRow) -> Drawn:
    return Drawn(row, _digest(tables, row), _agreement(tables, row.round))


def _agreement(tables: Tables, round: int) -> Agreement:
    data = tables.rounds.agreement(round)
    assert data is not None, "a claim stands in the ledger with its round"
    return Agreement.stored(data)


def _write(path: Path, size: int, pieces: Iterable[bytes]) -> None:
    """Raises: FormatError: another number of bytes."""
    with path.open("wb") as file:
        for piece in pieces:
            if file.tell() + len(piece) > size:
                raise FormatError("a reveal that is longer than its head says")
            file.write(piece)
        if file.tell() != size:
            raise FormatError("a reveal that is shorter than its head says")
        file.flush()
        os.fsync(file.fileno())
