"""What a claim counts for, in the average, the vote and the credit: bounded by what the group itself shows.

    regulars    were in the last `PROBATION` agreements, or in the first; the others are newcomers
    median      nobody counts for more than `MOST_TIMES` the median of the regulars' claims
    newcomers   count together for less than half of the regulars, so that these go on without them
    a third     of four or more, nobody has a third: whoever it is may vanish, and the others go on

    >>> last = Last(3, "cd" * 32, {"a": 100, "b": 100, "c": 100})
    >>> weights({"a": 100, "b": 100, "c": 100, "d": 10**12}, last)
    {'a': 100, 'b': 100, 'c': 100, 'd': 149}
    >>> weights({"a": 400, "b": 200, "c": 100}, last)
    {'a': 400, 'b': 200, 'c': 100}

By `sync.rules = 3`, whoever waits for its turn (`protocol.last`) stays what it was, regular or newcomer, and a claim is
held against the median by what it is worth for each round that it is the work of:

    >>> others = dict.fromkeys("abcdfghijklm", 100)
    >>> last = Last(3, "cd" * 32, others, full=5, recent={"e": 4})
    >>> [weights(others | {"e": 500}, last, rounds)["e"] for rounds in ({}, {"e": 5})]
    [400, 500]

Runs that began before these bounds (`sync.rules = 1` in their spec) keep their own: `growth_capped`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from protocol.agreement import Counts
from protocol.last import PROBATION, Last
from protocol.run_spec import RunSpec
from protocol.statements import MAX_TOKENS, MAX_WAIT, Claim

MOST_TIMES = 4  # the median claim
GROWTH_CAP = 4  # rules 1: a member counts at most this many times what it had agreed in the round before


def counted(claims: Mapping[str, Claim], last: Last, spec: RunSpec) -> Counts:
    """What the claims of a group, by peer id, count for, and what of it the round after needs to know."""
    worths = {peer: made.worth for peer, made in claims.items()}
    if spec.sync.rules == 1:
        return Counts(growth_capped(worths, last.weights))
    if spec.sync.rules == 2:
        return counted_worths(worths, last)
    rounds = {peer: made.rounds for peer, made in claims.items()}
    return counted_worths(worths, last, rounds, spec.sync.max_group)


def counted_worths(
    worths: Mapping[str, int], last: Last, rounds: Mapping[str, int] | None = None, max_group: int = 0
) -> Counts:
    """The same of what the claims may count for at most.

    Args:
        worths: peer id -> `Claim.worth`, tokens.
        rounds: peer id -> `Claim.rounds`, of those whose claims are the work of more than one.
        max_group: of the run; 0: nobody waits for its turn (rules 2).
    """
    full, recent = _waiting(worths, last, max_group) if max_group else (0, {})
    given = weights(worths, last, rounds)
    if not last.weights:  # in round 1 all are regulars
        return Counts(given, {}, full, recent)
    been = {peer: last.been(peer) + 1 for peer in worths} | {peer: last.been(peer) for peer in recent}
    return Counts(given, {peer: times for peer, times in been.items() if times < PROBATION}, full, recent)


def _waiting(members: Mapping[str, int], last: Last, max_group: int) -> tuple[int, dict[str, int]]:
    """`full` and `recent` of the agreement of these members, after `last`."""
    if 4 * len(members) < 3 * max_group:
        return 0, {}
    full = min(last.full + 1, MAX_WAIT)
    since = {peer: rounds + 1 for peer, rounds in last.recent.items()} | dict.fromkeys(last.weights, 1)
    return full, {peer: rounds for peer, rounds in since.items() if peer not in members and rounds <= full}


def weights(worths: Mapping[str, int], last: Last, rounds: Mapping[str, int] | None = None) -> dict[str, int]:
    """What each claim counts for, tokens; at least 1 each.

    Args:
        worths: peer id -> what its claim may count for at most (`Claim.worth`).
        last: the round before.
        rounds: peer id -> of how many rounds' work; 1 where it is not given.
    """
    spans = dict.fromkeys(worths, 1) | dict(rounds or {})
    regulars = worths.keys() & last.regulars() or set(worths)
    claimed = sorted(max(1, worths[peer] // spans[peer]) for peer in regulars)
    most = MOST_TIMES * claimed[(len(claimed) - 1) // 2]
    counted = {peer: min(worth, most * spans[peer]) for peer, worth in worths.items()}
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

    At most `GROWTH_CAP` times what a member was agreed to have done in the round before; one that was not in it counts
    at most as much as the strongest that was.

    Args:
        worths: peer id -> what its claim may count for at most.
        previous: the weights of the round before; empty for round 1.
    """
    newcomer_cap = max(previous.values(), default=MAX_TOKENS)
    return {
        peer_id: min(worth, GROWTH_CAP * previous[peer_id] if peer_id in previous else newcomer_cap)
        for peer_id, worth in worths.items()
    }
