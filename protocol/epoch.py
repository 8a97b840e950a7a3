"""Epochs: the coordinator's signed word on who decides the round after an agreed one, where its members no longer can.

A round is decided by a majority of the weight that the last one agreed on. When half of that is gone for good, no rule
of members can go on: who holds more than half commits without the rest, and the rest cannot tell death from a cut line.
So the host may say it, and from then on every vote, promise and farewell names the number of that word. For each number
and each round there is one state, by the rules of any other round.

    {"epoch":1,"peers":{"12D3KooW…":1024},"round":41,"run":"<run digest>","state":"<state digest>"}
                                                          a DSSE envelope by the key that signs membership certificates

    >>> from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    >>> from protocol.keys import PeerIdentity
    >>> key = Ed25519PrivateKey.generate()
    >>> word = Epoch(epoch=1, run="ab" * 32, round=41, state="cd" * 32, peers={"alice": 1024, "bob": 512})
    >>> open_word(word.sign(PeerIdentity(key)).data, key.public_key(), run="ab" * 32).value.weights
    {'alice': 1024, 'bob': 512}

What it undoes: whatever was agreed after that round without the word. A branch of a later epoch outranks one of an
earlier epoch, however long (`protocol.succession.outranks`); whoever was cut off and went on comes back, takes the
later branch, and its rounds were for nothing. That is why no timer, no threshold and no member may send it, and no
program by itself: the half that seems gone may be at work. A person does, who knows that those members are lost or
accepts that their rounds are.

What it cannot do: change a state, or make one without a majority of those whom it names. A number is given once. Two
words of one number, both signed, show a host that broke its word; members keep to the one that they saw first, a chain
of agreements has each number once, in rising order, and a coordinator's ledger takes its own. The first agreement of an
epoch carries the word, so that whoever checks a checkpoint sees where it was given. Runs know of it by
`sync.rules = 3`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, TypeAlias

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import Field

from protocol.beginners import MAX_BEGINNERS, Beginners
from protocol.digests import Digest
from protocol.envelope import Envelope
from protocol.errors import FormatError, SignatureError, VerificationError
from protocol.keys import peer_id_of
from protocol.signed import Signed, Statement, open_signed, stored_signed
from protocol.statements import MAX_EPOCH, MAX_TOKENS

PeerId = Annotated[str, Field(max_length=64)]
Weight = Annotated[int, Field(ge=1, le=2 * MAX_TOKENS, strict=True)]  # the most that an agreement gives anybody


class Epoch(Statement):
    """Who decides the round after `round`, whose agreed state is `state`; signed by the run's membership key."""

    media_type: ClassVar[str] = "application/vnd.potluck.epoch.v1+json"
    max_bytes: ClassVar[int] = 256 * 1024
    run: Digest
    epoch: int = Field(ge=1, le=MAX_EPOCH, strict=True)  # its number, higher than all before
    round: int = Field(ge=1, le=10**9, strict=True)
    state: Digest
    peers: dict[PeerId, Weight] = Field(min_length=1, max_length=MAX_BEGINNERS)

    @property
    def weights(self) -> dict[str, int]:
        """Peer id -> weight, as an agreement has them."""
        return dict(self.peers)


Word: TypeAlias = Beginners | Epoch  # on who decides: round 1, or the round after an agreed one
_KINDS: dict[str, type[Beginners] | type[Epoch]] = {kind.media_type: kind for kind in (Beginners, Epoch)}


def open_word(data: bytes, key: Ed25519PublicKey, *, run: str) -> Signed[Word]:
    """Check a signed word of either kind, given the run's membership key, from the run card.

    Raises:
        FormatError: not such a word.
        SignatureError: not signed by `key`.
        VerificationError: for another run.
    """
    word: Signed[Word] = open_signed(_kind(data), data)
    check_word(word, key, run=run)
    return word


def stored_word(data: bytes) -> Signed[Word]:
    """Read a word that was checked before it was stored where nobody else writes. Raises: FormatError."""
    return stored_signed(_kind(data), data)


def check_word(word: Signed[Word], key: Ed25519PublicKey, *, run: str) -> None:
    """Check that a word is this run's coordinator's. Raises: as `open_word`."""
    what = "beginners" if isinstance(word.value, Beginners) else "members who decide"
    if word.by != peer_id_of(key):
        raise SignatureError(f"the {what} were not named by this run's coordinator")
    if word.value.run != run:
        raise VerificationError(f"the {what} of another run")


def _kind(data: bytes) -> type[Beginners] | type[Epoch]:
    named = Envelope.from_bytes(data, Epoch.max_bytes).payload_type
    if named not in _KINDS:
        raise FormatError(f"expected a word on who decides, got a {named[:80]}")
    return _KINDS[named]
