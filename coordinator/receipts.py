"""Proofs out of the ledger: a receipt for each credit of a peer, and that the ledger only grows; for `service`."""

from __future__ import annotations

from coordinator.ledger import Ledger
from coordinator.ledger_export import LedgerCopies
from protocol import canonical
from protocol.ledger_entry import parse_entry
from protocol.receipt import make_receipt
from protocol.run_card import MAX_RUN_CARD_BYTES

MAX_RECEIPTS = 100  # in one answer; the peer asks again for the rest


class ReceiptDesk:
    """Receipts of one run.

    Args:
        card_bytes: the signed run card; it goes into every receipt.
        root_public_pem: the root key, likewise.
        copies: of the whole ledger.
    """

    def __init__(self, ledger: Ledger, card_bytes: bytes, root_public_pem: bytes, copies: LedgerCopies) -> None:
        self._ledger, self.copies = ledger, copies
        self._card = canonical.loads(card_bytes, max_bytes=MAX_RUN_CARD_BYTES)
        self._root_public_pem = root_public_pem.decode()

    def for_peer(self, peer_id: str, after_round: int) -> list[bytes]:
        """The receipts of a peer's credit for rounds after `after_round`, oldest first, at most `MAX_RECEIPTS`."""
        with self._ledger.store.reading() as tables:
            leaves = tables.credits.leaves_of(peer_id, after_round, MAX_RECEIPTS)
        return [
            make_receipt(
                run_card=self._card,
                root_public_key=self._root_public_pem,
                entry=parse_entry(self._ledger.entry(leaf)),
                proof=self._ledger.proof(leaf),
            )
            for leaf in leaves
        ]

    @property
    def head(self) -> str:
        """The newest signed head, a note."""
        return self._ledger.head_note

    def growth(self, size: int) -> tuple[str, list[bytes]]:
        """The newest head's note, and the proof that it extends the ledger of `size` leaves: as `Ledger.growth`."""
        return self._ledger.growth(size)
