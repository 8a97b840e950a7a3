"""Reported rounds: each claim ends in the ledger exactly once, whatever order, repetition or forgery reports come in."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from coordinator_kit import Member, Office
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from coordinator import reports as reports_module
from coordinator.branch import LEAST_WAIT_S
from coordinator.store import CreditRow, ForkRow
from protocol import certificate
from protocol.errors import NetworkError
from protocol.keys import PeerIdentity
from protocol.ledger_entry import parse_entry


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
    with office.ledger.reading() as session:
        assert session.scalars(select(ForkRow.round)).all() == [1]


def test_round_from_another_base_is_refused(office: Office) -> None:
    office.submit(office.swarm.round())
    stray = office.swarm.agree("cd" * 32, office.swarm.members, base="ef" * 32)
    answer = office.submit(stray)
    assert not answer.accepted and "not in the ledger" in answer.reason


def test_member_working_apart_cannot_take_over_the_run(office: Office) -> None:
    """An agreement of one, reported first, waits; the round of the others is committed."""
    office.submit(office.swarm.round())
    alone = office.swarm.agree("cd" * 32, office.swarm.members[:1])
    assert office.submit(alone, now=1000.0).accepted
    together = office.swarm.round(seed=2)
    assert office.submit(together, now=1001.0).accepted
    office.reports.settle(now=2000.0)
    assert office.credits() == office.expected_credits([1, 2])
    assert office.reports.tip().state == together.state


def test_round_of_the_few_that_are_left_is_committed_after_a_wait(office: Office) -> None:
    office.submit(office.swarm.round(), now=900.0)
    alone = office.swarm.agree("cd" * 32, office.swarm.members[:1])
    office.submit(alone, now=1000.0)
    office.reports.settle(now=1000.0 + LEAST_WAIT_S / 2)
    assert office.reports.tip().round == 1
    office.reports.settle(now=1000.0 + LEAST_WAIT_S)
    assert office.reports.tip().state == alone.state


def test_the_few_wait_for_as_long_as_the_rest_may_need_for_a_round(office: Office) -> None:
    """A round takes 100 s here: whoever signs one alone at once cannot overtake the others."""
    for number in range(3):
        office.submit(office.swarm.round(seed=number), now=100.0 * number)
    alone = office.swarm.agree("cd" * 32, office.swarm.members[:1])
    office.submit(alone, now=201.0)
    office.reports.settle(now=300.0)
    together = office.swarm.round(seed=9)
    assert office.submit(together, now=310.0).accepted
    assert office.reports.tip().state == together.state
    assert office.credits() == office.expected_credits([1, 2, 3, 4])


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
    office.swarm.previous = {}
    answer = office.submit(office.swarm.round(seed=2, tokens=100_000))
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


def test_one_member_cannot_fill_the_store_with_waiting_reports(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports_module, "MAX_PENDING_PER_PEER", 3)
    for number in range(3):
        stray = office.swarm.agree("cd" * 32, office.swarm.members[:1], round=5 + number, base="ef" * 32)
        assert office.submit(stray).accepted
    with pytest.raises(NetworkError, match="rounds ahead"):
        office.submit(office.swarm.agree("cd" * 32, office.swarm.members[:1], round=9, base="ef" * 32))


def test_store_itself_refuses_credit_twice(office: Office) -> None:
    office.submit(office.swarm.round())
    size = office.ledger.size
    with office.ledger.reading() as session:
        entry = office.ledger.entry(session.scalars(select(CreditRow.leaf)).first() or 0)
        row = session.scalars(select(CreditRow)).first()
    assert row is not None
    with pytest.raises(IntegrityError), office.ledger.writing() as write:
        leaf = write.leaf(parse_entry(entry))
        write.session.add(CreditRow(leaf=leaf, run=row.run, round=row.round, peer_id=row.peer_id, tokens=1, flops=1))
    assert office.ledger.size == size and len(office.credits()) == 3
    assert office.submit(office.swarm.round(seed=2)).accepted
