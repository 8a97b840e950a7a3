"""Reports that wait for the rounds before them: bounded, checked once, and none lost that another has reported, too."""

from __future__ import annotations

import concurrent.futures
import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator import ledger, waiting
from coordinator.store import database
from protocol import envelope
from protocol.agreement import Agreement
from protocol.errors import NetworkError
from tests.kit.coordinator import Member, Office


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path)
    yield office
    office.close()


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


def lone(office: Office, member: Member, round: int, base: str = "ef" * 32) -> Agreement:
    """A later round that one member signed by itself, from a state that nobody has."""
    return office.swarm.agree("cd" * 32, [member], round=round, base=base)


def held(office: Office) -> set[tuple[str, int]]:
    """(whose, round) of what waits."""
    with sqlite3.connect(office.folder / "ledger.db") as store:
        rows = store.execute("SELECT reporter, round, digest FROM pending_by").fetchall()
        kept = store.execute("SELECT digest FROM pending").fetchall()
    store.close()
    assert {digest for (digest,) in kept} == {digest for _, _, digest in rows}
    return {(reporter, round) for reporter, round, _ in rows}


@pytest.mark.parametrize("limit", ["MAX_WAITING_PER_PEER", "MAX_WAITING_BYTES_PER_PEER"])
def test_one_member_cannot_fill_the_store_with_waiting_reports(
    office: Office, monkeypatch: pytest.MonkeyPatch, limit: str, checks: list[str]
) -> None:
    me = office.swarm.members[0]
    reports = [lone(office, me, number) for number in range(5, 9)]
    most = 3 if limit == "MAX_WAITING_PER_PEER" else sum(len(item.to_bytes()) for item in reports[:3])
    monkeypatch.setattr(waiting, limit, most)
    for agreement in reports[:3]:
        assert office.submit(agreement).accepted
    checks.clear()
    with pytest.raises(NetworkError, match="rounds ahead of the ledger"):
        office.submit(reports[3])
    assert not checks, "what there is no room for is not checked"
    assert len(held(office)) == 3


def test_hoarders_give_way_and_what_a_member_reported_stays(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is full of one member's reports, some of them the others' own: none of theirs is lost or refused."""
    first, second, third = [office.swarm.round(seed=number) for number in range(3)]
    hoarder, (alice, bob, _) = office.member(), office.swarm.members
    monkeypatch.setattr(waiting, "MAX_WAITING", 6)
    assert office.submit(third, hoarder).accepted
    for number in range(50, 55):
        assert office.submit(lone(office, hoarder, number), hoarder).accepted
    assert office.submit(third, alice).accepted and office.submit(second, bob).accepted
    assert {(alice.peer_id, 3), (bob.peer_id, 2)} < held(office)
    monkeypatch.setattr(waiting, "MAX_WAITING", 4)
    with pytest.raises(NetworkError, match="too many reports wait"):
        office.submit(lone(office, hoarder, 60), hoarder)
    for number in (10, 11):
        stranger = office.member()
        with contextlib.suppress(NetworkError):
            office.submit(lone(office, stranger, number), stranger)
    office.reopen()
    assert office.submit(first, alice).accepted
    assert office.credits() == office.expected_credits([1, 2, 3])


def test_lone_agreements_that_wait_cost_nothing(
    office: Office, monkeypatch: pytest.MonkeyPatch, checks: list[str]
) -> None:
    """1,500 of one member: each is checked once, when it comes; no tick and no commit looks at one again."""
    me = office.swarm.members[0]
    assert office.submit(lone(office, me, 3)).accepted
    assert len(checks) == 2, "a claim and a vote"
    with office.store.writing() as tables:  # as `submit` does, in one transaction
        for number in range(1500):
            item = lone(office, me, 3 + number % 5, f"{number:064x}")
            tables.waiting.hold(item.to_bytes(), round=item.round, base=item.base, reporter=me.peer_id, time=0.0)
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
    assert {number for _, number in held(office)} == {5, 6, 7}, "what can follow no more is gone"


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
    monkeypatch.setattr(database, "WRITE_TIMEOUT_S", 0.0)
    monkeypatch.setattr(ledger, "WRITE_TIMEOUT_S", 0.0)
    written: list[str] = []
    real = envelope.verify_peer_signature

    def write_nothing() -> None:
        with office.ledger.writing():
            pass

    def looking(peer_id: str, signature: bytes, message: bytes) -> None:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:  # a lock would let its own thread in
            pool.submit(write_nothing).result()
        written.append(peer_id)
        real(peer_id, signature, message)

    monkeypatch.setattr(envelope, "verify_peer_signature", looking)
    first, second = [office.swarm.round(seed=number) for number in range(2)]
    office.submit(second)
    office.submit(first)
    office.submit(lone(office, office.member(), 9))
    assert len(written) == 15
    assert office.reports.tip().round == 2


def test_what_waited_in_an_older_store_is_committed(office: Office) -> None:
    """Stores of before the reporters' table know one reporter for each agreement."""
    first, second = [office.swarm.round(seed=number) for number in range(2)]
    office.submit(second)
    office.close()
    with sqlite3.connect(office.folder / "ledger.db") as store:
        store.execute("DROP TABLE pending_by")
        store.execute("DROP TABLE beginners")
    store.close()
    office.open()
    assert held(office) == {(office.swarm.members[0].peer_id, 2)}
    assert office.submit(first).accepted
    assert office.credits() == office.expected_credits([1, 2])
