"""What a claim counts for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocol.counting import GROWTH_CAP, MOST_TIMES, counted, growth_capped, weights
from protocol.last import PROBATION, Last
from protocol.statements import MAX_TOKENS
from tests.kit.agreeing import GENESIS, IDS, ONE, TWO, claim_of, spec_of

SPEC = spec_of(2)
GENESIS_LAST = Last(0, GENESIS)

worths = st.dictionaries(st.sampled_from("abcdefghij"), st.integers(1, MAX_TOKENS), min_size=1)
lasts = st.dictionaries(st.sampled_from("abcdefghij"), st.integers(1, MAX_TOKENS))


@given(worths, lasts, st.dictionaries(st.sampled_from("abcdefghij"), st.integers(1, PROBATION - 1)))
def test_weights_are_bounded_by_what_the_group_shows(worth: dict, before: dict, newcomers: dict) -> None:
    last = Last(1, ONE, before, {peer: times for peer, times in newcomers.items() if peer in before})
    given_ = weights(worth, last)
    total = sum(given_.values())
    assert given_.keys() == worth.keys() and all(1 <= given_[peer] <= worth[peer] for peer in worth)
    regulars = set(worth) & last.regulars() or set(worth)
    new = set(worth) - regulars
    claimed = sorted(worth[peer] for peer in regulars)
    assert max(given_.values()) <= MOST_TIMES * claimed[(len(claimed) - 1) // 2]
    held, others = sum(given_[peer] for peer in regulars), sum(given_[peer] for peer in new)
    if max((given_[peer] for peer in new), default=1) > 1:  # at one token each nothing can be taken off
        assert others < held
        assert others < total / 2
    if len(worth) >= 4 and len(regulars) > 1 and max(given_.values()) > 1:
        assert 3 * max(given_.values()) < total


def test_a_hundredfold_claim_has_less_than_a_third_from_the_first_round_on_and_the_others_go_on_without_it() -> None:
    claimed = dict.fromkeys("abcdef", 1000) | {"liar": 100_000}
    given_ = weights(claimed, GENESIS_LAST)
    assert given_["liar"] == 2999 and all(given_[peer] == 1000 for peer in "abcdef")
    next_round = Last(1, ONE, given_)
    assert weights(claimed, next_round) == given_


def test_five_newcomers_with_a_million_tokens_each_leave_three_members_the_majority() -> None:
    last = Last(2, ONE, dict.fromkeys("abc", 70_000))
    given_ = weights(dict.fromkeys("abc", 70_000) | dict.fromkeys("vwxyz", 10**6), last)
    assert sum(given_[peer] for peer in "vwxyz") < 105_000
    assert sum(given_[peer] for peer in "abc") == 210_000


def test_newcomers_of_the_last_rounds_are_counted_together() -> None:
    """Five come in one round and five in the next: all ten are newcomers, below half of the three."""
    claims = {IDS[index]: claim_of(0, GENESIS_LAST, SPEC, 1600) for index in range(3)}
    more = {IDS[index]: claim_of(0, GENESIS_LAST, SPEC, 10**6) for index in (3, 4)}
    first = counted(claims | more, Last(1, ONE, dict.fromkeys(IDS[:3], 1600)), SPEC)
    assert set(first.newcomers) == {IDS[3], IDS[4]}
    later = counted(
        claims | {IDS[index]: claim_of(0, GENESIS_LAST, SPEC, 10**6) for index in range(3, 8)},
        Last(2, TWO, first.weights, first.newcomers),
        SPEC,
    )
    assert later.newcomers == {IDS[3]: 2, IDS[4]: 2, IDS[5]: 1, IDS[6]: 1, IDS[7]: 1}
    assert 2 * sum(later.weights[IDS[index]] for index in range(3, 8)) < sum(
        later.weights[IDS[index]] for index in range(3)
    )


def test_a_newcomer_is_a_regular_after_three_agreements() -> None:
    last, claims = (
        Last(1, ONE, {IDS[0]: 1600}),
        {IDS[0]: claim_of(0, GENESIS_LAST, SPEC, 1600), IDS[1]: claim_of(0, GENESIS_LAST, SPEC, 1600)},
    )
    seen = []
    for number in range(2, 6):
        given_ = counted(claims, last, SPEC)
        seen.append(given_.weights[IDS[1]])
        last = Last(number, ONE, given_.weights, given_.newcomers)
    assert seen == [799, 799, 799, 1600]


def test_speeds_of_four_two_one_count_in_full() -> None:
    claimed = {"fast": 4000, "middle": 2000, "slow": 1000}
    assert weights(claimed, GENESIS_LAST) == claimed
    assert weights(claimed, Last(5, ONE, claimed)) == claimed


# ---- runs of rules 1 -------------------------------------------------------------------------------------------------


def test_weights_are_the_claimed_tokens_within_the_cap() -> None:
    claims = {"a": 100, "b": 10_000, "new": 10_000}
    previous = {"a": 90, "b": 50, "gone": 300}
    assert growth_capped(claims, previous) == {"a": 100, "b": GROWTH_CAP * 50, "new": 300}
    assert growth_capped(claims, {}) == {"a": 100, "b": 10_000, "new": 10_000}


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, MAX_TOKENS), min_size=1),
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, MAX_TOKENS)),
)
def test_no_member_ever_counts_for_more_than_it_claims_or_its_cap(tokens: dict, previous: dict) -> None:
    weights = growth_capped(tokens, previous)
    assert set(weights) == set(tokens)
    for peer, weight in weights.items():
        assert 1 <= weight <= tokens[peer]
        assert peer not in previous or weight <= GROWTH_CAP * previous[peer]
