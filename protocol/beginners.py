"""Beginners: whose first round is the run's, in the coordinator's word, signed once and for all.

Before round 1 there is no agreement whose members could decide which of two first rounds counts. So the coordinator
names some of those that came first, and round 1 is committed by a majority of them (each counts one) and by nobody else.
The word is final: were it changed, the second ones could not know what the first had committed. The agreement of round 1
carries it, so that whoever checks a checkpoint can see that the run began where its coordinator said.

    {"peers":["12D3KooW…"],"run":"<run digest>"}          a DSSE envelope by the key that signs membership certificates

    >>> from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    >>> from protocol.keys import PeerIdentity
    >>> key = Ed25519PrivateKey.generate()
    >>> signed = Beginners(run="ab" * 32, peers=("alice", "bob")).sign(PeerIdentity(key))
    >>> open_beginners(signed.data, key.public_key(), run="ab" * 32).value.weights
    {'alice': 1, 'bob': 1}
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import Field

from protocol.digests import Digest
from protocol.errors import FormatError, SignatureError, VerificationError
from protocol.keys import peer_id_of
from protocol.signed import Signed, Statement, open_signed

MAX_BEGINNERS = 1024


class Beginners(Statement):
    """Who decides on round 1; signed by the run's membership key."""

    media_type: ClassVar[str] = "application/vnd.potluck.beginners.v1+json"
    max_bytes: ClassVar[int] = 256 * 1024
    run: Digest
    peers: tuple[Annotated[str, Field(max_length=64)], ...] = Field(min_length=1, max_length=MAX_BEGINNERS)

    @property
    def weights(self) -> dict[str, int]:
        """Peer id -> weight, as an agreement has them."""
        return dict.fromkeys(self.peers, 1)


def open_beginners(data: bytes, key: Ed25519PublicKey, *, run: str) -> Signed[Beginners]:
    """Check the signed word, given the run's membership key, from the run card.

    Raises:
        FormatError: not such a word.
        SignatureError: not signed by `key`.
        VerificationError: for another run.
    """
    word = open_signed(Beginners, data)
    check_beginners(word, key, run=run)
    return word


def check_beginners(word: Signed[Beginners], key: Ed25519PublicKey, *, run: str) -> None:
    """Check that a word is this run's. Raises: as `open_beginners`."""
    if word.by != peer_id_of(key):
        raise SignatureError("the beginners were not named by this run's coordinator")
    if word.value.run != run:
        raise VerificationError("the beginners of another run")
    if len(set(word.value.peers)) != len(word.value.peers):
        raise FormatError("a beginner is named twice")
