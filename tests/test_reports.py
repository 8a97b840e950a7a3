"""Reported rounds: each claim ends in the ledger exactly once, however reports are ordered, repeated or forged."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.store.database import StoreError
from protocol import certificate
from protocol.agreement import Counts
from protocol.epoch import stored_word
from protocol.keys import PeerIdentity
from protocol.ledger_entry import CreditEntry, parse_entry
from tests.kit.coordinator import Member, Office


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path)
    yield office
    office.close()


def test_committed_rounds_become_one_credit_leaf_for_each_claim(office: Office) -> None:
    for number in range(1, 4):
        assert office.submit(office.swarm.round(seed=number)).accepted
    assert office.credits() == office.expected_credits([1, 2, 3])
    assert [item.round for item in office.committed] == [1, 2, 3]


def test_report_submitted_twice_changes_nothing(office: Office) -> None:
    agreement = office.swarm.round()
    for _ in range(3):
        assert office.submit(agreement).accepted
    assert office.credits() == office.expected_credits([1])
    assert len(office.committed) == 1


def test_report_of_another_member_with_other_votes_changes_nothing(office: Office) -> None:
    swarm = office.swarm
    agreement = swarm.agree("ab" * 32, swarm.members)
    fewer = swarm.agree("ab" * 32, swarm.members, voters=swarm.members[:2])
    assert office.submit(fewer).accepted and office.submit(agreement).accepted
    assert office.credits() == office.expected_credits([1])


def test_reports_out_of_order_are_committed_when_the_gap_closes(office: Office) -> None:
    first, second, third, fourth = [office.swarm.round(seed=number) for number in range(4)]
    for agreement in (third, fourth, second):
        assert office.submit(agreement).accepted
    assert office.credits() == []
    assert office.submit(first).accepted
    assert office.credits() == office.expected_credits([1, 2, 3, 4])


def test_waiting_reports_outlive_a_restart(office: Office) -> None:
    first, second, third = [office.swarm.round(seed=number) for number in range(3)]
    assert office.submit(third).accepted and office.submit(second).accepted
    office.reopen()
    assert office.submit(first).accepted
    office.reopen()
    for agreement in (first, second, third):
        assert office.submit(agreement).accepted
    assert office.credits() == office.expected_credits([1, 2, 3])


def test_another_state_for_a_committed_round_is_refused_and_noted(
    office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    other = office.swarm.agree("cd" * 32, office.swarm.members)
    assert office.submit(office.swarm.round()).accepted
    answer = office.submit(other)
    assert not answer.accepted and "the ledger holds state" in answer.reason
    assert office.credits() == office.expected_credits([1])
    assert [record.levelno for record in caplog.records if "fork" in record.message] == [logging.WARNING]
    with office.store.reading() as tables:
        assert tables.forks.by(office.swarm.members[0].peer_id) == 1


def test_round_from_another_base_is_refused(office: Office) -> None:
    office.submit(office.swarm.round())
    stray = office.swarm.agree("cd" * 32, office.swarm.members, base="ef" * 32)
    answer = office.submit(stray)
    assert not answer.accepted and "not in the ledger" in answer.reason


def test_round_signed_by_few_is_refused_at_once_and_keeps_nobody_out(office: Office) -> None:
    """Waiting never replaces a majority: what the others agreed on is committed whenever it comes."""
    office.submit(office.swarm.round())
    alone = office.swarm.agree("cd" * 32, office.swarm.members[:1])
    answer = office.submit(alone)
    assert not answer.accepted and "those who signed hold 100 of 303 of the weight" in answer.reason
    for number in range(10):
        office.reports.settle(now=1e12 + number)
    together = office.swarm.round(seed=2)
    assert office.submit(together).accepted
    assert office.credits() == office.expected_credits([1, 2])
    assert office.reports.tip().state == together.state


def test_first_round_is_by_the_majority_of_the_named(office: Office) -> None:
    swarm, members = office.swarm, office.swarm.members
    stranger = office.member()
    refusals = {
        "those who signed hold": swarm.agree("ab" * 32, [members[0], stranger]),
        "not by the beginners that the coordinator has named": dataclasses.replace(
            swarm.agree("ab" * 32, [stranger]), word=stored_word(office.word([stranger]))
        ),
        "does not say whom the coordinator named": dataclasses.replace(swarm.agree("ab" * 32, members), word=None),
        "not named by this run's coordinator": dataclasses.replace(
            swarm.agree("ab" * 32, [stranger]),
            word=stored_word(office.word([stranger], Ed25519PrivateKey.generate())),
        ),
    }
    for reason, agreement in refusals.items():
        answer = office.submit(agreement)
        assert not answer.accepted and reason in answer.reason
    assert office.reports.tip().round == 0
    assert office.submit(swarm.agree("ab" * 32, [*members[1:], stranger])).accepted, "two of three will do"


def test_run_that_began_before_beginners_were_named_needs_no_word(tmp_path: Path) -> None:
    office = Office(tmp_path, rules=1)
    assert office.swarm.beginners == b""
    assert office.submit(office.swarm.round()).accepted and office.submit(office.swarm.round(seed=2)).accepted
    office.close()


def test_forged_vote_is_refused(office: Office) -> None:
    value = office.swarm.agree("ab" * 32, office.swarm.members).to_json()
    value["votes"][1]["signatures"][0]["sig"] = value["votes"][0]["signatures"][0]["sig"]
    answer = office.reports.submit(json.dumps(value).encode(), "someone")
    assert not answer.accepted and "signature" in answer.reason
    assert office.credits() == []


def test_claim_of_a_stranger_is_refused(office: Office) -> None:
    stranger = Member(PeerIdentity.generate(), office.swarm.members[0].certificate)
    answer = office.submit(office.swarm.agree("ab" * 32, [*office.swarm.members, stranger]))
    assert not answer.accepted and "certificate" in answer.reason


def test_certificates_of_another_run_are_refused(office: Office, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Office(tmp_path / "other")
    for mine in office.swarm.members:
        mine.certificate = certificate.issue(
            other.membership_key, run=other.card.run, peer_id=mine.peer_id, lifetime_s=60
        )
    answer = office.submit(office.swarm.round())
    other.close()
    assert not answer.accepted and "certificate" in answer.reason


def test_weights_that_do_not_follow_from_the_round_before_are_refused(office: Office) -> None:
    office.submit(office.swarm.round(tokens=100))
    whole = office.swarm.agree("ab" * 32, office.swarm.members, tokens=100)
    answer = office.submit(dataclasses.replace(whole, counts=Counts(dict.fromkeys(whole.weights, 50))))
    assert not answer.accepted and "weights" in answer.reason
    assert office.credits() == office.expected_credits([1])


def test_votes_of_a_minority_are_refused(office: Office) -> None:
    swarm = office.swarm
    answer = office.submit(swarm.agree("ab" * 32, swarm.members, voters=swarm.members[:1]))
    assert not answer.accepted and "majority" in answer.reason


def test_bytes_that_are_no_agreement_are_refused(office: Office) -> None:
    for data in (
        b"",
        b"[]",
        b"null",
        b'{"claims":1}',
        b"[" * 100_000,
        b'{"claims":[],"votes":[],"certificates":{},"weights":{}}',
    ):
        assert not office.reports.submit(data, "someone").accepted


def test_rounds_after_the_last_are_refused(tmp_path: Path) -> None:
    office = Office(tmp_path, rounds=1)
    assert office.submit(office.swarm.round()).accepted
    answer = office.submit(office.swarm.round(seed=2))
    office.close()
    assert not answer.accepted and "ends after round 1" in answer.reason


def test_store_itself_refuses_credit_twice(office: Office) -> None:
    office.submit(office.swarm.round())
    size = office.ledger.size
    granted = parse_entry(office.ledger.entry(1))
    assert isinstance(granted, CreditEntry)
    with pytest.raises(StoreError, match="UNIQUE"), office.ledger.writing() as write:
        write.credit(granted)
    assert office.ledger.size == size and len(office.credits()) == 3
    assert office.submit(office.swarm.round(seed=2)).accepted
