"""Beginners: whose first round is the run's, in the coordinator's word, signed once and for all.

Before round 1 there is no agreement whose members could decide which of two first rounds counts. So the coordinator
names some of those that came first, and round 1 is committed by a majority of them (each counts one) and by nobody
else. The word is final: were it changed, the second ones could not know what the first had committed. The agreement of
round 1 carries it, so that whoever checks a checkpoint can see that the run began where its coordinator said.

    {"peers":["12D3KooW…"],"run":"<run digest>"}          a DSSE envelope by the key that signs membership certificates

    >>> from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    >>> from protocol.epoch import open_word
    >>> from protocol.keys import PeerIdentity
    >>> key = Ed25519PrivateKey.generate()
    >>> signed = Beginners(run="ab" * 32, peers=("alice", "bob")).sign(PeerIdentity(key))
    >>> open_word(signed.data, key.public_key(), run="ab" * 32).value.weights
    {'alice': 1, 'bob': 1}
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from protocol.digests import Digest
from protocol.signed import Statement

MAX_BEGINNERS = 1024


def _each_once(peers: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(peers)) != len(peers):
        raise ValueError("a beginner is named twice")
    return peers


Peers = Annotated[tuple[Annotated[str, Field(max_length=64)], ...], AfterValidator(_each_once)]


class Beginners(Statement):
    """Who decides on round 1; signed by the run's membership key, and checked by `protocol.epoch.open_word`."""

    media_type: ClassVar[str] = "application/vnd.potluck.beginners.v1+json"
    max_bytes: ClassVar[int] = 256 * 1024
    run: Digest
    peers: Peers = Field(min_length=1, max_length=MAX_BEGINNERS)

    @property
    def weights(self) -> dict[str, int]:
        """Peer id -> weight, as an agreement has them."""
        return dict.fromkeys(self.peers, 1)
