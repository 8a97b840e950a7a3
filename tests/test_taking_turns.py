"""Runs larger than a group: who waits for its turn, what its work counts for, and who may complete a state alone."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import envelope
from protocol.agreement import Agreement, Counts
from protocol.counting import MOST_TIMES, counted_worths, weights
from protocol.errors import FormatError, RefusedError, VerificationError
from protocol.last import PROBATION, Last
from protocol.majority import has_majority
from protocol.statements import LATE_DIVISOR, MAX_TOKENS, MAX_WAIT, Claim, Farewell, Late, open_claim
from protocol.succession import check_follows, check_rules
from tests.kit.agreeing import GENESIS, IDS, KEY, ONE, PEERS, TWO, agree, claim_of, spec_of, weighing

SPEC = spec_of(3, min_peers=2, max_group=4)
OLD = spec_of(2, min_peers=2, max_group=4)
# round 5 of a run whose groups have been full for three rounds; 4 was in the one before, 5 in none of them
LAST = Last(5, ONE, weighing(0, 1, 2, 3), base=GENESIS, full=3, recent={IDS[4]: 1})


def waited(rounds: int, tokens: int = 320, base: str = GENESIS) -> Late:
    return Late(base=base, tokens=tokens, first_batch=0, batches=20, waited=rounds)


# ---- who waits -------------------------------------------------------------------------------------------------------

groups = st.lists(st.sets(st.sampled_from("abcdefgh"), min_size=1, max_size=4), max_size=40)


@given(groups)
def test_an_agreement_shows_of_each_peer_for_how_many_rounds_there_was_no_room_for_it(made: list[set[str]]) -> None:
    """The same as who has seen the whole chain knows."""
    last = Last(0, GENESIS)
    for number, group in enumerate(made, 1):
        counts = counted_worths(dict.fromkeys(group, 100), last, max_group=4)
        last = Last(number, ONE, counts.weights, counts.newcomers, GENESIS, counts.full, counts.recent)
        assert len(last.recent) <= 4 * MAX_WAIT
    for peer in "abcdefgh":
        rounds = 0
        while rounds < min(len(made), MAX_WAIT) and len(made[-1 - rounds]) >= 3 and peer not in made[-1 - rounds]:
            rounds += 1
        assert last.may_have_waited(peer) == rounds


@given(groups)
def test_who_waits_for_its_turn_stays_a_regular_and_a_newcomer_goes_on_where_it_was(made: list[set[str]]) -> None:
    last, been = Last(1, ONE, dict.fromkeys("abcd", 100)), dict.fromkeys("abcd", PROBATION)
    for number, group in enumerate(made, 2):
        counts = counted_worths(dict.fromkeys(group, 100), last, max_group=4)
        last = Last(number, ONE, counts.weights, counts.newcomers, GENESIS, counts.full, counts.recent)
        kept = last.weights.keys() | last.recent.keys()
        been = {peer: min(been.get(peer, 0) + (peer in group), PROBATION) for peer in kept}
        assert {peer: last.been(peer) for peer in kept} == been
        assert last.regulars() == {peer for peer, times in been.items() if times == PROBATION}


def test_runs_of_before_carry_nothing_of_this() -> None:
    agreed = agree(OLD, [0, 1, 2, 3], replace(LAST, full=0, recent={}), TWO)
    assert (agreed.counts.full, agreed.counts.recent) == (0, {})
    assert {"full", "recent"}.isdisjoint(agreed.to_json())


@pytest.mark.parametrize(
    "counts",
    [{"full": 3}, {"full": 5}, {"recent": {IDS[4]: 1}}, {"recent": {}}, {"recent": {IDS[4]: 2, IDS[5]: 4}}],
)
def test_an_agreement_that_says_otherwise_does_not_follow(counts: dict[str, Any]) -> None:
    agreed = agree(SPEC, [0, 1, 2, 3], LAST, TWO)
    assert (agreed.counts.full, agreed.counts.recent) == (4, {IDS[4]: 2})
    check_follows(agreed, LAST, SPEC)
    with pytest.raises(VerificationError, match="do not follow from the claims"):
        check_follows(replace(agreed, counts=replace(agreed.counts, **counts)), LAST, SPEC)


@pytest.mark.parametrize(
    "changes",
    [
        {"full": True},
        {"full": 4.5},
        {"full": -1},
        {"full": MAX_WAIT + 1},
        {"full": "4"},
        {"full": None},
        {"recent": {IDS[4]: True}},
        {"recent": {IDS[4]: 0}},
        {"recent": {IDS[4]: 5}},
        {"recent": {IDS[4]: 2**52}},
        {"recent": {IDS[4]: [2]}},
        {"recent": 7},
        {"newcomers": {IDS[4]: "1"}},
    ],
    ids=str,
)
def test_counts_that_are_no_whole_numbers_within_bounds_are_refused(changes: dict[str, Any]) -> None:
    value = agree(SPEC, [0, 1, 2, 3], LAST, TWO).to_json() | changes
    with pytest.raises((FormatError, RefusedError)):
        Agreement.from_json(value, run=SPEC.digest, membership_key=KEY.public_key())


# ---- work that waited ------------------------------------------------------------------------------------------------


def test_work_that_waited_counts_in_full_and_work_that_was_late_in_part() -> None:
    late = waited(1).model_copy(update={"waited": None})
    assert claim_of(4, LAST, SPEC, late=waited(1)).worth == 160 + 320
    assert claim_of(4, LAST, SPEC, late=late).worth == 160 + 320 // LATE_DIVISOR
    for index, rounds in ((4, 1), (5, 1), (5, 3)):
        agreed = agree(SPEC, [0, 1, 2, index], LAST, TWO, late={index: waited(rounds, tokens=160)})
        check_follows(agreed, LAST, SPEC)


@pytest.mark.parametrize(
    ("index", "late", "reason"),
    [
        (0, waited(1), "was in the round before"),
        (4, waited(2), "waited 2 rounds for its turn, and had 1"),
        (5, waited(4), "waited 4 rounds for its turn, and had 3"),
        (5, waited(1, base=TWO), "late work from"),
        (5, waited(3, tokens=321), "more than fit"),
    ],
)
def test_work_that_did_not_wait_like_that_is_refused(index: int, late: Late, reason: str) -> None:
    members = [0, 1, 2, *({3, index} - {0, 1, 2})][:4] if index == 0 else [0, 1, 2, index]
    with pytest.raises(VerificationError, match=reason):
        check_follows(agree(SPEC, members, LAST, TWO, late={index: late}), LAST, SPEC)


def test_nobody_waits_where_there_was_room_in_round_1_or_in_runs_of_before() -> None:
    roomy = replace(LAST, full=0, recent={})
    for spec, last, reason in [
        (SPEC, roomy, "and had 0"),
        (OLD, LAST, "rules do not know"),
        (SPEC, Last(0, GENESIS), "was in the round before"),
    ]:
        with pytest.raises(VerificationError, match=reason):
            check_follows(agree(spec, [0, 1, 2, 5], last, TWO, late={5: waited(1)}), last, spec)


@pytest.mark.parametrize("rounds", [0, -1, MAX_WAIT + 1, True, 1.5, "1", 2**52, [1]], ids=repr)
def test_a_claim_that_waited_for_no_whole_number_of_rounds_is_none(rounds: Any) -> None:
    value = claim_of(4, LAST, SPEC, late=waited(1)).model_dump(mode="json")
    value["late"]["waited"] = rounds
    with pytest.raises(FormatError, match="not a claim"):
        open_claim(envelope.sign(value, Claim.media_type, PEERS[4]).to_bytes())


worths = st.dictionaries(st.sampled_from("abcdefghij"), st.integers(1, MAX_TOKENS), min_size=1)


@given(worths, st.dictionaries(st.sampled_from("abcdefghij"), st.integers(1, 1 + MAX_WAIT)))
def test_a_claim_is_held_against_the_median_by_what_it_is_worth_a_round(worth: dict, rounds: dict) -> None:
    rounds = {peer: count for peer, count in rounds.items() if peer in worth}
    given_ = weights(worth, Last(0, GENESIS), rounds)
    claimed = sorted(max(1, worth[peer] // rounds.get(peer, 1)) for peer in worth)
    most = MOST_TIMES * claimed[(len(claimed) - 1) // 2]
    assert all(1 <= given_[peer] <= min(worth[peer], most * rounds.get(peer, 1)) for peer in worth)
    if len(worth) >= 4 and max(given_.values()) > 1:
        assert 3 * max(given_.values()) < sum(given_.values())


def test_no_work_is_lost_by_waiting_where_all_wait_alike() -> None:
    """24 members in groups of 8: 5 that were in the round before, and 3 that have waited two rounds."""
    before = Last(9, ONE, dict.fromkeys("abcdefgh", 100), full=2)
    worth = dict.fromkeys("abcde", 100) | dict.fromkeys("xyz", 300)
    known = replace(before, recent=dict.fromkeys("xyz", 2))
    assert counted_worths(worth, known, dict.fromkeys("xyz", 3), 8).weights == worth


# ---- completing ------------------------------------------------------------------------------------------------------


def test_acceptors_complete_a_state_alone_whatever_the_groups_claims_count_for() -> None:
    """Members that had waited for their turn hold most of what the group counts for, and are gone after its votes."""
    last = Last(5, ONE, weighing(0, 1, 2), base=GENESIS, full=2, recent={IDS[4]: 1, IDS[5]: 1})
    for members, voters in (([0, 4, 5], [0, 1]), ([1, 4, 5], [0, 2])):
        agreed = agree(SPEC, members, last, TWO, voters=voters, attempt=3, completes=True)
        assert not has_majority(agreed.voters, agreed.weights)
        check_follows(agreed, last, SPEC)
    with pytest.raises(VerificationError, match="majority of the claimed work"):
        agree(SPEC, [0, 4, 5], last, TWO, voters=[0], attempt=3)
    with pytest.raises(VerificationError, match="not in the group"):
        agree(SPEC, [0, 4, 5], last, TWO, voters=[0, 1], attempt=3)


def test_what_completes_a_state_needs_the_majority_of_those_who_decide() -> None:
    last = Last(5, ONE, weighing(0, 1, 2), base=GENESIS)
    agreed = agree(SPEC, [0, 5, 6], last, TWO, voters=[0, 5, 6], attempt=3, completes=True)
    with pytest.raises(VerificationError, match="hold 100 of 300 of the weight that decides"):
        check_follows(agreed, last, SPEC)


def test_a_voter_outside_the_group_speaks_for_a_weight_or_is_refused() -> None:
    last = Last(5, ONE, weighing(0, 1, 2), base=GENESIS)
    with pytest.raises(VerificationError, match="neither a claim nor a weight"):
        check_follows(agree(SPEC, [0, 1], last, TWO, voters=[0, 1, 7], completes=True), last, SPEC)
    said = Farewell(run=SPEC.digest, round=6, successor=IDS[7], attempt=0).sign(PEERS[2])
    agreed = agree(SPEC, [0, 3], last, TWO, voters=[0, 7], completes=True, farewells=(said,))
    check_follows(agreed, last, SPEC)


def test_a_voter_outside_the_group_shows_its_certificate() -> None:
    last = Last(5, ONE, weighing(0, 1, 2), base=GENESIS)
    value = agree(SPEC, [0, 3], last, TWO, voters=[0, 1], completes=True).to_json()
    del value["certificates"][IDS[1]]
    with pytest.raises(VerificationError, match="shows no membership certificate"):
        Agreement.from_json(value, run=SPEC.digest, membership_key=KEY.public_key())


def test_votes_that_complete_never_count_together_with_those_that_average() -> None:
    last = Last(5, ONE, weighing(0, 1, 2), base=GENESIS)
    value, other = (agree(SPEC, [0, 1, 2], last, TWO, completes=completes).to_json() for completes in (False, True))
    value["votes"][1:] = other["votes"][1:]
    with pytest.raises(VerificationError, match="voted for another state, group or attempt"):
        Agreement.from_json(value, run=SPEC.digest, membership_key=KEY.public_key())


def test_runs_of_before_know_of_no_completing_by_acceptors_alone() -> None:
    last = Last(5, ONE, weighing(0, 1, 2), base=GENESIS)
    agreed = agree(OLD, [0, 1, 2], last, TWO, completes=True)
    for check in (lambda: check_follows(agreed, last, OLD), lambda: check_rules(agreed, OLD)):
        with pytest.raises(VerificationError, match="rules do not know"):
            check()


def test_what_is_left_out_of_the_bytes_is_what_was_not_there_before() -> None:
    last = Last(5, ONE, weighing(0, 1, 2), base=GENESIS)
    plain, completing = (agree(SPEC, [0, 1], last, TWO, completes=completes) for completes in (False, True))
    assert "completes" not in json.dumps(plain.votes[0].value.model_dump(mode="json"))
    assert completing.votes[0].value.model_dump(mode="json")["completes"] is True
    assert plain.counts == Counts(weighing(0, 1, tokens=160))
