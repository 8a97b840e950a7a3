"""A peer's identity in one file under a passphrase: what `potluck identity export` writes and `import` reads.

One JSON object. The key is the 68-byte form of `protocol.keys`, and nothing else is in it: receipts are no secret, and
are files of their own.

    {"format":"potluck identity","version":1,"peer_id":"12D3Koo…",
     "kdf":{"name":"scrypt","log2_n":17,"r":8,"p":1,"salt":"<16 bytes, hex>"},
     "cipher":{"name":"chacha20-poly1305","nonce":"<12 bytes, hex>"},
     "sealed":"<the key and 16 bytes that show it whole, hex>",
     "sha256":"<of the canonical JSON of all the others>"}

scrypt (RFC 7914) makes the cipher's key of the passphrase, as UTF-8 in the form NFKC; RFC 8439 seals. Sealed with the
key is the canonical JSON of all but `sealed` and `sha256`. The SHA-256 tells a file that was damaged from a passphrase
that is wrong and from a later version, which keeps it. What scrypt may cost is bounded before it is computed.

    >>> identity, phrase = PeerIdentity.generate(), Passphrase("when everyone brings wood")
    >>> file = seal(identity, phrase, log2_n=LEAST_LOG2_N)
    >>> unseal(file, phrase).peer_id == identity.peer_id == IdentityExport.parse(file).peer_id
    True
"""

from __future__ import annotations

import json
import os
import unicodedata
from typing import Annotated, Any, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol import canonical
from protocol.errors import FormatError, InputError, RefusedError, UnsupportedError
from protocol.installed import this_installation
from protocol.keys import PeerIdentity
from protocol.ledger_entry import PeerId

FORMAT, VERSION = "potluck identity", 1
MAX_EXPORT_BYTES = 4096
LOG2_N = 17  # of exports that are written: 128 MiB and under a second
LEAST_LOG2_N, MOST_LOG2_N = 12, 18  # of those that are read: 4 to 256 MiB
MIN_PASSPHRASE_CHARS, MAX_PASSPHRASE_CHARS = 8, 1024
_PLAIN_BYTES = bytes.fromhex("08011240")  # that `potluck identity backup` begins with
_ANOTHER = "take another copy of it"
_HINT = "give the file that `potluck identity export` wrote"


class Passphrase:
    """What seals an export.

    Raises:
        InputError: too short to be one, or too long.
    """

    def __init__(self, text: str) -> None:
        text = unicodedata.normalize("NFKC", text)
        if len(text) < MIN_PASSPHRASE_CHARS:
            raise InputError(
                f"the passphrase has {len(text)} characters, expected at least {MIN_PASSPHRASE_CHARS}",
                "take some words that nobody guesses; whoever has the file can try as many as they like",
            )
        if len(text) > MAX_PASSPHRASE_CHARS:
            raise InputError(f"a passphrase has at most {MAX_PASSPHRASE_CHARS} characters")
        self._data = text.encode(errors="surrogatepass")

    def key(self, kdf: Kdf) -> bytes:
        """The 32 bytes that the cipher takes. Raises: InputError: there is no memory for it."""
        work = Scrypt(salt=bytes.fromhex(kdf.salt), length=32, n=1 << kdf.log2_n, r=kdf.r, p=kdf.p)
        try:
            return work.derive(self._data)
        except MemoryError as error:
            raise InputError(
                f"scrypt needs {(128 * kdf.r << kdf.log2_n) >> 20} MB of memory, which this computer has not got",
                "close other programs, and try again",
            ) from error


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Kdf(_Part):
    """How a passphrase becomes a key."""

    name: Literal["scrypt"] = "scrypt"
    log2_n: Annotated[int, Field(ge=LEAST_LOG2_N, le=MOST_LOG2_N)]
    r: Literal[8] = 8
    p: Literal[1] = 1
    salt: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class Cipher(_Part):
    """What the key is sealed with."""

    name: Literal["chacha20-poly1305"] = "chacha20-poly1305"
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{24}$")]


class IdentityExport(_Part):
    """An export as it was read; its peer id is not believed before `unseal`."""

    format: Literal["potluck identity"] = "potluck identity"
    version: Literal[1] = 1
    peer_id: PeerId
    kdf: Kdf
    cipher: Cipher
    sealed: Annotated[str, Field(pattern=r"^[0-9a-f]{168}$")]

    @property
    def header(self) -> bytes:
        """What is sealed with the key."""
        return canonical.dumps(self.model_dump(mode="json", exclude={"sealed"}))

    @classmethod
    def parse(cls, data: bytes) -> IdentityExport:
        """Read an export.

        Raises:
            UnsupportedError: by a later Potluck.
            FormatError: damaged, out of bounds, or no export at all.
        """
        value = _object(data)
        check = value.pop("sha256", None)
        if check != canonical.digest(value):
            raise FormatError("the export is damaged: its check digits do not match", _ANOTHER)
        version = value.get("version")
        if version != VERSION:
            raise UnsupportedError(
                f"an export of version {str(version)[:20]}; this Potluck reads version {VERSION}",
                this_installation().upgrade("peer"),
            )
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise FormatError(f"not an export that can be read: {where}: {first['msg']}", _HINT) from error


def seal(identity: PeerIdentity, passphrase: Passphrase, log2_n: int | None = None) -> bytes:
    """The file for an identity; `log2_n`: None: `LOG2_N`."""
    kdf, nonce = Kdf(log2_n=log2_n or LOG2_N, salt=os.urandom(16).hex()), os.urandom(12)
    told: dict[str, Any] = {"peer_id": identity.peer_id, "kdf": kdf, "cipher": Cipher(nonce=nonce.hex())}
    header = IdentityExport(**told, sealed="0" * 168).header
    sealed = ChaCha20Poly1305(passphrase.key(kdf)).encrypt(nonce, identity.to_bytes(), header)
    value = IdentityExport(**told, sealed=sealed.hex()).model_dump(mode="json")
    return json.dumps(value | {"sha256": canonical.digest(value)}, indent=2).encode() + b"\n"


def unseal(data: bytes, passphrase: Passphrase) -> PeerIdentity:
    """The identity in an export.

    Raises:
        FormatError: no export, or a damaged one.
        RefusedError: the passphrase is another one.
    """
    export = IdentityExport.parse(data)
    cipher = ChaCha20Poly1305(passphrase.key(export.kdf))
    try:
        key = cipher.decrypt(bytes.fromhex(export.cipher.nonce), bytes.fromhex(export.sealed), export.header)
    except InvalidTag as error:
        raise RefusedError("wrong passphrase", "nothing was changed; try again") from error
    identity = PeerIdentity.from_bytes(key)
    if identity.peer_id != export.peer_id:
        raise FormatError(f"the export says that it is of {export.peer_id}, and holds the key of {identity.peer_id}")
    return identity


def is_export(data: bytes) -> bool:
    """Whether a file looks like an export, damaged or not."""
    return data.lstrip()[:1] == b"{" and f'"{FORMAT}"'.encode() in data


def _object(data: bytes) -> dict[str, Any]:
    """Raises: FormatError: not the JSON of an export."""
    if data.startswith(_PLAIN_BYTES):
        raise FormatError("a plain backup, not an export", "bring it back with `potluck identity restore`")
    try:
        value = canonical.loads(data, max_bytes=MAX_EXPORT_BYTES)
    except FormatError as error:
        if is_export(data):
            raise FormatError("the export is damaged: it cannot be read to its end", _ANOTHER) from error
        raise FormatError("not an export of an identity", _HINT) from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise FormatError("not an export of an identity", _HINT)
    return value
