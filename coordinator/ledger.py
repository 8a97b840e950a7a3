"""The ledger: an append-only RFC 6962 log in the store, whose every head is signed. Only here entries are appended.

`reports` appends credit and `checkpoints` what is published, each in the same transaction as its own rows:

    with ledger.writing() as write:
        write.tables.rounds.commit(agreement, reporter, now)
        index = write.credit(CreditEntry(...))
    proof = ledger.proof(index)

On start the whole tree is built anew and held against every head that was ever signed, so a ledger that was changed or
cut short does not start.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.store.database import WRITE_TIMEOUT_S, Store, Tables
from coordinator.store.rounds import DRAWN, PENDING
from protocol import merkle, note, tlog_proof
from protocol.audit import Lot, is_drawn
from protocol.checkpoint import LedgerState
from protocol.credit_book import LEAVES
from protocol.digests import Digest
from protocol.errors import FormatError, InputError, NetworkError, RefusedError
from protocol.ledger_entry import (
    AuditEntry,
    BanEntry,
    ClaimEntry,
    CreditEntry,
    Entry,
    LotEntry,
    RunEntry,
    UnbanEntry,
    parse_entry,
)
from protocol.note import LedgerHead
from protocol.run_spec import Audit
from protocol.tlog_proof import LogProof

logger = logging.getLogger(__name__)

_RESTORE = "restore the run folder from a backup; a ledger is never repaired by hand"


class Writing:
    """One transaction: entries of the log, and whatever else stands in the store through `tables`."""

    def __init__(self, tables: Tables, tree: merkle.Tree) -> None:
        self.tables = tables
        self._tree = tree

    def leaf(self, entry: Entry) -> int:
        """Append an entry; returns its index."""
        data = entry.to_bytes()
        index = self._tree.append(merkle.leaf_hash(data))
        self.tables.log.append(index, data)
        return index

    def credit(self, entry: CreditEntry) -> int:
        """Grant credit: its entry and its row; returns the entry's index."""
        index = self.leaf(entry)
        self.tables.credits.grant(index, entry)
        return index

    def hold(self, entry: ClaimEntry) -> None:
        """Enter work whose credit is on hold."""
        self.tables.claims.hold(self.leaf(entry), entry)

    def grant_until(self, round: int) -> None:
        """Make credit of all that is pending from rounds up to this one."""
        for leaf in self.tables.claims.pending_until(round):
            claim = parse_entry(self.tables.log.leaf(leaf))
            assert isinstance(claim, ClaimEntry), "its row says so"
            self.credit(CreditEntry.of(claim))
            self.tables.claims.grant(leaf)

    def draw(self, entry: LotEntry, state: Digest, audit: Audit) -> None:
        """Enter a lot, and hold what it draws until its audit is done; `state`: the newest."""
        self.leaf(entry)
        lot = Lot(entry.run, entry.round, state, entry.link)
        for row, earlier in self.tables.claims.in_lot(entry.round):
            if is_drawn(lot, row.peer_id, earlier, audit):
                row.fate = DRAWN

    def audit(self, entry: AuditEntry) -> None:
        """Enter what came of a drawn claim; nothing, where a ban has voided it meanwhile."""
        drawn = (row for row in self.tables.claims.drawn(entry.peer_id) if row.round == entry.round)
        if (row := next(drawn, None)) is not None:
            self.tables.audits.enter(self.leaf(entry), entry)
            row.fate = PENDING if entry.verdict in LEAVES else "void"

    def ban(self, entry: BanEntry) -> int:
        """Ban a member; returns how many tokens that it had pending are void."""
        self.tables.bans.add(entry.peer_id, self.leaf(entry), begins=True)
        return self.tables.claims.void(entry.peer_id)

    def unban(self, entry: UnbanEntry) -> None:
        """End a ban."""
        self.tables.bans.add(entry.peer_id, self.leaf(entry), begins=False)


