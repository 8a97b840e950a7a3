"""Beginners: whose first round is the run's, in the coordinator's word, signed once and for all.

Before round 1 there is no agreement whose members could decide which of two first rounds counts. So the coordinator
names some of those that came first, and round 1 is committed by a majority of them (each counts one) and by nobody else.
The word is final: were it changed, the second ones could not know what the first had committed. The agreement of round 1
carries it, so that whoever checks a checkpoint can see that the run began where its coordinator said.

    {"peers":["12D3KooW…"],"run":"<run digest>"}          a DSSE envelope by the key that signs membership certificates

    >>> from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    >>> key = Ed25519PrivateKey.generate()
    >>> signed = Beginners(run="ab" * 32, peers=("alice", "bob")).sign(key)
    >>> open_beginners(signed, key.public_key(), run="ab" * 32).weights
    {'alice': 1, 'bob': 1}
"""

from __future__ import annotations

from typing import Annotated

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol import envelope
from protocol.errors import FormatError, SignatureError, VerificationError
from protocol.invite import Hex64
from protocol.keys import PeerIdentity, peer_id_of

BEGINNERS_TYPE = "application/vnd.potluck.beginners.v1+json"
MAX_BEGINNERS = 1024
MAX_BEGINNERS_BYTES = 256 * 1024


class Beginners(BaseModel):
    """Who decides on round 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Hex64
    peers: tuple[Annotated[str, Field(max_length=64)], ...] = Field(min_length=1, max_length=MAX_BEGINNERS)

    @property
    def weights(self) -> dict[str, int]:
        """Peer id -> weight, as an agreement has them."""
        return dict.fromkeys(self.peers, 1)

    def sign(self, key: Ed25519PrivateKey) -> bytes:
        """The signed word, by the run's membership key."""
        return envelope.sign(self.model_dump(mode="json"), BEGINNERS_TYPE, PeerIdentity(key)).to_bytes()


def trusted_beginners(data: bytes) -> Beginners:
    """Read a word whose signature was checked before."""
    payload = envelope.Envelope.from_bytes(data, MAX_BEGINNERS_BYTES).payload
    return Beginners.model_validate_json(payload)


def open_beginners(data: bytes, key: Ed25519PublicKey, *, run: str) -> Beginners:
    """Check the signed word.

    Args:
        key: the run's membership key, from the run card.

    Raises:
        FormatError: not such a word.
        SignatureError: not signed by `key`.
        VerificationError: for another run.
    """
    signer, value = envelope.open_by_peer(data, BEGINNERS_TYPE, MAX_BEGINNERS_BYTES)
    if signer != peer_id_of(key):
        raise SignatureError("the beginners were not named by this run's coordinator")
    try:
        word = Beginners.model_validate(value)
    except ValidationError as error:
        raise FormatError(f"not a naming of beginners: {error.errors()[0]['msg']}") from error
    if word.run != run:
        raise VerificationError("the beginners of another run")
    if len(set(word.peers)) != len(word.peers):
        raise FormatError("a beginner is named twice")
    return word
