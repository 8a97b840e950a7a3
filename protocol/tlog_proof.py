"""Offline proofs that something stands in a ledger (c2sp.org/tlog-proof).

    c2sp.org/tlog-proof@v1
    index 73894
    gSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=      the inclusion proof, from the leaf's sibling up
    …
                                                      an empty line, then the ledger head as a signed note
    potluck/shakespeare/0123456789abcdef
    109482
    sFodV/vSp5O8n9a8QpW6PRY97tfOSW5bsc2Xl/EQi08=

    — potluck/shakespeare/0123456789abcdef hI2DJw…

The coordinator writes one beside each checkpoint and into each receipt. The spec's `extra` line is refused: it is not
authenticated and we have no use for it.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from protocol import merkle, note
from protocol.errors import FormatError
from protocol.note import LedgerHead

MAGIC = "c2sp.org/tlog-proof@v1"
MAX_HASHES = 64  # more than any tree that we sign heads of can need
MAX_PROOF_BYTES = note.MAX_NOTE_BYTES + 8 * 1024


@dataclass(frozen=True)
class LogProof:
    """A parsed proof; nothing in it is believed before `verify`."""

    index: int
    hashes: tuple[bytes, ...]  # 32 bytes each
    head_note: str  # a signed note

    def to_text(self) -> str:
        lines = [MAGIC, f"index {self.index}", *(base64.b64encode(item).decode() for item in self.hashes)]
        return "\n".join(lines) + "\n\n" + self.head_note

    @classmethod
    def from_text(cls, text: str) -> LogProof:
        """Read a proof.

        Raises:
            FormatError: not a tlog-proof.
        """
        if len(text) > MAX_PROOF_BYTES:
            raise FormatError(f"a log proof has at most {MAX_PROOF_BYTES} characters, got {len(text)}")
        head, separator, head_note = text.partition("\n\n")
        lines = head.split("\n")
        if not separator or len(lines) < 2 or lines[0] != MAGIC:
            raise FormatError(f"not a log proof: expected a first line {MAGIC!r}")
        if not lines[1].startswith("index "):
            raise FormatError("not a log proof: expected a second line 'index <number>'")
        if len(lines) - 2 > MAX_HASHES:
            raise FormatError(f"a log proof has at most {MAX_HASHES} hashes")
        index = note.parse_decimal(lines[1].removeprefix("index "), "a log proof's index")
        return cls(index, tuple(_hash(line) for line in lines[2:]), head_note)

    def verify(self, entry: bytes, verifier: str) -> LedgerHead:
        """Check that the ledger whose key is `verifier` holds `entry`; returns the ledger head that says so.

        Args:
            entry: the leaf's data, not its hash.
            verifier: a verifier key string, from the run card.

        Raises:
            FormatError: the ledger head is none.
            SignatureError: the head is not signed by `verifier`.
            VerificationError: the inclusion proof does not hold.
        """
        head = note.open_head(self.head_note, verifier)
        merkle.verify_inclusion(merkle.leaf_hash(entry), self.index, head.size, self.hashes, head.root)
        return head


def make(tree: merkle.Tree, index: int, head: LedgerHead, head_note: str) -> LogProof:
    """The proof that leaf `index` stands in the ledger as it was at `head`, whose signed note is `head_note`."""
    return LogProof(index, tuple(tree.inclusion_proof(index, head.size)), head_note)


def _hash(line: str) -> bytes:
    try:
        data = base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError("a log proof's hash is not base64") from error
    if len(data) != merkle.HASH_BYTES or base64.b64encode(data).decode() != line:
        raise FormatError("a log proof's hash is 32 bytes in base64")
    return data
