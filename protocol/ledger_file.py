"""A whole ledger as one file that anyone may keep and audit: JSON lines, as they were entered.

    {"ledger":1,"root_public_key":"-----BEGIN PUBLIC KEY-----…","run_card":{…DSSE envelope…}}        the first line
    {"type":"run",…}                                                    an entry: the leaf's bytes, a line each
    {"head":"potluck/shakespeare/0123456789abcdef\\n3\\n…"}               a signed head, after the last entry it is of

Each head that was ever signed stands where it was signed, so that a change is found between two of them. Root key and
run card travel as claims, as a receipt's do: it counts for whoever trusts the key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from protocol import canonical, files, merkle, note
from protocol.errors import FormatError, PotluckError, RefusedError, VerificationError
from protocol.keys import fingerprint, load_public_pem
from protocol.ledger_entry import MAX_ENTRY_BYTES, Entry, parse_entry
from protocol.note import LedgerHead
from protocol.receipt import check_ledger_name
from protocol.run_card import MAX_RUN_CARD_BYTES, RunCard

MAX_LINE_BYTES = 2 * MAX_RUN_CARD_BYTES  # of the first; the others are far shorter
START = b'{"ledger":1,'


@dataclass(frozen=True)
class WholeLedger:
    """What a file holds, each head in it held against the entries before it."""

    run_card: dict[str, Any]  # DSSE envelope
    root_public_key: str  # PEM
    card: RunCard
    fingerprint: str  # of the root key that the file claims
    tree: merkle.Tree
    head: LedgerHead  # the last one
    head_note: str


def first_line(run_card: dict[str, Any], root_public_key: str) -> bytes:
    """How a file begins."""
    return canonical.dumps({"ledger": 1, "root_public_key": root_public_key, "run_card": run_card}) + b"\n"


def head_line(head_note: str) -> bytes:
    """What stands after the entries that a head is of."""
    return canonical.dumps({"head": head_note}) + b"\n"


def read_ledger(
    path: Path, begun: Callable[[RunCard], None] = lambda card: None, each: Callable[[int, Entry], None] | None = None
) -> WholeLedger:
    """Read a whole ledger, in memory that grows with 64 bytes an entry.

    Args:
        begun: called with the run card, before the first entry.
        each: called with each entry and its index; what it refuses is refused with the entry's number.

    Raises:
        InputError: it cannot be read.
        FormatError: not a ledger, or a line of it is none; with the number of the entry.
        SignatureError: a head or the run card is not signed by the keys that it should be.
        VerificationError: cut short, changed, or put in another order; with the numbers of the entries.
    """
    with files.open_regular(path) as file:
        lines = _lines(file)
        claims = _claims(next(lines, b""))
        key = load_public_pem(claims["root_public_key"].encode(errors="replace"))
        card = RunCard.open(canonical.dumps(claims["run_card"]), key)
        check_ledger_name(card)
        begun(card)
        tree, signed, newest = merkle.Tree(), LedgerHead("", 0, merkle.EMPTY_ROOT), ""
        for line in lines:
            if line.startswith(b'{"head":'):
                newest, signed = _head(line, tree, signed.size, card)
                continue
            index = tree.append(merkle.leaf_hash(line))
            try:
                entry = parse_entry(line)
                if each is not None:
                    each(index, entry)
            except (FormatError, RefusedError) as error:
                raise type(error)(f"entry {index}: {error.message}", error.hint) from error
    if tree.size != signed.size or not newest:
        raise VerificationError(f"entries {signed.size} to {tree.size - 1} stand after the last signed head")
    return WholeLedger(claims["run_card"], claims["root_public_key"], card, fingerprint(key), tree, signed, newest)


def check_same(ledger: WholeLedger, other_note: str) -> str:
    """Hold a ledger against a head that was seen elsewhere; returns in words what that is.

    Raises:
        FormatError, SignatureError: not a head of this ledger.
        VerificationError: the ledger was shown two ways, or this file is older than the head.
    """
    head = note.open_head(other_note, ledger.card.ledger_key)
    if head.size > ledger.tree.size:
        raise VerificationError(
            f"another head is of {head.size} entries, and here are {ledger.tree.size}: cut short, or old"
        )
    if ledger.tree.root_at(head.size) != head.root:
        raise VerificationError(
            f"shown two ways: the ledger's key has signed another history of the first {head.size} entries"
        )
    return f"its first {head.size} entries are those of the other head"


def _head(line: bytes, tree: merkle.Tree, before: int, card: RunCard) -> tuple[str, LedgerHead]:
    """The signed head in a line, which is of all entries so far; `before`: of how many the one before it was."""
    where = f"the head after entry {tree.size - 1}"
    try:
        text = canonical.loads(line, max_bytes=MAX_LINE_BYTES)["head"]
        if not isinstance(text, str):
            raise FormatError("not a ledger head")
        head = note.open_head(text, card.ledger_key)
    except (PotluckError, KeyError) as error:
        kind = type(error) if isinstance(error, PotluckError) else FormatError
        raise kind(f"{where}: {error}") from error
    if head.size != tree.size:
        raise VerificationError(f"{where} is of {head.size} entries, and {tree.size} stand before it")
    if head.root != tree.root:
        raise VerificationError(f"entries {before} to {tree.size - 1} are not those that were signed")
    return text, head


def _claims(line: bytes) -> dict[str, Any]:
    value = canonical.loads(line, max_bytes=MAX_LINE_BYTES) if line.startswith(START) else None
    if not isinstance(value, dict) or set(value) != {"ledger", "root_public_key", "run_card"}:
        raise FormatError("not a ledger", "give the file that `potluck ledger export` or `potluck ledger fetch` wrote")
    if not isinstance(value["root_public_key"], str) or not isinstance(value["run_card"], dict):
        raise FormatError("the ledger's first line has no root key or no run card")
    return value


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Without their ends. Raises: FormatError: one is too long, or the last one is not whole."""
    most = MAX_LINE_BYTES
    while line := file.readline(most + 1):
        if not line.endswith(b"\n"):
            raise FormatError("a line is too long, or the file was cut short in it")
        yield line[:-1]
        most = 2 * MAX_ENTRY_BYTES + 1024
