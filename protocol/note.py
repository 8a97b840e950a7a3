"""Signed notes (c2sp.org/signed-note) with Ed25519, and ledger heads in them (c2sp.org/tlog-checkpoint).

A ledger head says how long the ledger is and what its Merkle root is:

    potluck/shakespeare/0123456789abcdef        origin: which log
    109482                                      leaves
    sFodV/vSp5O8n9a8QpW6PRY97tfOSW5bsc2Xl/EQi08=    root, base64

    — potluck/shakespeare/0123456789abcdef hI2DJw…    base64 of key ID | signature

The signed bytes are the text up to the empty line, its last newline included. The run card names the key, as a
verifier key `<name>+<key ID, hex>+<base64 of 01 | public key>`. The coordinator signs, everyone checks.

    >>> from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    >>> key = Ed25519PrivateKey.generate()
    >>> note = sign_head(LedgerHead("potluck/demo/0123456789abcdef", 0, bytes(32)), key)
    >>> open_head(note, verifier_key("potluck/demo/0123456789abcdef", key.public_key())).size
    0
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from protocol.errors import FormatError, SignatureError

MAX_NOTE_BYTES = 16 * 1024
MAX_SIGNATURES = 64  # the spec asks for at least 16
MAX_NAME_CHARS = 256
MAX_TREE_SIZE = 2**53 - 1
ED25519 = b"\x01"
_SIGNATURE_LINE = re.compile(r"— ([^ ]+) ([A-Za-z0-9+/=]+)\n")


def origin(run_name: str, run: str) -> str:
    """The name of a run's ledger: `potluck/<run name>/<first 16 hex digits of the run digest>`."""
    return f"potluck/{run_name}/{run[:16]}"


def key_id(name: str, key: Ed25519PublicKey) -> bytes:
    """Four bytes that, with the name, say which key signed."""
    return hashlib.sha256(name.encode() + b"\n" + ED25519 + _raw(key)).digest()[:4]


def verifier_key(name: str, key: Ed25519PublicKey) -> str:
    """The verifier key string of `key` under `name`."""
    return f"{name}+{key_id(name, key).hex()}+{base64.b64encode(ED25519 + _raw(key)).decode()}"


def parse_verifier_key(text: str) -> tuple[str, Ed25519PublicKey]:
    """Read a verifier key string; returns (name, key).

    Raises:
        FormatError: not one of an Ed25519 key, or its key ID is not the key's.
    """
    if len(text) > MAX_NAME_CHARS + 128:
        raise FormatError(f"a verifier key has at most {MAX_NAME_CHARS + 128} characters, got {len(text)}")
    name, _, rest = text.partition("+")
    identifier, _, encoded = rest.partition("+")
    _check_name(name)
    material = _base64(encoded, "a verifier key")
    if len(material) != 33 or material[:1] != ED25519:
        raise FormatError("not the verifier key of an Ed25519 key")
    key = Ed25519PublicKey.from_public_bytes(material[1:])
    if identifier != key_id(name, key).hex():
        raise FormatError(f"the verifier key of {name} has another key ID than its key")
    return name, key


def sign(text: str, name: str, key: Ed25519PrivateKey) -> str:
    """Make a note of `text`, which ends in a newline.

    Raises:
        FormatError: the text or the name cannot stand in a note.
    """
    _check_name(name)
    _check_text(text)
    if not text.endswith("\n"):
        raise FormatError("the text of a note ends in a newline")
    signature = key_id(name, key.public_key()) + key.sign(text.encode())
    return f"{text}\n— {name} {base64.b64encode(signature).decode()}\n"


def verify(note: str, verifier: str) -> str:
    """Check that a note carries a good signature by `verifier`; returns its text.

    Signatures by other keys are ignored, as the spec wants.

    Args:
        note: the whole note.
        verifier: a verifier key string.

    Raises:
        FormatError: not a note, or `verifier` is no verifier key.
        SignatureError: that key did not sign it, or its signature does not hold.
    """
    name, key = parse_verifier_key(verifier)
    text, signatures = _split(note)
    found = [data for signer, data in signatures if signer == name and data[:4] == key_id(name, key)]
    if not found:
        raise SignatureError(f"the note is not signed by the key of {name}")
    for data in found:
        try:
            key.verify(data[4:], text.encode())
        except InvalidSignature as error:
            raise SignatureError(f"the note's signature by {name} does not hold") from error
    return text


