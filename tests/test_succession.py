"""What may follow what, and what a claim counts for: the one rule of members, coordinator and verifier, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import certificate
from protocol.agreement import Agreement, Counts, group_digest
from protocol.beginners import Beginners, open_beginners
from protocol.errors import FormatError, RefusedError, SignatureError, VerificationError
from protocol.keys import PeerIdentity
from protocol.run_spec import RunSpec
from protocol.signed import Signed
from protocol.statements import MAX_TOKENS, Claim, Farewell, Late, UpdateDigest, Vote
from protocol.succession import GROWTH_CAP, MOST_TIMES, PROBATION, Last, check_follows, counted, growth_capped, weights
from tests.kit.builders import fixed_ed25519, make_spec

KEY = fixed_ed25519("membership 1")
GENESIS, ONE, TWO = "ab" * 32, "cd" * 32, "ef" * 32
PEERS = [PeerIdentity(fixed_ed25519(f"member {index}")) for index in range(8)]
IDS = [peer.peer_id for peer in PEERS]


def spec_of(**sync: object) -> RunSpec:
    spec = make_spec(rules=2)
    return spec.model_copy(update={"sync": spec.sync.model_copy(update=sync)})


SPEC = spec_of(min_peers=2)


def named(*members: int) -> Signed[Beginners]:
    return Beginners(run=SPEC.digest, peers=tuple(IDS[index] for index in members)).sign(PeerIdentity(KEY))


def agree(
    members: Sequence[int],
    last: Last,
    state: str,
    *,
    voters: Sequence[int] | None = None,
    tokens: Sequence[int] | None = None,
    spec: RunSpec = SPEC,
    beginners: Signed[Beginners] | None = None,
    farewells: tuple[Signed[Farewell], ...] = (),
    late: dict[int, Late] | None = None,
) -> Agreement:
    """What these members would sign; opened from its bytes, as whoever gets it does."""
    claims, envelopes, many = {}, [], tokens or [160] * len(members)
    for index, count in zip(members, many, strict=True):
        update = UpdateDigest(root="0" * 64, values=36, chunk_values=36, codec="int8")
        made = Claim(
            run=spec.digest, round=last.round + 1, base=last.state, tokens=count, flops=0, first_batch=0,
            batches=-(-count // 16), update=update, late=(late or {}).get(index),
        )  # fmt: skip
        claims[IDS[index]] = made
        envelopes.append(made.sign(PEERS[index]))
    vote = Vote(
        run=spec.digest, round=last.round + 1, attempt=0, group=group_digest(envelopes), base=last.state, state=state
    )
    made_agreement = Agreement(
        claims=tuple(envelopes), counts=counted(claims, last, spec),
        votes=tuple(vote.sign(PEERS[index]) for index in (members if voters is None else voters)),
        certificates={
            IDS[index]: certificate.issue(KEY, run=spec.digest, peer_id=IDS[index], lifetime_s=60) for index in members
        },
        farewells=farewells, beginners=beginners,
    )  # fmt: skip
    return Agreement.from_bytes(made_agreement.to_bytes(), run=spec.digest, membership_key=KEY.public_key())


BEGUN = Last(1, ONE, {IDS[0]: 100, IDS[1]: 100, IDS[2]: 100}, base=GENESIS)

# ---- what follows what ----------------------------------------------------------------------------------------------------


def test_a_round_by_the_majority_of_the_last_weight_follows() -> None:
    check_follows(agree([0, 1], BEGUN, TWO), BEGUN, SPEC)


def test_a_round_without_that_majority_never_follows() -> None:
    """It has the majority of its own group's work, which says nothing: it made those claims itself."""
    for members in ([2, 3], [3, 4], [2, 3, 4, 5, 6]):
        with pytest.raises(VerificationError, match="of 300 of the weight that decides"):
            check_follows(agree(members, BEGUN, TWO, tokens=[160] * len(members)), BEGUN, SPEC)


def test_members_that_took_part_and_did_not_sign_do_not_count() -> None:
    with pytest.raises(VerificationError, match="of the weight that decides"):
        check_follows(agree([0, 2, 3, 4], BEGUN, TWO, voters=[2, 3, 4]), BEGUN, SPEC)


def test_a_farewell_moves_its_authors_weight_and_nobody_elses() -> None:
    said = Farewell(run=SPEC.digest, round=2, successor=IDS[3], attempt=0)
    check_follows(agree([2, 3], BEGUN, TWO, farewells=(said.sign(PEERS[1]),)), BEGUN, SPEC)
    with pytest.raises(VerificationError, match="of the weight that decides"):
        check_follows(agree([2, 3], BEGUN, TWO, farewells=(said.sign(PEERS[5]),)), BEGUN, SPEC)


def test_fewer_members_than_the_host_asked_for_do_not_follow() -> None:
    heavy = Last(1, ONE, {IDS[0]: 100}, base=GENESIS)
    with pytest.raises(VerificationError, match="1 members, expected 2 to"):
        check_follows(agree([0], heavy, TWO), heavy, SPEC)


@pytest.mark.parametrize("last", [Last(1, TWO, BEGUN.weights), Last(2, ONE, BEGUN.weights), Last(0, GENESIS)])
def test_a_round_from_another_state_or_of_another_number_does_not_follow(last: Last) -> None:
    with pytest.raises(VerificationError, match="starts from state"):
        check_follows(agree([0, 1], BEGUN, TWO), last, SPEC)


