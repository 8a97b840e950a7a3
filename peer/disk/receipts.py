"""A peer's receipts: one file for each round it was credited for, that `potluck verify RECEIPT` checks offline.

    receipts/round-000012.json

What the coordinator sends is kept only if it holds by the root key in the invite, is of this run, and is this peer's.
Where this computer had another identity before, the receipts of that one stay beside them under names of their own:

    receipts/round-000012.12D3KooW….json
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from protocol.disk import disk_error, set_aside, write_file
from protocol.errors import InputError, RefusedError, VerificationError
from protocol.ledger_entry import CreditEntry
from protocol.receipt import MAX_RECEIPT_BYTES, CheckedReceipt, check_receipt

logger = logging.getLogger(__name__)

_NAME = re.compile(r"round-(\d{6,9})\.json")
_MAX_ASKS = 10_000  # answers of up to a hundred receipts each


class ReceiptSource(Protocol):
    """What is needed of a `CoordinatorClient`."""

    def receipts(self, certificate: str, after_round: int = 0) -> list[bytes]: ...


class Receipts:
    """The receipts of one peer in one run.

    Args:
        folder: made when it is not there.
        run: run digest.
        root: fingerprint of the root key, from the invite.
        peer_id: whose credit they are.

    Raises:
        InputError: the folder cannot be made.
    """

    def __init__(self, folder: Path, *, run: str, root: str, peer_id: str) -> None:
        self.folder, self._run, self._root, self._peer_id = folder, run, root, peer_id
        self._tokens: dict[int, int] = {}  # round -> credit, of the receipts that hold
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(folder, error) from error
        self._newest = self._whole_until()  # the round up to which there is nothing to ask for

    def rounds(self) -> list[int]:
        """The rounds that there is a receipt for, in order."""
        found = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def credit(self) -> tuple[int, int, int]:
        """What the receipts show: tokens, rounds, and the newest of those rounds (0: none)."""
        tokens = dict(self._tokens)  # another thread may add to it
        return sum(tokens.values()), len(tokens), max(tokens, default=0)

    def granted_at(self) -> float | None:
        """When the newest receipt came here, in seconds of the clock; None: there is none."""
        with contextlib.suppress(FileNotFoundError):
            return self.path(max(dict(self._tokens), default=0)).stat().st_mtime
        return None

    def path(self, round_number: int) -> Path:
        """Where the receipt for a round lies."""
        return self.folder / f"round-{round_number:06d}.json"

    def fetch(self, client: ReceiptSource, certificate: str) -> int:
        """Ask for the receipts that are not here yet; returns how many came.

        Rounds can enter the ledger late, but only in order, so those after the newest receipt are all that is missing.

        Raises:
            CoordinatorAway: it cannot be reached.
            VerificationError: it sent one that does not hold, which is not kept.
        """
        new = 0
        for _ in range(_MAX_ASKS):
            batch = client.receipts(certificate, self._newest)
            if not batch:
                break
            self._newest = self.keep(batch, after_round=self._newest)
            new += len(batch)
        return new

    def _whole_until(self) -> int:
        """The last round before the first damaged receipt, which is moved away as are all others that are."""
        damaged = [number for number in self.rounds() if not self._takes(number)]
        for path in sorted(self.folder.glob(f"round-*.{self._peer_id}.json")):  # of an identity that has come back
            plain = path.with_name(path.name.partition(".")[0] + ".json")
            if _NAME.fullmatch(plain.name) and not plain.exists():
                with contextlib.suppress(OSError):  # then it is fetched again
                    path.replace(plain)
        damaged += [number for number in self.rounds() if number not in self._tokens and not self._takes(number)]
        return max((number for number in self._tokens if number < min(damaged, default=number + 1)), default=0)

    def _takes(self, number: int) -> bool:
        """Count a receipt that is this peer's, or name it after the identity that it is of; else it is damaged."""
        path = self.path(number)
        try:
            entry = self._credit(path.read_bytes())
            if entry.peer_id == self._peer_id:
                self._tokens[number] = entry.tokens
            else:
                path.replace(path.with_suffix(f".{entry.peer_id}.json"))
        except (InputError, RefusedError, OSError) as error:
            kept = set_aside(path, self.folder / "damaged")
            logger.warning("%s is damaged (%s); it is kept as %s and fetched again", path.name, error, kept)
            return False
        return True

    def keep(self, receipts: Iterable[bytes], after_round: int = 0) -> int:
        """Check and store receipts; returns the newest round among them.

        Raises:
            FormatError: not a receipt.
            SignatureError: a signature does not hold.
            VerificationError: it does not hold, is of another run or peer, or is for a round not asked for.
            InputError: the disk is full.
        """
        newest = after_round
        for data in receipts:
            entry = self._entry(data)
            if entry.round <= after_round:
                raise VerificationError(f"a receipt for round {entry.round}, expected one after {after_round}")
            write_file(self.path(entry.round), data)
            self._tokens[entry.round] = entry.tokens
            newest = max(newest, entry.round)
        return newest

    def _entry(self, data: bytes) -> CreditEntry:
        """This peer's credit that a receipt proves."""
        entry = self._credit(data)
        if entry.peer_id != self._peer_id:
            raise VerificationError(f"the receipt is {entry.peer_id}'s, expected {self._peer_id}'s")
        return entry

    def _credit(self, data: bytes) -> CreditEntry:
        """The credit in this run that a receipt proves, whoever's it is."""
        if len(data) > MAX_RECEIPT_BYTES:
            raise VerificationError(f"a receipt has at most {MAX_RECEIPT_BYTES} bytes, got {len(data)}")
        checked: CheckedReceipt = check_receipt(data, {self._root})
        entry = checked.entry
        if not isinstance(entry, CreditEntry) or entry.run != self._run:
            raise VerificationError(f"the receipt is of run {entry.run[:16]}…, expected credit in {self._run[:16]}…")
        return entry