@dataclass(frozen=True)
class LedgerHead:
    """What a ledger was at one moment."""

    origin: str
    size: int  # leaves
    root: bytes  # 32 bytes

    def to_text(self) -> str:
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    @classmethod
    def from_text(cls, text: str) -> LedgerHead:
        """Read a tlog-checkpoint body; extension lines are refused, since nothing of ours checks them.

        Raises:
            FormatError: not exactly an origin, a size and a root.
        """
        lines = text.split("\n")
        if len(lines) != 4 or lines[3] != "":
            raise FormatError("a ledger head has three lines: origin, size, root")
        name, size, encoded = lines[:3]
        _check_name(name)
        root = _base64(encoded, "a ledger head's root")
        if len(root) != 32:
            raise FormatError(f"a ledger head's root has 32 bytes, got {len(root)}")
        return cls(name, parse_decimal(size, "a ledger head's size"), root)


def sign_head(head: LedgerHead, key: Ed25519PrivateKey) -> str:
    """The note of a ledger head; the key's name is the origin."""
    return sign(head.to_text(), head.origin, key)


def open_head(note: str, verifier: str) -> LedgerHead:
    """Check a ledger head's signature and form, and that it is by the log it names.

    Raises:
        FormatError: not a ledger head.
        SignatureError: not signed by `verifier`, or that key speaks for another log.
    """
    head = LedgerHead.from_text(verify(note, verifier))
    name = parse_verifier_key(verifier)[0]
    if head.origin != name:
        raise SignatureError(f"the ledger head is of {head.origin}, expected {name}")
    return head


def parse_decimal(text: str, what: str) -> int:
    """Digits without leading zeroes, at most 2**53 - 1. Raises: FormatError."""
    if not re.fullmatch(r"0|[1-9][0-9]{0,15}", text, re.ASCII) or int(text) > MAX_TREE_SIZE:
        raise FormatError(f"{what} is a decimal number without leading zeroes, got {text[:20]!r}")
    return int(text)


def _split(note: str) -> tuple[str, list[tuple[str, bytes]]]:
    """A note's text, and its signatures as (name, key ID and signature)."""
    if len(note.encode(errors="replace")) > MAX_NOTE_BYTES:
        raise FormatError(f"a note has at most {MAX_NOTE_BYTES} bytes")
    _check_text(note)
    text, separator, block = note.rpartition("\n\n")
    if not separator or not block.endswith("\n"):
        raise FormatError("a note has a text, an empty line, and signature lines")
    signatures: list[tuple[str, bytes]] = []
    for line in block.splitlines(keepends=True):
        match = _SIGNATURE_LINE.fullmatch(line)
        if match is None or len(signatures) == MAX_SIGNATURES:
            raise FormatError("a note's signature line reads '— name base64', and there are not too many")
        _check_name(match[1])
        data = _base64(match[2], "a note's signature")
        if len(data) < 5:
            raise FormatError("a note's signature is too short")
        signatures.append((match[1], data))
    return text + "\n", signatures


def _check_text(text: str) -> None:
    if any((character < " " and character != "\n") or "\ud800" <= character <= "\udfff" for character in text):
        raise FormatError("a note holds no control characters but newlines")


def _check_name(name: str) -> None:
    if not 0 < len(name) <= MAX_NAME_CHARS or "+" in name or any(character.isspace() for character in name):
        raise FormatError("a note's key name is not empty and holds neither spaces nor '+'")


def _base64(text: str, what: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError(f"{what} is not base64") from error
    if base64.b64encode(data).decode() != text:
        raise FormatError(f"{what} is not in the one canonical base64 form")
    return data


def _raw(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
