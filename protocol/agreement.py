"""Agreements: a round's claims and votes, with the members' certificates: proof that the round was committed.

Peers make them, the coordinator grants credit by them, a verifier believes a checkpoint by them. What is checked here
is what an agreement shows by itself; whether it follows the round before says `protocol.succession`.

    {"certificates":{"12D3KooW…":"<JWT>"},"claims":[<DSSE>],"votes":[<DSSE>],"weights":{"12D3KooW…":1024}}

    "farewells":[<DSSE>]            where somebody had left
    "newcomers":{"12D3KooW…":1}     where somebody is new
    "full":3,"recent":{"12D3KooW…":2}    where groups are full, and members take turns: `protocol.last`
    "beginners":<DSSE>              in round 1: whom the coordinator named to begin
    "epoch":<DSSE>                  in the first round of an epoch: whom it named to decide that one (`protocol.epoch`)

Where a state is completed that an earlier attempt has averaged (`protocol.statements.Vote.completes`), acceptors that
are not in the group may be among the voters, with their certificates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from protocol import canonical, certificate
from protocol.beginners import Beginners
from protocol.digests import Digest
from protocol.epoch import Epoch, Word, check_word
from protocol.errors import FormatError, VerificationError
from protocol.majority import acceptors_after, has_majority
from protocol.signed import Signed, Statement, open_signed, stored_signed
from protocol.statements import MAX_WAIT, Claim, Farewell, Vote

MAX_GROUP = 1024
MAX_AGREEMENT_BYTES = 8 << 20

S = TypeVar("S", bound=Statement)
_WORDS: dict[str, type[Beginners] | type[Epoch]] = {"beginners": Beginners, "epoch": Epoch}
_MOST = {"claims": MAX_GROUP, "votes": 2 * MAX_GROUP, "farewells": MAX_GROUP}
_Open = Callable[[type[S], bytes], Signed[S]]


def group_digest(claims: Iterable[Signed[Claim]]) -> Digest:
    """Names a group: who is in it, with which claims, in which order."""
    return _digest_of(tuple(claim.digest for claim in claims))


@lru_cache(maxsize=256)  # a group is named many times, by all who hold it
def _digest_of(claims: tuple[Digest, ...]) -> Digest:
    return canonical.digest(list(claims))


@dataclass(frozen=True)
class Counts:
    """What follows from a group's claims and the round before by the run's rules (`protocol.succession.counted`)."""

    weights: Mapping[str, int]  # what each member counts for, tokens
    newcomers: Mapping[str, int] = field(default_factory=dict)  # peer id -> in how many agreements, where in few
    full: int = 0  # agreements in a row with a full group, up to this one; see `protocol.last`
    recent: Mapping[str, int] = field(default_factory=dict)  # who waits for its turn -> rounds since it was in one


@dataclass(frozen=True)
class Agreement:
    """A committed round: what was claimed, and who signed the state that came of it."""

    claims: tuple[Signed[Claim], ...]  # in group order
    votes: tuple[Signed[Vote], ...]
    certificates: Mapping[str, str]  # peer id -> JWT, of each member and voter
    counts: Counts
    farewells: tuple[Signed[Farewell], ...] = ()  # by which the majority of the round before was counted
    word: Signed[Word] | None = None  # the coordinator's, where it says who decides this round

    # ---- what it says ------------------------------------------------------------------------------------------------

    @property
    def run(self) -> Digest:
        return self.votes[0].value.run

    @property
    def round(self) -> int:
        return self.votes[0].value.round

    @property
    def base(self) -> Digest:
        return self.votes[0].value.base

    @property
    def state(self) -> Digest:
        return self.votes[0].value.state

    @property
    def epoch(self) -> int:
        """Of the coordinator's word by which it was decided; 0: of none."""
        return self.votes[0].value.epoch

    @property
    def completes(self) -> bool:
        """Whether its state was averaged in an earlier attempt: then the acceptors have decided alone."""
        return self.votes[0].value.completes

    @property
    def weights(self) -> Mapping[str, int]:
        return self.counts.weights

    @cached_property
    def by_peer(self) -> dict[str, Claim]:
        """Each member's claim."""
        return {claim.by: claim.value for claim in self.claims}

    @cached_property
    def voters(self) -> frozenset[str]:
        """Peer ids of those that signed for the state: of members, or, where it completes one, of others, too."""
        return frozenset(vote.by for vote in self.votes)

    def has_majority_of(self, previous: Mapping[str, int]) -> bool:
        """Whether its voters, by the farewells that it carries, speak for the majority of these weights."""
        return has_majority(
            self.voters, acceptors_after(previous, {said.by: said.value.successor for said in self.farewells})
        )

    # ---- as bytes ----------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {
            "claims": [_json(claim) for claim in self.claims],
            "votes": [_json(vote) for vote in self.votes],
            "certificates": dict(self.certificates),
            "weights": dict(self.counts.weights),
        }
        if self.farewells:
            value["farewells"] = [_json(said) for said in self.farewells]
        if self.counts.newcomers:
            value["newcomers"] = dict(self.counts.newcomers)
        if self.counts.full:
            value["full"] = self.counts.full
        if self.counts.recent:
            value["recent"] = dict(self.counts.recent)
        if self.word:
            value[_word_key(self.word.value)] = _json(self.word)
        return value

    def to_bytes(self) -> bytes:
        return canonical.dumps(self.to_json())

    @classmethod
    def from_bytes(cls, data: bytes, *, run: str, membership_key: Ed25519PublicKey) -> Agreement:
        """Read and check an agreement that came from outside. Raises: FormatError, RefusedError."""
        return cls.from_json(
            canonical.loads(data, max_bytes=MAX_AGREEMENT_BYTES), run=run, membership_key=membership_key
        )

    @classmethod
    def from_json(cls, value: Any, *, run: str, membership_key: Ed25519PublicKey) -> Agreement:
        """Check every signature, each once, and the majority of the claimed work, where that is asked for.

        The counts stand in the agreement because they depend on the round before; the weights are checked never to
        exceed the claims, and all of them against that round by whoever holds it (`protocol.succession`).

        Raises:
            FormatError: not an agreement.
            RefusedError: a signature, a certificate or the majority does not hold.
        """
        agreement = _read(value, open_signed)
        _check_claims(agreement, run)
        _check_counts(agreement.counts)
        _check_votes(agreement)
        _check_certificates(agreement, membership_key)
        _check_word(agreement, membership_key)
        for said in agreement.farewells:
            check_farewell(said.value, run, agreement.round, agreement.votes[0].value.attempt, agreement.epoch)
        if not agreement.completes and not has_majority(agreement.voters, agreement.weights):
            raise VerificationError(f"round {agreement.round}: the votes do not make a majority of the claimed work")
        return agreement

    @classmethod
    def stored(cls, data: bytes) -> Agreement:
        """Read an agreement that was checked before it was stored, where nobody else writes: no signature is read."""
        return _read(canonical.loads(data, max_bytes=MAX_AGREEMENT_BYTES), stored_signed)


