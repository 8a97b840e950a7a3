"""What may follow what: the one rule by which a round extends a run. Members, coordinator and verifier all call it.

An agreement follows the round before when

- it is of the next round, from that round's state, and has at least `sync.min_peers` claims, at most `sync.max_group`;
- its voters speak for the majority of that round's weight, by the farewells that it carries; of round 1, for the
  majority of the beginners whom the coordinator has named and signed for (`protocol.beginners`);
- its weights are what `weights` makes of its claims and of the round before.

Waiting never replaces a majority, and neither do many members.

What a claim counts for, in the average, the vote and the credit, is bounded by what the group itself shows:

    regulars    were in the last `PROBATION` agreements, or in the first; the others are newcomers
    median      nobody counts for more than `MOST_TIMES` the median of the regulars' claims
    newcomers   count together for less than half of the regulars, so that these go on without them
    a third     of four or more, nobody has a third: whoever it is may vanish, and the others go on

    >>> last = Last(3, "cd" * 32, {"a": 100, "b": 100, "c": 100})
    >>> weights({"a": 100, "b": 100, "c": 100, "d": 10**12}, last)
    {'a': 100, 'b': 100, 'c': 100, 'd': 149}
    >>> weights({"a": 400, "b": 200, "c": 100}, last)
    {'a': 400, 'b': 200, 'c': 100}

Runs that began before these bounds (`sync.rules = 1` in their spec) keep their own: `growth_capped`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from protocol.agreement import Agreement, Counts
from protocol.beginners import Beginners
from protocol.errors import VerificationError
from protocol.run_spec import RunSpec
from protocol.statements import MAX_TOKENS, Claim

MOST_TIMES = 4  # the median claim
GROWTH_CAP = 4  # rules 1: a member counts at most this many times what it had agreed in the round before
PROBATION = 3  # agreements in a row that make a newcomer a regular


@dataclass(frozen=True)
class Last:
    """The last agreed round, as far as the next one hangs on it."""

    round: int  # 0: genesis
    state: str  # state digest
    weights: Mapping[str, int] = field(default_factory=dict)  # of its members; empty for genesis
    newcomers: Mapping[str, int] = field(default_factory=dict)  # as in its agreement
    base: str = ""  # state digest that it started from; empty for genesis

    @classmethod
    def of(cls, agreement: Agreement) -> Last:
        counts = agreement.counts
        return cls(agreement.round, agreement.state, dict(counts.weights), dict(counts.newcomers), agreement.base)

    def regulars(self) -> set[str]:
        """Who counts as a regular in the round after this one."""
        return {peer for peer in self.weights if self.newcomers.get(peer, PROBATION) >= PROBATION}


def weights(worths: Mapping[str, int], last: Last) -> dict[str, int]:
    """What each claim counts for, tokens; at least 1 each.

    Args:
        worths: peer id -> what its claim may count for at most (`Claim.worth`).
        last: the round before.
    """
    regulars = worths.keys() & last.regulars() or set(worths)
    claimed = sorted(worths[peer] for peer in regulars)
    most = MOST_TIMES * claimed[(len(claimed) - 1) // 2]
    counted = {peer: min(worth, most) for peer, worth in worths.items()}
    newcomers = {peer: counted[peer] for peer in counted if peer not in regulars}
    held = sum(counted[peer] for peer in regulars)
    counted |= _capped(newcomers, lambda total, cap: 2 * total < held)
    if len(counted) >= 4 and len(regulars) > 1:  # one regular alone: its weight is all that stays of the run
        counted = _capped(counted, lambda total, cap: 3 * cap < total)
    return counted


def _capped(values: Mapping[str, int], fits: Callable[[int, int], bool]) -> dict[str, int]:
    """The values, none above the largest cap for which `fits(sum, cap)` holds; a cap of 1 is always taken."""

    def at(cap: int) -> dict[str, int]:
        return {peer: min(value, cap) for peer, value in values.items()}

    low, high = 1, max(values.values(), default=1)  # it fits up to some cap, and not above
    while low < high:
        cap = (low + high + 1) // 2
        if fits(sum(at(cap).values()), cap):
            low = cap
        else:
            high = cap - 1
    return at(low)


def growth_capped(worths: Mapping[str, int], previous: Mapping[str, int]) -> dict[str, int]:
    """What each claim counts for in runs of `sync.rules = 1`.

    At most `GROWTH_CAP` times what a member was agreed to have done in the round before; one that was not in it counts at
    most as much as the strongest that was.

    Args:
        worths: peer id -> what its claim may count for at most.
        previous: the weights of the round before; empty for round 1.
    """
    newcomer_cap = max(previous.values(), default=MAX_TOKENS)
    return {
        peer_id: min(worth, GROWTH_CAP * previous[peer_id] if peer_id in previous else newcomer_cap)
        for peer_id, worth in worths.items()
    }


def counted(claims: Mapping[str, Claim], last: Last, spec: RunSpec) -> Counts:
    """What the claims of a group, by peer id, count for, and what of it the round after needs to know."""
    worths = {peer_id: made.worth for peer_id, made in claims.items()}
    if spec.sync.rules == 1:
        return Counts(growth_capped(worths, last.weights))
    return counted_worths(worths, last)


def counted_worths(worths: Mapping[str, int], last: Last) -> Counts:
    """The same of what the claims may count for at most."""
    if not last.weights:  # in round 1 all are regulars
        return Counts(weights(worths, last))
    been = {peer_id: _been(peer_id, last) + 1 for peer_id in worths}
    return Counts(weights(worths, last), {peer_id: times for peer_id, times in been.items() if times < PROBATION})


def _been(peer_id: str, last: Last) -> int:
    """In how many agreements in a row a member was, as far as it counts."""
    return last.newcomers.get(peer_id, PROBATION) if peer_id in last.weights else 0


def acceptors(last: Last, beginners: Beginners | None) -> dict[str, int]:
    """Whose votes decide on the round after `last`, before farewells; none at all where nobody was named."""
    if last.round == 0:
        return beginners.weights if beginners else {}
    return dict(last.weights)


def check_claim(peer_id: str, made: Claim, last: Last, spec: RunSpec) -> None:
    """Check that a claim may be made on top of a round, whatever else is in its group.

    Raises:
        VerificationError: for another round or base; more tokens than its sequences hold; late work that was counted.
    """
    if (made.round, made.base) != (last.round + 1, last.state):
        raise VerificationError(
            f"{peer_id} claims work for another run, round or base than round {last.round + 1} from {last.state[:8]}…"
        )
    length, late = spec.data.sequence_length, made.late
    if made.tokens > made.batches * length:
        raise VerificationError(f"{peer_id} claims {made.tokens} tokens in {made.batches} sequences: more than fit")
    if late is None:
        return
    if peer_id in last.weights or last.round == 0:
        raise VerificationError(f"{peer_id} claims late work, and was in the round before with it")
    if last.base and late.base != last.base:
        raise VerificationError(f"{peer_id} claims late work from {late.base[:8]}…, expected {last.base[:8]}…")
    if late.tokens > late.batches * length:
        raise VerificationError(
            f"{peer_id} claims {late.tokens} late tokens in {late.batches} sequences: more than fit"
        )


def check_follows(agreement: Agreement, last: Last, spec: RunSpec, named: bytes | None = None) -> None:
    """Check that an agreement, its signatures already checked, is the run's next round.

    Args:
        last: the round before.
        named: the coordinator's own word on the beginners, where it is known; None: any that it has signed will do.

    Raises:
        VerificationError: it is not; with the reason.
    """
    number, sync = agreement.round, spec.sync
    if (number, agreement.base) != (last.round + 1, last.state):
        raise VerificationError(
            f"round {number} starts from state {agreement.base[:16]}…, expected round {last.round + 1} from {last.state[:16]}…"
        )
    if not sync.min_peers <= len(agreement.claims) <= sync.max_group:
        raise VerificationError(
            f"round {number}: {len(agreement.claims)} members, expected {sync.min_peers} to {sync.max_group}"
        )
    for peer_id, made in agreement.by_peer.items():
        check_claim(peer_id, made, last, spec)
    if agreement.counts != counted(agreement.by_peer, last, spec):
        raise VerificationError(f"round {number}: the weights do not follow from the claims and the round before")
    check_majority(agreement, last, spec, named)


def check_majority(agreement: Agreement, last: Last, spec: RunSpec, named: bytes | None = None) -> None:
    """Check that an agreement's voters may decide on the round after `last`. Raises: VerificationError."""
    word = agreement.beginners
    if last.round == 0 and spec.sync.rules > 1:
        if word is None:
            raise VerificationError("round 1 does not say whom the coordinator named to begin")
        if named is not None and named != word.data:
            raise VerificationError("round 1 is not by the beginners that the coordinator has named")
    deciding = acceptors(last, word.value if word else None)
    if not agreement.has_majority_of(deciding):
        held = sum(weight for peer, weight in deciding.items() if peer in agreement.voters)
        raise VerificationError(
            f"round {agreement.round}: those who signed hold {held} of {sum(deciding.values())} of the weight that decides"
        )
