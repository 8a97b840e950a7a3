"""Makes receipts: for each credit of a peer, the proof that it stands in the ledger. `service` hands them out."""

from __future__ import annotations

from sqlalchemy import select

from coordinator.ledger import Ledger
from coordinator.store import CreditRow
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
    """

    def __init__(self, ledger: Ledger, card_bytes: bytes, root_public_pem: bytes) -> None:
        self._ledger = ledger
        self._card = canonical.loads(card_bytes, max_bytes=MAX_RUN_CARD_BYTES)
        self._root_public_pem = root_public_pem.decode()

    def for_peer(self, peer_id: str, after_round: int) -> list[bytes]:
        """The receipts of a peer's credit for rounds after `after_round`, oldest first, at most `MAX_RECEIPTS`."""
        with self._ledger.reading() as session:
            leaves = session.scalars(
                select(CreditRow.leaf)
                .where(CreditRow.peer_id == peer_id, CreditRow.round > after_round)
                .order_by(CreditRow.round)
                .limit(MAX_RECEIPTS)
            ).all()
        return [
            make_receipt(
                run_card=self._card,
                root_public_key=self._root_public_pem,
                entry=parse_entry(self._ledger.entry(leaf)),
                proof=self._ledger.proof(leaf),
            )
            for leaf in leaves
        ]