class Ledger:
    """The log of one run.

    Args:
        store: where it is kept.
        key: signs heads.
        origin: the log's name (`note.origin`).
        first: leaf 0, appended if the ledger is new.

    Raises:
        InputError: what is stored is not what was signed, or is of another run.
    """

    def __init__(self, store: Store, key: Ed25519PrivateKey, origin: str, first: RunEntry) -> None:
        self.store = store
        self.origin = origin
        self.verifier = note.verifier_key(origin, key.public_key())
        self._key = key
        self._lock = threading.RLock()
        self._tree, self._head, self._note = self._checked()
        if self._tree.size == 0:
            with self.writing() as write:
                write.leaf(first)
        elif self.entry(0) != first.to_bytes():
            raise InputError("ledger.db: leaf 0 is of another run or another root key", _RESTORE)

    @property
    def size(self) -> int:
        """How many leaves the newest signed head vouches for."""
        return self._head.size

    @property
    def head(self) -> LedgerHead:
        return self._head

    @property
    def head_note(self) -> str:
        """The newest signed head."""
        return self._note

    @contextmanager
    def writing(self) -> Iterator[Writing]:
        """A transaction; when it ends well and appended leaves, the new head is signed in it.

        Raises:
            NetworkError: another transaction did not end in time.
        """
        with self._locked():
            size, committed = self._tree.size, False
            try:
                with self.store.writing() as tables:
                    yield Writing(tables, self._tree)
                    head, text = self._head, self._note
                    if self._tree.size != size:
                        head = LedgerHead(self.origin, self._tree.size, self._tree.root)
                        text = note.sign_head(head, self._key)
                        tables.log.sign(head.size, text, time.time())
                committed = True
                self._head, self._note = head, text
            finally:
                if not committed and self._tree.size != size:
                    self._tree, self._head, self._note = self._checked()

    def proof(self, index: int) -> LogProof:
        """The proof that leaf `index` stands in the ledger as it is now."""
        with self._locked():
            return tlog_proof.make(self._tree, index, self._head, self._note)

    def growth(self, size: int) -> tuple[str, list[bytes]]:
        """The newest head's note, and the proof that it extends the ledger of `size` leaves; empty if it does not."""
        with self._locked():
            grown = 0 < size < self._head.size
            return self._note, self._tree.consistency_proof(size, self._head.size) if grown else []

    def state_after(self, parent: LedgerState | None) -> tuple[LedgerState, str]:
        """The newest head as a checkpoint states it, and its note; `parent` is what the parent checkpoint states."""
        with self._locked():
            return LedgerState.of(self._tree, self._head, parent), self._note

    def entry(self, index: int) -> bytes:
        """The data of leaf `index`."""
        with self.store.reading() as tables:
            return tables.log.leaf(index)

    def check_extends(self, head: LedgerHead, where: str) -> None:
        """Check that the ledger still holds what an older head says.

        Raises:
            InputError: it does not: the store is older than `where`, or was changed.
        """
        if head.origin != self.origin:
            raise InputError(f"{where}: of the ledger {head.origin}, expected {self.origin}", _RESTORE)
        with self._locked():
            if head.size > self._tree.size or self._tree.root_at(head.size) != head.root:
                raise InputError(f"ledger.db does not hold the {head.size} leaves that {where} vouches for", _RESTORE)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if not self._lock.acquire(timeout=WRITE_TIMEOUT_S):
            raise NetworkError(f"the ledger was busy for {WRITE_TIMEOUT_S:.0f} s", "try again")
        try:
            yield
        finally:
            self._lock.release()

    def _checked(self) -> tuple[merkle.Tree, LedgerHead, str]:
        """The tree of the stored leaves, and the newest head that was signed, held against each other."""
        tree = merkle.Tree()
        with self.store.reading() as tables:
            for index, data in tables.log.leaves():
                if index != tree.size:
                    raise InputError(f"ledger.db: leaf {tree.size} is missing", _RESTORE)
                tree.append(merkle.leaf_hash(data))
            text = tables.log.newest_head()
        if text is None:
            if tree.size:
                raise InputError(f"ledger.db: {tree.size} leaves, and no signed head", _RESTORE)
            return tree, LedgerHead(self.origin, 0, merkle.EMPTY_ROOT), ""
        try:
            head = note.open_head(text, self.verifier)
        except (FormatError, RefusedError) as error:
            raise InputError(f"ledger.db: the newest head: {error.message}", _RESTORE) from error
        if head.size != tree.size:
            raise InputError(f"ledger.db: expected {head.size} leaves, got {tree.size}", _RESTORE)
        if head.root != tree.root:
            raise InputError(f"ledger.db: a leaf was changed: {self._where_changed(tree)}", _RESTORE)
        return tree, head, text

    def _where_changed(self, tree: merkle.Tree) -> str:
        """Between which two heads the tree leaves what was signed."""
        size = 0
        with self.store.reading() as tables:
            for text in tables.log.heads():
                head = LedgerHead.from_text(text.rpartition("\n\n")[0] + "\n")
                if tree.root_at(head.size) != head.root:
                    return f"one of {size} to {head.size - 1}"
                size = head.size
        return "no one head shows which"
