"""What somebody has signed, after its signature was checked: read once, then handed on as it is.

A `Statement` is a frozen model with a media type; signing one, or opening the bytes of one, gives a `Signed`. Whoever
holds a `Signed` need not ask again whether it is genuine, and never parses it a second time.

    >>> from typing import ClassVar
    >>> from protocol.keys import PeerIdentity
    >>> class Greeting(Statement):
    ...     media_type: ClassVar[str] = "application/vnd.potluck.example.v1+json"
    ...     word: str
    >>> alice = PeerIdentity.generate()
    >>> signed = Greeting(word="hello").sign(alice)
    >>> open_signed(Greeting, signed.data) == signed
    True
    >>> signed.by == alice.peer_id
    True
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self, TypeVar

from pydantic import ValidationError

from protocol import canonical, envelope
from protocol.digests import Digest
from protocol.envelope import MAX_ENVELOPE_BYTES, Envelope, Signer
from protocol.errors import FormatError
from protocol.fields import Fields

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Signed(Generic[T_co]):
    """A statement, who signed it, and the bytes that show it."""

    value: T_co
    by: str  # peer id that signed
    data: bytes  # the DSSE envelope, canonical
    digest: Digest  # of the payload: names the statement, however often it was signed


class Statement(Fields):
    """What a peer, or a run's coordinator by its membership key, signs."""

    media_type: ClassVar[str]
    max_bytes: ClassVar[int] = MAX_ENVELOPE_BYTES

    def sign(self, signer: Signer) -> Signed[Self]:
        made = envelope.sign(self.model_dump(mode="json"), self.media_type, signer)
        return Signed(self, made.keyid, made.to_bytes(), made.digest)


S = TypeVar("S", bound=Statement)


def open_signed(model: type[S], data: bytes) -> Signed[S]:
    """Check a statement's signature and form. Raises: FormatError, SignatureError."""
    opened = Envelope.from_bytes(data, model.max_bytes)
    return _signed(model, opened, envelope.checked_payload(opened, model.media_type, model.max_bytes))


def stored_signed(model: type[S], data: bytes) -> Signed[S]:
    """Read a statement that was checked before it was stored, where nobody else writes: its signature is not read."""
    opened = Envelope.from_bytes(data, model.max_bytes)
    return _signed(model, opened, canonical.loads(opened.payload, max_bytes=model.max_bytes))


def _signed(model: type[S], opened: Envelope, value: Any) -> Signed[S]:
    try:
        return Signed(model.model_validate(value), opened.keyid, opened.to_bytes(), opened.digest)
    except ValidationError as error:
        first, name = error.errors()[0], model.__name__.lower()
        article = "an" if name[0] in "aeiou" else "a"
        raise FormatError(f"not {article} {name}: {first['loc']}: {first['msg']}") from error
