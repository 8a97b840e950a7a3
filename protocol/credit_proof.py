"""A proof of credit: all of a peer's credit in one run, as one string that anyone can paste into `potluck verify`.

    potluck-credit1.<base64url of the zlib stream of a JSON object>.<first 8 hex digits of the stream's SHA-256>

    {"credits":[{"entry":{"type":"credit",…},"proof":"c2sp.org/tlog-proof@v1\\n…"},…],
     "root_public_key":"-----BEGIN PUBLIC KEY-----…","run_card":{…DSSE envelope…}}

It is what the receipts of these rounds say, with the run card and the root key once: about 500 characters a round. The
credits are of one peer and one run, by rounds, each round once. Like a receipt it counts for whoever trusts the root
key. A card to share carries it (`peer.screen.credit_card`); where a picture loses it, the string can be pasted alone.

    >>> CreditProof.parse("potluck-credit1.AAAA.00000000")
    Traceback (most recent call last):
    ...
    protocol.errors.FormatError: the proof of credit is damaged: its check digits do not match
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from protocol import canonical, pasted
from protocol.canonical import sha256_hex
from protocol.credit_sum import CreditSum
from protocol.errors import FormatError, VerificationError
from protocol.ledger_entry import CreditEntry
from protocol.receipt import Receipt
from protocol.run_card import RunCard

PREFIX = "potluck-credit1."
MAX_CHARS = 1 << 20  # of the string
MAX_OPENED_BYTES = 8 << 20  # of the JSON in it
MAX_CREDITS = 4096
MAX_FILE_BYTES = 2 * pasted.MAX_FILE_BYTES  # in which one is looked for: a picture with the longest string in front
_START = re.compile(re.escape(PREFIX))
_REST = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_CHARS}}}\.[0-9a-f]{{8}}")
_HINT = f"it begins with '{PREFIX}'; take the whole of it, or the file that `potluck receipts --card` wrote"


@dataclass(frozen=True)
class CreditProof:
    """A proof as it was read; `open_card` and `check` say whether to believe it."""

    receipts: tuple[Receipt, ...]  # of credit, by rounds; all with one run card and one root key

    @classmethod
    def of(cls, receipts: Sequence[Receipt]) -> CreditProof:
        """What these show together, under the newest one's run card: as many of the newest as fit into a string.

        Args:
            receipts: that hold, of one peer's credit in one run, each round once; at least one.

        Raises:
            FormatError: not even the newest fits.
        """
        found = sorted(receipts, key=_round)[-MAX_CREDITS:]
        card, key = found[-1].run_card, found[-1].root_public_key
        proof = cls(tuple(Receipt(card, key, item.entry, item.proof) for item in found))
        while len(proof.receipts) > 1 and (too_long := len(str(proof)) / MAX_CHARS) > 1:
            proof = cls(proof.receipts[-max(1, int(0.98 * len(proof.receipts) / too_long)) :])
        if len(str(proof)) > MAX_CHARS:
            raise FormatError(f"the proof of one round has more than {MAX_CHARS} characters")
        return proof

    def __str__(self) -> str:
        first = self.receipts[0]
        credits = [{"entry": item.entry.to_json(), "proof": item.proof} for item in self.receipts]
        value = {"credits": credits, "root_public_key": first.root_public_key, "run_card": first.run_card}
        stream = zlib.compress(canonical.dumps(value), 9)
        return PREFIX + base64.urlsafe_b64encode(stream).decode().rstrip("=") + "." + sha256_hex(stream)[:8]

    @classmethod
    def parse(cls, text: str) -> CreditProof:
        """Read a proof; nothing in it is believed yet.

        Raises:
            FormatError: it is none, is damaged, or is too large.
        """
        if len(text) > len(PREFIX) + MAX_CHARS + 9:
            raise FormatError(f"a proof of credit has at most {MAX_CHARS} characters, got {len(text)}")
        if not text.startswith(PREFIX):
            raise FormatError("not a proof of credit", _HINT)
        body, _, check = text.removeprefix(PREFIX).rpartition(".")
        if not re.fullmatch("[0-9a-f]{8}", check):
            raise FormatError("the proof of credit is cut short: it ends in a dot and 8 check digits", _HINT)
        try:
            stream = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError) as error:
            raise FormatError("the proof of credit is damaged: not base64url", _HINT) from error
        if sha256_hex(stream)[:8] != check:
            raise FormatError("the proof of credit is damaged: its check digits do not match", _HINT)
        return cls._of_json(canonical.loads(_inflated(stream), max_bytes=MAX_OPENED_BYTES))

    @classmethod
    def _of_json(cls, value: Any) -> CreditProof:
        if not isinstance(value, dict) or set(value) != {"credits", "root_public_key", "run_card"}:
            raise FormatError("a proof of credit has credits, root_public_key and run_card")
        credits = value.pop("credits")
        if not isinstance(credits, list) or not 0 < len(credits) <= MAX_CREDITS:
            raise FormatError(f"a proof of credit has 1 to {MAX_CREDITS} credits")
        receipts = []
        for item in credits:
            if not isinstance(item, dict) or set(item) != {"entry", "proof"}:
                raise FormatError("each credit in a proof has entry and proof")
            receipts.append(Receipt.of_json(value | item))
        first = receipts[0].entry
        for before, receipt in zip([None, *receipts], receipts, strict=False):
            entry = receipt.entry
            if not isinstance(entry, CreditEntry) or not isinstance(first, CreditEntry):
                raise FormatError(f"a proof of credit holds credit alone, got an entry of the type {entry.type}")
            if (entry.run, entry.peer_id) != (first.run, first.peer_id):
                raise FormatError("a proof of credit is of one peer in one run")
            if before is not None and _round(before) >= entry.round:
                raise FormatError("the credits in a proof stand by rounds, each once")
        return cls(tuple(receipts))

    @property
    def fingerprint(self) -> str:
        """Of the root key that the proof claims. Raises: FormatError."""
        return self.receipts[0].fingerprint

    def open_card(self) -> RunCard:
        """Check the run card against the root key that the proof claims.

        Raises:
            FormatError, SignatureError, VerificationError: it does not hold.
        """
        return self.receipts[0].open_card()

    def check(self, card: RunCard) -> CreditSum:
        """Check that each credit stands in the ledger of the card's run; returns what they come to.

        Raises:
            FormatError, SignatureError, VerificationError: one does not hold, or two contradict each other.
        """
        total = CreditSum()
        for receipt in self.receipts:
            name = f"round {_round(receipt)}"
            try:
                total.add(name, receipt.entry, receipt.check_proof(card))
            except VerificationError as error:
                raise VerificationError(f"{name}: {error.message}") from error
        if total.problems:
            raise VerificationError(total.problems[0])
        return total


def find_proof(text: str) -> CreditProof:
    """The one proof of credit that stands in a text, with whatever stands around it or in it.

    Raises:
        FormatError: there is none, it is damaged, or there are several.
    """
    found, damage = dict[str, CreditProof](), list[FormatError]()
    for rest in pasted.candidates(text, _START, _REST, MAX_CHARS):
        try:
            found[rest] = CreditProof.parse(PREFIX + rest)
        except FormatError as error:
            damage.append(error)
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise FormatError(f"there are {len(found)} different proofs of credit here", "give one of them")
    raise damage[0] if damage else FormatError("not a proof of credit", _HINT)


def stands_in(data: bytes) -> bool:
    """Whether something in a file looks like a proof of credit, whole or not."""
    return PREFIX.encode() in data or PREFIX in pasted.decoded(data[: 1 << 16])


def _round(receipt: Receipt) -> int:
    return receipt.entry.round if isinstance(receipt.entry, CreditEntry) else 0


def _inflated(stream: bytes) -> bytes:
    """Raises: FormatError: no zlib stream, one that is cut short or goes on, or more than `MAX_OPENED_BYTES`."""
    inflate = zlib.decompressobj()
    try:
        data = inflate.decompress(stream, MAX_OPENED_BYTES)
    except zlib.error as error:
        raise FormatError(f"the proof of credit cannot be opened: {error}") from error
    if not inflate.eof or inflate.unused_data:
        raise FormatError(f"the proof of credit opens to no whole object of at most {MAX_OPENED_BYTES} bytes")
    return data
