"""A held-out loss that a member has measured: who may say it, of what, and what becomes of a lie."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.losses import ASKED_SHARE, Losses
from protocol import canonical, envelope
from protocol.checkpoint import Evaluation
from protocol.errors import FormatError, VerificationError
from protocol.held_out import Asked, Measured, open_measured
from protocol.keys import PeerIdentity
from tests.kit.vectors import PEERS, stored

RUN, STATE, OTHER = "a" * 64, "b" * 64, "c" * 64
GENESIS = Evaluation(held_out_loss=4.0, sequences=8, tokens=120)
SAID = {"run": RUN, "round": 20, "state": STATE, "held_out_loss": 3.25, "sequences": 8, "tokens": 120}
WAIT_S = 90.0
ann, bob, eve = (PeerIdentity.generate() for _ in range(3))


def signed(by: PeerIdentity = ann, **changed: Any) -> bytes:
    """A statement, whatever it says."""
    return envelope.sign(SAID | changed, Measured.media_type, by).to_bytes()


@pytest.fixture
def losses() -> Losses:
    """That wants the loss of STATE, after round 20, of ann or bob."""
    made = Losses([ann.peer_id, bob.peer_id], WAIT_S, RUN, GENESIS)
    assert made.want(20, STATE, 0.0)
    return made


def test_a_named_member_is_asked_and_what_it_says_is_taken(losses: Losses) -> None:
    assert losses.ask(ann.peer_id, [OTHER, STATE], 1.0) == STATE and losses.found() is None
    assert losses.submit(signed(), ann.peer_id).accepted
    found = losses.found()
    assert found is not None and found.held_out_loss == 3.25
    assert found.check_measured(RUN, 20, STATE) == ann.peer_id
    assert losses.ask(ann.peer_id, [STATE], 2.0) == "" and not losses.want(20, STATE, 3.0)


def test_a_whole_number_is_a_loss_too(losses: Losses) -> None:
    assert losses.submit(signed(held_out_loss=3.0), ann.peer_id).accepted


def test_who_is_not_named_is_neither_asked_nor_heard(losses: Losses) -> None:
    assert losses.ask(eve.peer_id, [STATE], 1.0) == ""
    answer = losses.submit(signed(eve), eve.peer_id)
    assert not answer.accepted and "not named this member" in answer.reason
    answer = losses.submit(signed(ann), eve.peer_id)
    assert not answer.accepted and "not named this member" in answer.reason
    answer = losses.submit(signed(eve), ann.peer_id)
    assert not answer.accepted and "signed by another member" in answer.reason
    assert losses.found() is None


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"state": OTHER}, "of state cccc"),
        ({"round": 10}, "of round 10, expected 20"),
        ({"run": OTHER}, "of run cccc"),
        ({"tokens": 119}, "119 tokens"),
        ({"sequences": 4}, "of 4 sequences"),
        ({"tokens": 0}, "not a measured"),
        ({"held_out_loss": -0.5}, "held_out_loss"),
        ({"held_out_loss": "3.25"}, "held_out_loss"),
        ({"more": 1}, "more"),
    ],
    ids=lambda item: "-".join(map(str, item)) if isinstance(item, dict) else "",
)
def test_a_named_member_is_not_believed_what_was_not_asked(losses: Losses, changed: dict[str, Any], why: str) -> None:
    answer = losses.submit(signed(**changed), ann.peer_id)
    assert not answer.accepted and why in answer.reason and losses.found() is None


@pytest.mark.parametrize("word", [b"NaN", b"Infinity", b"1e999"])
def test_a_loss_that_is_no_number_is_refused_though_it_is_signed(losses: Losses, word: bytes) -> None:
    payload = canonical.dumps(SAID).replace(b"3.25", word)
    signature = ann.sign(envelope.pae(Measured.media_type, payload))
    data = envelope.Envelope(Measured.media_type, payload, ann.peer_id, signature).to_bytes()
    answer = losses.submit(data, ann.peer_id)
    assert not answer.accepted and losses.found() is None


def test_what_was_said_of_one_round_is_refused_in_the_next(losses: Losses) -> None:
    before = signed()
    assert losses.submit(before, ann.peer_id).accepted
    assert losses.want(30, OTHER, 100.0) and losses.found() is None
    assert "of round 20, expected 30" in losses.submit(before, ann.peer_id).reason
    losses.done()
    assert losses.submit(before, ann.peer_id).reason == "no held-out loss is wanted now"
    assert losses.ask(ann.peer_id, [OTHER], 101.0) == ""


def test_a_changed_statement_is_refused(losses: Losses) -> None:
    value = canonical.loads(signed(), max_bytes=10_000)
    better = canonical.loads(signed(held_out_loss=1.0), max_bytes=10_000)
    value["payload"] = better["payload"]
    assert not losses.submit(canonical.dumps(value), ann.peer_id).accepted
    assert not losses.submit(b"{}", ann.peer_id).accepted and not losses.submit(b"", ann.peer_id).accepted


def test_who_has_sent_what_does_not_count_is_not_asked_again_and_the_next_one_is(losses: Losses) -> None:
    assert losses.ask(ann.peer_id, [STATE], 1.0) == STATE and losses.ask(bob.peer_id, [STATE], 2.0) == ""
    losses.submit(signed(tokens=119), ann.peer_id)
    assert losses.ask(ann.peer_id, [STATE], 3.0) == "" and losses.ask(bob.peer_id, [STATE], 3.0) == STATE
    losses.want(30, OTHER, 4.0)
    assert losses.ask(ann.peer_id, [OTHER], 5.0) == OTHER, "in another round it may have mended that"


def test_one_is_asked_at_a_time_and_the_next_when_it_is_silent(losses: Losses) -> None:
    assert losses.ask(ann.peer_id, [], 0.0) == "", "it has no such state"
    assert losses.ask(ann.peer_id, [STATE], 1.0) == STATE
    assert losses.ask(bob.peer_id, [STATE], 2.0) == ""
    assert losses.ask(ann.peer_id, [STATE], 3.0) == STATE, "the answer may have been lost"
    assert losses.ask(bob.peer_id, [STATE], 1.0 + ASKED_SHARE * WAIT_S) == STATE
    assert not losses.is_overdue(WAIT_S - 1) and losses.is_overdue(WAIT_S)
    assert losses.submit(signed(bob), bob.peer_id).accepted, "late is better than never"


def test_what_a_member_said_once_is_said_the_same_way_today() -> None:
    asked = Asked(RUN, 20, STATE, 8, 120)
    assert signed(PEERS[0]) == stored("measured.json") == Measured(**SAID).sign(PEERS[0]).data
    assert open_measured(stored("measured.json"), asked).by == PEERS[0].peer_id


def test_whoever_verifies_holds_the_loss_against_what_its_measurer_signed() -> None:
    asked = Asked(RUN, 20, STATE, 8, 120)
    evaluation = Evaluation.by_member(open_measured(signed(), asked))
    assert Evaluation.model_validate(evaluation.model_dump(mode="json")) == evaluation
    assert GENESIS.check_measured(RUN, 0, STATE) is None and "measured" not in GENESIS.model_dump(mode="json")
    for changed in ({"held_out_loss": 1.0}, {"tokens": 121}):
        with pytest.raises(VerificationError):
            evaluation.model_copy(update=changed).check_measured(RUN, 20, STATE)
    with pytest.raises(VerificationError, match="of round 20, expected 21"):
        evaluation.check_measured(RUN, 21, STATE)
    with pytest.raises(FormatError):
        evaluation.model_copy(update={"measured": {}}).check_measured(RUN, 20, STATE)
