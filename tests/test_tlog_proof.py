"""Log proofs, by the C2SP spec."""

from __future__ import annotations

import dataclasses

import pytest

from protocol import merkle, note, tlog_proof
from protocol.errors import FormatError, SignatureError, VerificationError
from protocol.note import LedgerHead
from protocol.tlog_proof import LogProof
from tests.kit.builders import fixed_ed25519

NAME = "potluck/tiny/0123456789abcdef"
KEY = fixed_ed25519("ledger")
VERIFIER = note.verifier_key(NAME, KEY.public_key())
ENTRIES = [b"entry %d" % index for index in range(11)]
TREE = merkle.Tree(merkle.leaf_hash(entry) for entry in ENTRIES)
HEAD = LedgerHead(NAME, TREE.size, TREE.root)
PROOF = tlog_proof.make(TREE, 6, HEAD, note.sign_head(HEAD, KEY))


@pytest.mark.parametrize("size", range(1, 12))
def test_every_leaf_of_every_ledger_can_be_proved(size: int) -> None:
    head = LedgerHead(NAME, size, TREE.root_at(size))
    signed = note.sign_head(head, KEY)
    for index in range(size):
        text = tlog_proof.make(TREE, index, head, signed).to_text()
        assert LogProof.from_text(text).verify(ENTRIES[index], VERIFIER) == head


def test_a_proof_is_written_as_the_specification_shows() -> None:
    lines = PROOF.to_text().split("\n")
    assert lines[:2] == ["c2sp.org/tlog-proof@v1", "index 6"]
    blank = lines.index("")
    assert len(lines[2:blank]) == 4
    assert all(len(line) == 44 for line in lines[2:blank])
    assert lines[blank + 1 : blank + 3] == [NAME, "11"]


def test_a_proof_for_another_entry_is_refused() -> None:
    with pytest.raises(VerificationError, match="does not lead to the root"):
        PROOF.verify(b"another", VERIFIER)


def test_a_proof_under_another_index_is_refused() -> None:
    with pytest.raises(VerificationError):
        dataclasses.replace(PROOF, index=5).verify(ENTRIES[6], VERIFIER)


def test_a_proof_by_another_log_is_refused() -> None:
    other = note.verifier_key(NAME, fixed_ed25519("other").public_key())
    with pytest.raises(SignatureError):
        PROOF.verify(ENTRIES[6], other)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("@v1", "@v2"),
        lambda text: text.replace("index 6", "index 06"),
        lambda text: text.replace("index 6", "index -6"),
        lambda text: text.replace("index 6", "Index 6"),
        lambda text: text.replace("index 6", "extra AAAA\nindex 6"),
        lambda text: text.replace("index 6\n", ""),
        lambda text: text.replace("index 6\n", "index 6\nAAAA\n"),
        lambda text: text.replace("index 6\n", "index 6\n!\n"),
        lambda text: text.replace("index 6\n", "index 6\n" + ("A" * 43 + "=\n") * 61),
        lambda text: text.replace("\n\n", "\n", 1),
        lambda text: text[:60],
        lambda text: text + " " * 40_000,
        lambda text: "",
    ],
)
def test_what_is_no_proof_is_refused(change) -> None:
    with pytest.raises((FormatError, SignatureError)):
        LogProof.from_text(change(PROOF.to_text())).verify(ENTRIES[6], VERIFIER)
