"""Receipts: what a peer keeps to show, offline and for ever, that its work or a checkpoint stands in the ledger.

One JSON file:

    {"entry":{"type":"credit",…},"proof":"c2sp.org/tlog-proof@v1\\n…","root_public_key":"-----BEGIN PUBLIC KEY-----…",
     "run_card":{…DSSE envelope…}}

Root key and run card travel inside as claims. The receipt counts for whoever trusts the key's fingerprint, which a
peer knows from its invite.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from protocol import canonical, note
from protocol.errors import FormatError, VerificationError
from protocol.keys import fingerprint, load_public_pem
from protocol.ledger_entry import Entry, entry_from_json
from protocol.note import LedgerHead
from protocol.run_card import MAX_RUN_CARD_BYTES, RunCard
from protocol.tlog_proof import MAX_PROOF_BYTES, LogProof

MAX_RECEIPT_BYTES = 2 * (MAX_RUN_CARD_BYTES + MAX_PROOF_BYTES)


@dataclass(frozen=True)
class Receipt:
    """A parsed receipt; `check_receipt` says whether to believe it."""

    run_card: dict[str, Any]  # DSSE envelope
    root_public_key: str  # PEM
    entry: Entry
    proof: str  # tlog-proof

    def to_bytes(self) -> bytes:
        return canonical.dumps(
            {
                "run_card": self.run_card,
                "root_public_key": self.root_public_key,
                "entry": self.entry.to_json(),
                "proof": self.proof,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Receipt:
        """Read a receipt; nothing in it is believed yet. Raises: FormatError."""
        return cls.of_json(canonical.loads(data, max_bytes=MAX_RECEIPT_BYTES))

    @classmethod
    def of_json(cls, value: Any) -> Receipt:
        """Read a receipt from parsed JSON. Raises: FormatError."""
        kinds = {"run_card": dict, "root_public_key": str, "entry": dict, "proof": str}
        if not isinstance(value, dict) or set(value) != set(kinds):
            raise FormatError("a receipt has run_card, root_public_key, entry and proof")
        for key, kind in kinds.items():
            if not isinstance(value[key], kind):
                raise FormatError(f"the receipt's {key} is not a JSON {'object' if kind is dict else 'string'}")
        return cls(value["run_card"], value["root_public_key"], entry_from_json(value["entry"]), value["proof"])

    @property
    def fingerprint(self) -> str:
        """Of the root key that the receipt claims. Raises: FormatError."""
        return fingerprint(load_public_pem(self.root_public_key.encode(errors="replace")))

    def open_card(self) -> RunCard:
        """Check the run card against the root key that the receipt claims.

        Raises:
            FormatError, SignatureError, VerificationError: it does not hold.
        """
        key = load_public_pem(self.root_public_key.encode(errors="replace"))
        card = RunCard.open(canonical.dumps(self.run_card), key)
        check_ledger_name(card)
        return card

    def check_proof(self, card: RunCard) -> LedgerHead:
        """Check that the run's ledger holds the entry; returns the ledger head that says so.

        Raises:
            FormatError: the proof is none.
            SignatureError: the ledger head is not signed by the run's ledger key.
            VerificationError: an entry of another run, or the inclusion proof does not hold.
        """
        if self.entry.run != card.run:
            raise VerificationError(f"the entry is of run {self.entry.run[:16]}…, the run card of {card.run[:16]}…")
        proof = LogProof.from_text(self.proof)
        try:
            return proof.verify(self.entry.to_bytes(), card.ledger_key)
        except VerificationError as error:
            raise VerificationError(f"leaf {proof.index} is not shown to be this entry: {error.message}") from error


@dataclass(frozen=True)
class CheckedReceipt:
    """What a receipt that holds says."""

    entry: Entry
    card: RunCard
    head: LedgerHead  # the ledger it was checked against
    fingerprint: str  # of the root key


def make_receipt(*, run_card: dict[str, Any], root_public_key: str, entry: Entry, proof: LogProof) -> bytes:
    """The receipt for one ledger entry.

    Args:
        run_card: the run card's DSSE envelope as a JSON object.
        root_public_key: PEM.
        entry: the leaf.
        proof: that it stands in the ledger.
    """
    return Receipt(run_card, root_public_key, entry, proof.to_text()).to_bytes()


def check_receipt(data: bytes, trusted: Collection[str]) -> CheckedReceipt:
    """Check a receipt offline.

    Args:
        data: the receipt's bytes.
        trusted: fingerprints of the root keys that the user has confirmed.

    Raises:
        FormatError: not a receipt.
        SignatureError: a signature does not hold.
        VerificationError: the proof does not hold, or it is all signed by a root key that is not trusted.
    """
    receipt = Receipt.from_bytes(data)
    card = receipt.open_card()
    head = receipt.check_proof(card)
    if receipt.fingerprint not in trusted:
        raise VerificationError(
            f"intact, but signed by a key that you have not confirmed: {receipt.fingerprint}",
            "compare the fingerprint with the host's, then give it with --key",
        )
    return CheckedReceipt(receipt.entry, card, head, receipt.fingerprint)


def check_ledger_name(card: RunCard) -> None:
    """Check that the card's ledger key is named after the card's run. Raises: FormatError, VerificationError."""
    name, _ = note.parse_verifier_key(card.ledger_key)
    expected = note.origin(card.spec.run.name, card.run)
    if name != expected:
        raise VerificationError(f"the run card's ledger key is of {name}, expected {expected}")