def test_weights_or_newcomers_other_than_the_rule_gives_do_not_follow() -> None:
    agreed = agree([0, 1, 3], BEGUN, TWO)
    assert agreed.counts.newcomers == {IDS[3]: 1}
    for wrong in (Counts({**agreed.weights, IDS[3]: 81}, {IDS[3]: 1}), Counts(agreed.weights)):
        with pytest.raises(VerificationError, match="weights do not follow"):
            check_follows(replace(agreed, counts=wrong), BEGUN, SPEC)


def test_more_tokens_than_the_sequences_hold_and_late_work_that_was_counted_do_not_follow() -> None:
    late = Late(base=GENESIS, tokens=16, first_batch=0, batches=1)
    check_follows(agree([0, 1, 3], BEGUN, TWO, late={3: late}), BEGUN, SPEC)
    for wrong, reason in [
        ({0: late}, "was in the round before"),
        ({3: late.model_copy(update={"base": TWO})}, "late work from"),
        ({3: late.model_copy(update={"tokens": 17})}, "more than fit"),
    ]:
        with pytest.raises(VerificationError, match=reason):
            check_follows(agree([0, 1, 3], BEGUN, TWO, late=wrong), BEGUN, SPEC)


# ---- who begins -----------------------------------------------------------------------------------------------------------


def test_round_1_is_by_the_majority_of_those_whom_the_coordinator_named() -> None:
    genesis = Last(0, GENESIS)
    check_follows(agree([0, 1, 5], genesis, ONE, beginners=named(0, 1, 2)), genesis, SPEC)
    with pytest.raises(VerificationError, match="of the weight that decides"):
        check_follows(agree([0, 5, 6], genesis, ONE, beginners=named(0, 1, 2)), genesis, SPEC)


def test_round_1_without_the_coordinators_word_does_not_follow_except_in_runs_that_began_before_it() -> None:
    genesis, old = Last(0, GENESIS), spec_of(rules=1)
    with pytest.raises(VerificationError, match="does not say whom the coordinator named"):
        check_follows(agree([0, 1], genesis, ONE), genesis, SPEC)
    check_follows(agree([0, 1], genesis, ONE, spec=old), genesis, old)


def test_where_the_coordinators_own_word_is_known_no_other_will_do() -> None:
    genesis = Last(0, GENESIS)
    agreed = agree([0, 1], genesis, ONE, beginners=named(0, 1))
    check_follows(agreed, genesis, SPEC, named(0, 1).data)
    with pytest.raises(VerificationError, match="not by the beginners"):
        check_follows(agreed, genesis, SPEC, named(0, 1, 2).data)


def test_a_naming_by_another_key_or_for_another_run_is_refused() -> None:
    word = Beginners(run=SPEC.digest, peers=(IDS[0],))
    for data, error in [
        (word.sign(PeerIdentity(fixed_ed25519("not the coordinator"))), SignatureError),
        (word.model_copy(update={"run": "0" * 64}).sign(PeerIdentity(KEY)), VerificationError),
        (word.model_copy(update={"peers": (IDS[0], IDS[0])}).sign(PeerIdentity(KEY)), FormatError),
    ]:
        with pytest.raises(error):
            open_beginners(data.data, KEY.public_key(), run=SPEC.digest)
    with pytest.raises(RefusedError):
        agree([0], Last(0, GENESIS), ONE, beginners=word.sign(PEERS[0]))


# ---- what a claim counts for -----------------------------------------------------------------------------------------------

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
    given_ = weights(claimed, Last(0, GENESIS))
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
    claims = {IDS[index]: claim_of(1600) for index in range(3)}
    first = counted(claims | {IDS[3]: claim_of(10**6), IDS[4]: claim_of(10**6)}, Last(1, ONE, dict.fromkeys(IDS[:3], 1600)), SPEC)  # fmt: skip
    assert set(first.newcomers) == {IDS[3], IDS[4]}
    later = counted(
        claims | {IDS[index]: claim_of(10**6) for index in range(3, 8)},
        Last(2, TWO, first.weights, first.newcomers),
        SPEC,
    )
    assert later.newcomers == {IDS[3]: 2, IDS[4]: 2, IDS[5]: 1, IDS[6]: 1, IDS[7]: 1}
    assert 2 * sum(later.weights[IDS[index]] for index in range(3, 8)) < sum(
        later.weights[IDS[index]] for index in range(3)
    )


def test_a_newcomer_is_a_regular_after_three_agreements() -> None:
    last, claims = Last(1, ONE, {IDS[0]: 1600}), {IDS[0]: claim_of(1600), IDS[1]: claim_of(1600)}
    seen = []
    for number in range(2, 6):
        given_ = counted(claims, last, SPEC)
        seen.append(given_.weights[IDS[1]])
        last = Last(number, ONE, given_.weights, given_.newcomers)
    assert seen == [799, 799, 799, 1600]


def test_speeds_of_four_two_one_count_in_full() -> None:
    claimed = {"fast": 4000, "middle": 2000, "slow": 1000}
    assert weights(claimed, Last(0, GENESIS)) == claimed
    assert weights(claimed, Last(5, ONE, claimed)) == claimed


def claim_of(tokens: int) -> Claim:
    update = UpdateDigest(root="0" * 64, values=1, chunk_values=1, codec="fp32")
    return Claim(
        run=SPEC.digest, round=1, base=GENESIS, tokens=tokens, flops=0, first_batch=0, batches=tokens, update=update
    )


# ---- runs of rules 1 ------------------------------------------------------------------------------------------------------


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
