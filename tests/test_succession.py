"""What may follow what: the one rule of members, coordinator and verifier, in memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocol.agreement import Counts
from protocol.beginners import Beginners
from protocol.epoch import open_word
from protocol.errors import FormatError, RefusedError, SignatureError, VerificationError
from protocol.keys import PeerIdentity
from protocol.last import Last
from protocol.statements import Farewell, Late
from protocol.succession import check_follows
from tests.kit.agreeing import COORDINATOR, GENESIS, IDS, KEY, ONE, PEERS, TWO, agree, named, spec_of, weighing
from tests.kit.builders import fixed_ed25519

SPEC = spec_of(2, min_peers=2)
BEGUN = Last(1, ONE, weighing(0, 1, 2), base=GENESIS)

# ---- what follows what -----------------------------------------------------------------------------------------------


def test_a_round_by_the_majority_of_the_last_weight_follows() -> None:
    check_follows(agree(SPEC, [0, 1], BEGUN, TWO), BEGUN, SPEC)


def test_a_round_without_that_majority_never_follows() -> None:
    """It has the majority of its own group's work, which says nothing: it made those claims itself."""
    for members in ([2, 3], [3, 4], [2, 3, 4, 5, 6]):
        with pytest.raises(VerificationError, match="of 300 of the weight that decides"):
            check_follows(agree(SPEC, members, BEGUN, TWO), BEGUN, SPEC)


def test_members_that_took_part_and_did_not_sign_do_not_count() -> None:
    with pytest.raises(VerificationError, match="of the weight that decides"):
        check_follows(agree(SPEC, [0, 2, 3, 4], BEGUN, TWO, voters=[2, 3, 4]), BEGUN, SPEC)


def test_a_farewell_moves_its_authors_weight_and_nobody_elses() -> None:
    said = Farewell(run=SPEC.digest, round=2, successor=IDS[3], attempt=0)
    check_follows(agree(SPEC, [2, 3], BEGUN, TWO, farewells=(said.sign(PEERS[1]),)), BEGUN, SPEC)
    with pytest.raises(VerificationError, match="of the weight that decides"):
        check_follows(agree(SPEC, [2, 3], BEGUN, TWO, farewells=(said.sign(PEERS[5]),)), BEGUN, SPEC)


def test_fewer_members_than_the_host_asked_for_do_not_follow() -> None:
    heavy = Last(1, ONE, {IDS[0]: 100}, base=GENESIS)
    with pytest.raises(VerificationError, match="1 members, expected 2 to"):
        check_follows(agree(SPEC, [0], heavy, TWO), heavy, SPEC)


@pytest.mark.parametrize("last", [Last(1, TWO, BEGUN.weights), Last(2, ONE, BEGUN.weights), Last(0, GENESIS)])
def test_a_round_from_another_state_or_of_another_number_does_not_follow(last: Last) -> None:
    with pytest.raises(VerificationError, match="starts from state"):
        check_follows(agree(SPEC, [0, 1], BEGUN, TWO), last, SPEC)


def test_weights_or_newcomers_other_than_the_rule_gives_do_not_follow() -> None:
    agreed = agree(SPEC, [0, 1, 3], BEGUN, TWO)
    assert agreed.counts.newcomers == {IDS[3]: 1}
    for wrong in (Counts({**agreed.weights, IDS[3]: 81}, {IDS[3]: 1}), Counts(agreed.weights)):
        with pytest.raises(VerificationError, match="weights do not follow"):
            check_follows(replace(agreed, counts=wrong), BEGUN, SPEC)


def test_more_tokens_than_the_sequences_hold_and_late_work_that_was_counted_do_not_follow() -> None:
    late = Late(base=GENESIS, tokens=16, first_batch=0, batches=1)
    check_follows(agree(SPEC, [0, 1, 3], BEGUN, TWO, late={3: late}), BEGUN, SPEC)
    for wrong, reason in [
        ({0: late}, "was in the round before"),
        ({3: late.model_copy(update={"base": TWO})}, "late work from"),
        ({3: late.model_copy(update={"tokens": 17})}, "more than fit"),
    ]:
        with pytest.raises(VerificationError, match=reason):
            check_follows(agree(SPEC, [0, 1, 3], BEGUN, TWO, late=wrong), BEGUN, SPEC)


# ---- who begins ------------------------------------------------------------------------------------------------------


def test_round_1_is_by_the_majority_of_those_whom_the_coordinator_named() -> None:
    genesis = Last(0, GENESIS)
    check_follows(agree(SPEC, [0, 1, 5], genesis, ONE, word=named(SPEC, 0, 1, 2)), genesis, SPEC)
    with pytest.raises(VerificationError, match="of the weight that decides"):
        check_follows(agree(SPEC, [0, 5, 6], genesis, ONE, word=named(SPEC, 0, 1, 2)), genesis, SPEC)


def test_round_1_without_the_coordinators_word_does_not_follow_except_in_runs_that_began_before_it() -> None:
    genesis, old = Last(0, GENESIS), spec_of(1)
    with pytest.raises(VerificationError, match="does not say whom the coordinator named"):
        check_follows(agree(SPEC, [0, 1], genesis, ONE), genesis, SPEC)
    check_follows(agree(old, [0, 1], genesis, ONE), genesis, old)


def test_where_the_coordinators_own_word_is_known_no_other_will_do() -> None:
    genesis = Last(0, GENESIS)
    agreed = agree(SPEC, [0, 1], genesis, ONE, word=named(SPEC, 0, 1))
    check_follows(agreed, genesis, SPEC, named(SPEC, 0, 1))
    with pytest.raises(VerificationError, match="not by the beginners"):
        check_follows(agreed, genesis, SPEC, named(SPEC, 0, 1, 2))


def test_a_naming_by_another_key_or_for_another_run_is_refused() -> None:
    word = Beginners(run=SPEC.digest, peers=(IDS[0],))
    for data, error in [
        (word.sign(PeerIdentity(fixed_ed25519("not the coordinator"))), SignatureError),
        (word.model_copy(update={"run": "0" * 64}).sign(COORDINATOR), VerificationError),
        (word.model_copy(update={"peers": (IDS[0], IDS[0])}).sign(COORDINATOR), FormatError),
    ]:
        with pytest.raises(error):
            open_word(data.data, KEY.public_key(), run=SPEC.digest)
    with pytest.raises(RefusedError):
        agree(SPEC, [0], Last(0, GENESIS), ONE, word=word.sign(PEERS[0]))
