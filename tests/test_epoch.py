"""The coordinator's word on who decides the round after an agreed one, and what follows by it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import envelope
from protocol.agreement import Agreement
from protocol.epoch import Epoch, Word, open_word, stored_word
from protocol.errors import FormatError, PotluckError, RefusedError, SignatureError, VerificationError
from protocol.keys import PeerIdentity
from protocol.last import Last
from protocol.signed import Signed
from protocol.statements import MAX_EPOCH, MAX_TOKENS, Farewell
from protocol.succession import acceptors, check_branch, check_chain, check_follows, epoch_after, outranks
from tests.kit.agreeing import COORDINATOR, GENESIS, IDS, KEY, ONE, PEERS, THREE, TWO, agree, named, spec_of, weighing
from tests.kit.builders import fixed_ed25519

SPEC = spec_of(3)
LAST = Last(5, ONE, weighing(0, 1, 2, 3), base=GENESIS)  # 2 and 3 are gone for good
FOUR = "34" * 32


def word(*members: int, epoch: int = 1, round: int = 5, state: str = ONE, run: str = SPEC.digest) -> Signed[Epoch]:
    return Epoch(epoch=epoch, run=run, round=round, state=state, peers=weighing(*members)).sign(COORDINATOR)


def reread(agreement: Agreement) -> Agreement:
    return Agreement.from_bytes(agreement.to_bytes(), run=SPEC.digest, membership_key=KEY.public_key())


# ---- the word --------------------------------------------------------------------------------------------------------


def test_a_word_reads_back() -> None:
    said = word(0, 1)
    assert open_word(said.data, KEY.public_key(), run=SPEC.digest) == stored_word(said.data) == said
    assert said.value.weights == weighing(0, 1)
    begins = named(SPEC, 0)
    assert open_word(begins.data, KEY.public_key(), run=SPEC.digest) == stored_word(begins.data) == begins


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch": 0},
        {"epoch": MAX_EPOCH + 1},
        {"epoch": True},
        {"epoch": "1"},
        {"round": 0},
        {"round": 1.5},
        {"state": "xyz"},
        {"peers": {}},
        {"peers": [IDS[0]]},
        {"peers": {IDS[0]: 0}},
        {"peers": {IDS[0]: True}},
        {"peers": {IDS[0]: 2 * MAX_TOKENS + 1}},
        {"peers": {"x" * 65: 1}},
        {"peers": {f"peer {number}": 1 for number in range(1025)}},
        {"until": 9},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_a_word_out_of_bounds_is_none(changes: dict[str, Any]) -> None:
    value = word(0, 1).value.model_dump(mode="json") | changes
    with pytest.raises(FormatError, match="not an epoch"):
        data = envelope.sign(value, Epoch.media_type, COORDINATOR).to_bytes()
        open_word(data, KEY.public_key(), run=SPEC.digest)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (word(0, 1).value.sign(PeerIdentity(fixed_ed25519("not the coordinator"))), SignatureError),
        (word(0, 1).value.sign(PEERS[0]), SignatureError),
        (word(0, 1, run="0" * 64), VerificationError),
        (Farewell(run=SPEC.digest, round=6, successor=IDS[0], attempt=0).sign(COORDINATOR), FormatError),
    ],
    ids=["another key", "a member", "another run", "another statement"],
)
def test_a_word_of_anybody_else_or_for_another_run_is_refused(said: Signed[Any], error: type[PotluckError]) -> None:
    with pytest.raises(error):
        open_word(said.data, KEY.public_key(), run=SPEC.digest)
    if isinstance(said.value, Epoch):
        shown = agree(SPEC, [0, 1], LAST, TWO, word=word(0, 1))
        with pytest.raises((error, RefusedError)):
            reread(replace(shown, word=said))


# ---- who decides -----------------------------------------------------------------------------------------------------


def test_those_whom_the_word_names_decide_the_next_round_and_nobody_else() -> None:
    said = word(0, 1, 5)
    assert acceptors(LAST, said.value) == weighing(0, 1, 5) and epoch_after(LAST, said.value) == 1
    for members in ([0, 1], [0, 5, 6], [0, 1, 2, 3, 5]):
        check_follows(agree(SPEC, members, LAST, TWO, word=said), LAST, SPEC, said)
    for members in ([0, 2, 3], [1, 2, 3, 6]):
        with pytest.raises(VerificationError, match="hold 100 of 300 of the weight that decides"):
            check_follows(agree(SPEC, members, LAST, TWO, word=said), LAST, SPEC)


def test_without_the_word_the_old_members_decide() -> None:
    with pytest.raises(VerificationError, match="of the weight that decides"):
        check_follows(agree(SPEC, [1], LAST, TWO), LAST, SPEC)
    check_follows(agree(SPEC, [0, 1, 2], LAST, TWO), LAST, SPEC)


def test_the_rounds_after_it_go_on_by_their_own_weights_and_name_its_number() -> None:
    first = agree(SPEC, [0, 1], LAST, TWO, word=word(0, 1))
    last = Last.of(first)
    assert (first.epoch, last.epoch) == (1, 1)
    check_follows(agree(SPEC, [0, 1, 5], last, THREE), last, SPEC)
    for number in (0, 2):
        with pytest.raises(VerificationError, match=f"of epoch {number}, expected epoch 1"):
            check_follows(agree(SPEC, [0, 1, 5], last, THREE, epoch=number), last, SPEC)


def test_a_later_word_ends_an_epoch() -> None:
    last = replace(LAST, epoch=1)
    check_follows(agree(SPEC, [0, 5], last, TWO, word=word(0, 5, epoch=2)), last, SPEC)


def test_the_bytes_of_an_agreement_carry_the_word() -> None:
    shown = agree(SPEC, [0, 1], LAST, TWO, word=word(0, 1))
    assert reread(shown) == Agreement.stored(shown.to_bytes()) == shown
    assert shown.word == word(0, 1)
    assert "epoch" not in json.dumps(agree(SPEC, [0, 1, 2], LAST, TWO).to_json())


# ---- attacks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "vote"),
    [
        (word(0, 1, round=4), {}),
        (word(0, 1, state=TWO), {}),
        (word(0, 1), {"epoch": 0}),
        (word(0, 1), {"epoch": 2}),
    ],
    ids=["another round", "another state", "votes that name none", "votes that name another"],
)
def test_a_word_that_does_not_fit_what_it_is_shown_with_is_refused(said: Signed[Word], vote: dict[str, int]) -> None:
    with pytest.raises(VerificationError, match="the coordinator's word is on epoch 1"):
        agree(SPEC, [0, 1], LAST, TWO, word=said, **{"epoch": 1, **vote})


def test_a_number_without_its_word_is_refused() -> None:
    with pytest.raises(VerificationError, match="of epoch 1, expected epoch 0"):
        check_follows(agree(SPEC, [0, 1, 2], LAST, TWO, epoch=1), LAST, SPEC)


@pytest.mark.parametrize("epoch", [1, 2, 7])
def test_an_older_word_that_is_shown_again_is_refused(epoch: int) -> None:
    """The epoch is over, or goes on: its word begins nothing for a second time."""
    later = replace(LAST, epoch=epoch)
    with pytest.raises(VerificationError, match=f"or is over in epoch {epoch}"):
        check_follows(agree(SPEC, [0, 1], later, TWO, word=word(0, 1), epoch=1), later, SPEC)


def test_where_the_coordinators_own_word_is_known_nothing_else_follows() -> None:
    said = word(0, 1)
    for other in (word(0, 5), word(0, 1, epoch=2), None):
        members = [0, 5] if other == word(0, 5) else [0, 1, 2]
        with pytest.raises(VerificationError, match="not by those that the coordinator has named"):
            check_follows(agree(SPEC, members, LAST, TWO, word=other), LAST, SPEC, said)


def test_of_two_words_of_one_number_the_known_one_counts() -> None:
    elsewhere = word(0, 1, round=9, state=FOUR)
    with pytest.raises(VerificationError, match="another word than the coordinator has given for epoch 1"):
        check_follows(agree(SPEC, [0, 1], LAST, TWO, word=word(0, 1)), LAST, SPEC, elsewhere)
    check_follows(agree(SPEC, [0, 1], LAST, TWO, word=word(0, 1)), LAST, SPEC, word(0, 1, epoch=2, round=9))


def test_an_agreement_by_two_words_is_none() -> None:
    value = agree(SPEC, [0, 1], LAST, TWO, word=word(0, 1)).to_json()
    value["beginners"] = json.loads(named(SPEC, 0, 1).data)
    with pytest.raises(FormatError, match="one word"):
        Agreement.from_json(value, run=SPEC.digest, membership_key=KEY.public_key())


def test_round_1_begins_by_its_beginners() -> None:
    genesis = Last(0, GENESIS)
    with pytest.raises(RefusedError):
        check_follows(agree(SPEC, [0, 1], genesis, ONE, word=word(0, 1), epoch=1), genesis, SPEC)


def test_a_farewell_of_another_epoch_does_not_count() -> None:
    said = Farewell(run=SPEC.digest, round=6, successor=IDS[5], attempt=0)
    counting = said.model_copy(update={"epoch": 1}).sign(PEERS[1])
    check_follows(agree(SPEC, [0, 5], LAST, TWO, word=word(0, 1), farewells=(counting,)), LAST, SPEC)
    with pytest.raises(VerificationError, match="a farewell of epoch 0, expected epoch 1"):
        agree(SPEC, [0, 5], LAST, TWO, word=word(0, 1), farewells=(said.sign(PEERS[1]),))


@pytest.mark.parametrize("rules", [1, 2])
def test_runs_of_before_know_of_no_epoch(rules: int) -> None:
    spec = spec_of(rules)
    with pytest.raises(VerificationError, match="rules do not know"):
        check_follows(agree(spec, [0, 1], LAST, TWO, word=word(0, 1, run=spec.digest)), LAST, spec)


# ---- branches --------------------------------------------------------------------------------------------------------

LASTS = st.builds(lambda round, epoch: Last(round, ONE, epoch=epoch), st.integers(1, 50), st.integers(0, 3))


@given(LASTS, LASTS)
def test_of_two_branches_one_outranks_the_other_and_the_epoch_comes_first(one: Last, other: Last) -> None:
    same = (one.epoch, one.round) == (other.epoch, other.round)
    assert outranks(one, other) + outranks(other, one) + same == 1
    if one.epoch > other.epoch:
        assert outranks(one, other)


def test_a_branch_by_the_word_takes_the_place_of_a_longer_one_without_it() -> None:
    """0 and 1 go on by the word; 2 and 3, who were only cut off, come back five rounds later."""
    before = agree(SPEC, [0, 1, 2, 3], Last(4, GENESIS, weighing(0, 1, 2, 3)), ONE)
    begins = Last.of(before)
    first = agree(SPEC, [0, 1], begins, TWO, word=word(0, 1))
    second = agree(SPEC, [0, 1, 5], Last.of(first), THREE)
    mine = Last(10, FOUR, weighing(2, 3))
    end = check_branch([first, second], before, mine, SPEC, word(0, 1))
    assert end == check_chain([first, second], begins, SPEC) == Last.of(second)
    assert outranks(end, mine) and not outranks(mine, end)
    for chain, at, stands, reason in [
        ([], before, mine, "begins with the coordinator's word"),
        ([second], before, mine, "begins with the coordinator's word"),
        ([agree(SPEC, [0, 1, 2], begins, TWO)], before, mine, "begins with the coordinator's word"),
        ([first, second], first, mine, "starts from state"),
        ([first, first], before, mine, "starts from state"),
        ([first, second], before, replace(mine, epoch=1), "does not outrank"),
        ([first, second], before, replace(mine, epoch=2, round=6), "does not outrank"),
    ]:
        with pytest.raises(VerificationError, match=reason):
            check_branch(chain, at, stands, SPEC)