def check_farewell(said: Farewell, run: str, round: int, attempt: int, epoch: int = 0) -> None:
    """Check that a farewell counts in an attempt at a round. Raises: VerificationError."""
    if (said.run, said.round) != (run, round):
        raise VerificationError(f"a farewell for round {said.round} of a run, expected round {round}")
    if said.epoch != epoch:
        raise VerificationError(f"a farewell of epoch {said.epoch}, expected epoch {epoch}")
    if said.attempt > attempt:
        raise VerificationError(f"a farewell counts from attempt {said.attempt} on, not in {attempt}")


def _word_key(word: Word) -> str:
    return next(key for key, kind in _WORDS.items() if isinstance(word, kind))


def _json(signed: Signed[Any]) -> Any:
    return canonical.loads(signed.data, max_bytes=len(signed.data))


def _read(value: Any, open_one: _Open[Any]) -> Agreement:
    """The agreement in a JSON value, each statement opened by `open_one`. Raises: FormatError, RefusedError."""
    try:
        parts = {name: [canonical.dumps(item) for item in value[name]] for name in ("claims", "votes")}
        parts["farewells"] = [canonical.dumps(item) for item in value.get("farewells", ())]
        counts = Counts(
            dict(value["weights"]),
            dict(value.get("newcomers", {})),
            value.get("full", 0),
            dict(value.get("recent", {})),
        )
        certificates = dict(value["certificates"])
        words = [(kind, canonical.dumps(value[key])) for key, kind in _WORDS.items() if key in value]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError("not an agreement: expected claims, votes, certificates, weights") from error
    if len(words) > 1:
        raise FormatError("an agreement is by one word of the coordinator, or by none")
    if not parts["claims"] or not parts["votes"] or any(len(parts[name]) > most for name, most in _MOST.items()):
        raise FormatError(f"an agreement has 1 to {MAX_GROUP} claims, and votes")
    claims = tuple(open_one(Claim, data) for data in parts["claims"])
    votes = tuple(open_one(Vote, data) for data in parts["votes"])
    return Agreement(
        claims=claims,
        votes=votes,
        certificates={signed.by: certificates.get(signed.by, "") for signed in (*claims, *votes)},
        counts=counts,
        farewells=tuple(open_one(Farewell, data) for data in parts["farewells"]),
        word=open_one(*words[0]) if words else None,
    )


