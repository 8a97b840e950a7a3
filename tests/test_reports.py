"""Reported rounds: each claim ends in the ledger exactly once, however reports are ordered, repeated or forged."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError

from coordinator import reports as reports_module
from coordinator.store import CreditRow, ForkRow, PendingByRow, PendingRow
from protocol import canonical, certificate, envelope
from protocol.agreement import Agreement, Counts
from protocol.epoch import stored_word
from protocol.errors import NetworkError
from protocol.keys import PeerIdentity
from protocol.ledger_entry import parse_entry
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
    with office.ledger.reading() as session:
        assert session.scalars(select(ForkRow.round)).all() == [1]


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


def lone(office: Office, member: Member, round: int, base: str = "ef" * 32) -> Agreement:
    """A later round that one member signed by itself, from a state that nobody has."""
    return office.swarm.agree("cd" * 32, [member], round=round, base=base)


def waiting(office: Office) -> set[tuple[str, int]]:
    """(whose, round) of what waits."""
    with office.ledger.reading() as session:
        rows = session.execute(select(PendingByRow.reporter, PendingByRow.round, PendingByRow.digest)).all()
        kept = session.scalar(select(func.count()).select_from(PendingRow))
    assert kept == len({row.digest for row in rows})
    return {(row.reporter, row.round) for row in rows}


@pytest.mark.parametrize("limit", ["MAX_WAITING_PER_PEER", "MAX_WAITING_BYTES_PER_PEER"])
def test_one_member_cannot_fill_the_store_with_waiting_reports(
    office: Office, monkeypatch: pytest.MonkeyPatch, limit: str, checks: list[str]
) -> None:
    me = office.swarm.members[0]
    reports = [lone(office, me, number) for number in range(5, 9)]
    most = 3 if limit == "MAX_WAITING_PER_PEER" else sum(len(item.to_bytes()) for item in reports[:3])
    monkeypatch.setattr(reports_module, limit, most)
    for agreement in reports[:3]:
        assert office.submit(agreement).accepted
    checks.clear()
    with pytest.raises(NetworkError, match="rounds ahead of the ledger"):
        office.submit(reports[3])
    assert not checks, "what there is no room for is not checked"
    assert len(waiting(office)) == 3


def test_hoarders_give_way_and_what_a_member_reported_stays(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is full of one member's reports, some of the others' own rounds: none of theirs is lost or refused."""
    first, second, third = [office.swarm.round(seed=number) for number in range(3)]
    hoarder, (alice, bob, _) = office.member(), office.swarm.members
    monkeypatch.setattr(reports_module, "MAX_WAITING", 6)
    assert office.submit(third, hoarder).accepted
    for number in range(50, 55):
        assert office.submit(lone(office, hoarder, number), hoarder).accepted
    assert office.submit(third, alice).accepted and office.submit(second, bob).accepted
    assert {(alice.peer_id, 3), (bob.peer_id, 2)} < waiting(office)
    monkeypatch.setattr(reports_module, "MAX_WAITING", 4)
    with pytest.raises(NetworkError, match="too many reports wait"):
        office.submit(lone(office, hoarder, 60), hoarder)
    for number in (10, 11):
        stranger = office.member()
        with contextlib.suppress(NetworkError):
            office.submit(lone(office, stranger, number), stranger)
    office.reopen()
    assert office.submit(first, alice).accepted
    assert office.credits() == office.expected_credits([1, 2, 3])


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The signers of all peers' signatures that are checked."""
    seen: list[str] = []
    real = envelope.verify_peer_signature

    def counted(peer_id: str, signature: bytes, message: bytes) -> None:
        seen.append(peer_id)
        real(peer_id, signature, message)

    monkeypatch.setattr(envelope, "verify_peer_signature", counted)
    return seen


def test_lone_agreements_that_wait_cost_nothing(
    office: Office, monkeypatch: pytest.MonkeyPatch, checks: list[str]
) -> None:
    """1,500 of one member: each is checked once, when it comes; no tick and no commit looks at one again."""
    me = office.swarm.members[0]
    assert office.submit(lone(office, me, 3)).accepted
    assert len(checks) == 2, "a claim and a vote"
    with office.ledger.writing() as write:  # as `submit` does, in one transaction
        for number in range(1500):
            item = lone(office, me, 3 + number % 5, f"{number:064x}")
            data = item.to_bytes()
            names = {"digest": canonical.sha256_hex(data), "round": item.round, "reporter": me.peer_id}
            write.session.add(PendingRow(base=item.base, agreement=data, time=0.0, **names))
            write.session.add(PendingByRow(size=len(data), **names))
    checks.clear()
    read: list[bytes] = []
    real = Agreement.stored
    monkeypatch.setattr(Agreement, "stored", lambda data: read.append(data) or real(data))
    for _ in range(3):
        office.reports.settle()
    assert not checks and not read
    for number in (1, 2, 3):
        assert office.submit(office.swarm.round(seed=number)).accepted
    assert len(checks) == 3 * 6 + 1 and not read, "claims and votes of the rounds that came, and who begins"
    assert office.credits() == office.expected_credits([1, 2, 3])
    assert {number for _, number in waiting(office)} == {5, 6, 7}, "what can follow no more is gone"


def test_waiting_rounds_are_not_checked_again_when_their_turn_comes(office: Office, checks: list[str]) -> None:
    first, second, third = [office.swarm.round(seed=number) for number in range(3)]
    assert office.submit(second).accepted and office.submit(third).accepted
    checks.clear()
    assert office.submit(first).accepted
    assert len(checks) == 7, "three claims, three votes, and the word on who begins"
    assert office.credits() == office.expected_credits([1, 2, 3])
    checks.clear()
    for member in office.swarm.members:
        assert office.submit(third, member).accepted, "a known round"
    assert not checks


def test_ledger_is_free_while_signatures_are_checked(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[bool] = []
    real = envelope.verify_peer_signature

    def looking(peer_id: str, signature: bytes, message: bytes) -> None:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:  # the lock would let its own thread in
            free = pool.submit(office.ledger._lock.acquire, blocking=False).result()
            held.append(not free)
            if free:
                pool.submit(office.ledger._lock.release).result()
        real(peer_id, signature, message)

    monkeypatch.setattr(envelope, "verify_peer_signature", looking)
    first, second = [office.swarm.round(seed=number) for number in range(2)]
    office.submit(second)
    office.submit(first)
    office.submit(lone(office, office.member(), 9))
    assert len(held) == 15 and not any(held)
    assert office.reports.tip().round == 2


def test_what_waited_in_an_older_store_is_committed(office: Office) -> None:
    """Stores of before the reporters' table know one reporter for each agreement."""
    first, second = [office.swarm.round(seed=number) for number in range(2)]
    office.submit(second)
    with office.ledger.writing() as write:
        write.session.execute(text("DROP TABLE pending_by"))
        write.session.execute(text("DROP TABLE beginners"))
    office.reopen()
    assert waiting(office) == {(office.swarm.members[0].peer_id, 2)}
    assert office.submit(first).accepted
    assert office.credits() == office.expected_credits([1, 2])


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
