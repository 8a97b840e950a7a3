"""A stranger's audit of a whole ledger, offline: every balance is recomputed from genesis. `potluck ledger audit`.

ledger     all entries are those that the ledger's key has signed, head after head, and each may stand where it is
history    it is the history that was shown elsewhere, too: a receipt, a log proof or a head
rounds     each round's work is what its members agreed on, by their own signatures (`checkpoints/rounds/`)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from protocol import checkpoint, files, newest
from protocol.agreement import MAX_AGREEMENT_BYTES, Agreement
from protocol.credit_book import CreditBook, Newest
from protocol.errors import FormatError, InputError, PotluckError, RefusedError, VerificationError
from protocol.last import Last
from protocol.ledger_entry import CreditEntry, Entry, RoundEntry
from protocol.ledger_file import WholeLedger, check_same, read_ledger
from protocol.lineage import rounds_at_hand
from protocol.report import NotChecked, Report
from protocol.run_card import RunCard
from protocol.succession import check_follows


class LedgerAudit:
    """One audit.

    Args:
        path: the file.
        rounds: a folder with the agreements, as a run's `checkpoints/rounds/`; None: they are not looked at.
    """

    def __init__(self, path: Path, rounds: Path | None = None) -> None:
        self._path, self._at_hand = path, rounds_at_hand(rounds) if rounds else None
        if self._at_hand == {}:
            raise InputError(f"{rounds}: there are no agreements here", "give a folder such as checkpoints/rounds")
        self.report = Report(path.name, "ledger")
        self.ledger: WholeLedger | None = None
        self.book: CreditBook | None = None
        self._checked = 0
        self._last: Last | None = None
        self._missing: int | None = None  # the first round of which there is no agreement

    def audit(self, trusted: Collection[str], against: Sequence[tuple[str, bytes]] = ()) -> LedgerAudit:
        """Look at everything.

        Args:
            trusted: fingerprints of the root keys that the user has confirmed.
            against: names and bytes of receipts, log proofs or signed heads that came from elsewhere.

        Raises:
            InputError: the file cannot be read.
        """
        report = self.report
        if not report.run("ledger", self._read):
            return self
        for name, data in against:
            report.run("history", lambda name=name, data=data: self._compare(name, data))  # type: ignore[misc]
        if self._at_hand is not None:
            report.run("rounds", self._rounds)
        assert self.ledger is not None and self.book is not None, "it was read"
        head, card = self.ledger.head, self.ledger.card
        report.facts |= {"run": card.run, "name": card.spec.run.name, "size": head.size, "root": head.root.hex()}
        report.facts |= {"round": self.book.newest.round, "entries": dict(self.book.entries)}
        report.facts["tokens"] = sum(account.verified for account in self.book.accounts.values())
        report.confirm(self.ledger.fingerprint, trusted)
        return self

    def _read(self) -> str:
        self.ledger = read_ledger(self._path, self._begin, self._enter)
        book = self.book
        assert book is not None, "it has begun"
        self._round_is_over(book.newest)
        book.close()
        verified = sum(account.verified for account in book.accounts.values())
        pending = sum(account.pending for account in book.accounts.values())
        void = sum(account.void for account in book.accounts.values())
        return (
            f"{self.ledger.head.size} entries up to round {book.newest.round}: {verified} tokens to "
            f"{len(book.accounts)} members, {pending} pending, {void} void"
        )

    def _begin(self, card: RunCard) -> None:
        self.book, self._card = CreditBook(card), card
        self._last = Last(0, card.genesis)

    def _enter(self, index: int, entry: Entry) -> None:
        assert self.book is not None, "it has begun"
        before = self.book.newest
        self.book.enter(entry)
        if isinstance(entry, RoundEntry | CreditEntry) and self.book.newest is not before:
            self._round_is_over(before)
            for skipped in range(before.round + 1, self.book.newest.round):  # all who were in it are banned
                self._round_is_over(Newest(skipped, "", banned=self.book.newest.banned))

    def _round_is_over(self, round: Newest) -> None:
        """Hold a round against its agreement, where that is at hand and those before it were."""
        if self._at_hand is None or not round.round or self._missing is not None:
            return
        path = self._at_hand.get(round.round)
        if path is None:
            self._missing = round.round
            return
        assert self._last is not None, "it has begun"
        try:
            data = files.read_bounded(path, MAX_AGREEMENT_BYTES)
            agreement = Agreement.from_bytes(data, run=self._card.run, membership_key=self._card.member_key)
            check_follows(agreement, self._last, self._card.spec)
        except PotluckError as error:
            raise VerificationError(f"{path.name}: {error.message}") from error
        if round.state and agreement.state != round.state:
            raise VerificationError(f"{path.name}: another state than the ledger has of this round")
        round.check(agreement)
        self._last = Last.of(agreement)
        self._checked += 1

    def _compare(self, name: str, data: bytes) -> str:
        assert self.ledger is not None, "it was read"
        try:
            return f"{name}: {check_same(self.ledger, newest.head_note_in(data))}"
        except (FormatError, RefusedError) as error:
            raise VerificationError(f"{name}: {error.message}") from error

    def _rounds(self) -> str:
        if self._missing is not None:
            raise NotChecked(f"there is no {checkpoint.round_name(self._missing)}, and none after it was looked at")
        return f"the work of {self._checked} rounds is what their members have signed"