def _check_claims(agreement: Agreement, run: str) -> None:
    claims, given = agreement.by_peer, agreement.weights
    if len(claims) != len(agreement.claims):
        raise VerificationError("a peer has two claims in one agreement")
    if set(given) != set(claims):
        raise VerificationError("the weights name other peers than the claims")
    for peer_id, claim in claims.items():
        weight = given[peer_id]
        if not 1 <= _whole(weight, peer_id) <= claim.worth:
            raise VerificationError(
                f"{peer_id}: a weight is between 1 and the {claim.worth} claimed tokens, got {weight!r}"
            )
        expected = {"run": run, "round": agreement.round, "base": agreement.base}
        for name, value in expected.items():
            if getattr(claim, name) != value:
                raise VerificationError(f"{peer_id}: the claim is for another {name}, expected {value}")


def _check_counts(counts: Counts) -> None:
    """Whole numbers within their bounds; what they must be says the round before."""
    if not 0 <= _whole(counts.full, "full") <= MAX_WAIT:
        raise VerificationError(f"full groups are counted up to {MAX_WAIT}, got {counts.full}")
    for peer_id, rounds in counts.recent.items():
        if not 1 <= _whole(rounds, peer_id) <= counts.full:
            raise VerificationError(f"{peer_id}: waits 1 to {counts.full} rounds for its turn, got {rounds}")
    for peer_id, times in counts.newcomers.items():
        if _whole(times, peer_id) < 0:
            raise VerificationError(f"{peer_id}: was in {times} agreements")


def _whole(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise VerificationError(f"{name}: expected a whole number, got {value!r:.40}")
    return value


def _check_word(agreement: Agreement, membership_key: Ed25519PublicKey) -> None:
    if agreement.word is None:
        return
    word = agreement.word.value
    check_word(agreement.word, membership_key, run=agreement.run)
    if isinstance(word, Epoch):
        place = (agreement.epoch, agreement.round - 1, agreement.base)
        if (word.epoch, word.round, word.state) != place:
            raise VerificationError(
                f"round {agreement.round} of epoch {agreement.epoch}: the coordinator's word is on epoch {word.epoch}, "
                f"after round {word.round} and its state {word.state[:16]}…"
            )


def _check_certificates(agreement: Agreement, membership_key: Ed25519PublicKey) -> None:
    for peer_id, token in agreement.certificates.items():
        if not isinstance(token, str) or not token:
            raise VerificationError(f"{peer_id} shows no membership certificate")
        member = certificate.check(token, membership_key, run=agreement.run, accept_expired=True)
        if member.peer_id != peer_id:
            raise VerificationError(f"the certificate shown for {peer_id} belongs to {member.peer_id}")


def _check_votes(agreement: Agreement) -> None:
    """All votes are for one state, each voter's once; by members, or to complete it."""
    first, group = agreement.votes[0].value, group_digest(agreement.claims)
    voters: set[str] = set()
    for vote in agreement.votes:
        if vote.by not in agreement.by_peer and not agreement.completes:
            raise VerificationError(f"{vote.by} voted and is not in the group")
        if vote.by in voters:
            raise VerificationError(f"{vote.by} voted twice")
        if vote.value != first or vote.value.group != group or vote.value.run != agreement.claims[0].value.run:
            raise VerificationError(f"{vote.by} voted for another state, group or attempt")
        voters.add(vote.by)
