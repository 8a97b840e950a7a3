"""A round that nobody reports any more: the ledger asks a member for the chain of agreements, and takes no other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator import gap as gap_module
from coordinator.gap import AGAIN_S, MISSING_S, NEWCOMERS_S, NEXT_S, Gap
from peer.disk.outbox import Outbox
from peer.link.background import CoordinatorLink, Greeting
from peer.link.held_certificate import HeldCertificate
from peer.sync.shelf import Head, Shelf
from protocol import canonical, envelope
from protocol.agreement import Agreement
from protocol.errors import FormatError
from protocol.rpc import MAX_CHAIN_BYTES, MAX_CHAIN_ROUNDS, ReportAnswer, draw_session
from tests.kit.coordinator import Member, Office, Site, site_of, write_run
from tests.kit.link import Nothing, Silent


def ask(gap: Gap, peer: str, now: float, *, stands_at: int = 9, ledger: int = 3, worked: bool = True) -> bool:
    return gap.ask(peer, stands_at, ledger, now, worked=worked)


# ---- who is asked ----------------------------------------------------------------------------------------------------


def test_members_beyond_a_ledger_that_stands_still_are_asked_one_after_the_other() -> None:
    gap = Gap()
    assert not ask(gap, "a", 0.0) and not ask(gap, "a", MISSING_S - 1)
    assert ask(gap, "a", MISSING_S)
    assert not ask(gap, "a", MISSING_S + 1) and not ask(gap, "b", MISSING_S + 1), "one at a time"
    assert ask(gap, "b", MISSING_S + NEXT_S)
    assert not ask(gap, "a", MISSING_S + 2 * NEXT_S), "it was asked already"
    assert ask(gap, "a", MISSING_S + AGAIN_S)


def test_nobody_is_asked_while_the_ledger_goes_on_or_who_stands_where_it_does() -> None:
    gap = Gap()
    assert not any(ask(gap, "a", 20.0 * number, stands_at=number + 1, ledger=number) for number in range(20))
    assert not any(ask(gap, "b", now, stands_at=3) for now in (400.0, 1000.0))


def test_whoever_has_credit_is_asked_before_those_who_have_none() -> None:
    gap = Gap()
    assert not ask(gap, "new", 0.0, worked=False) and not ask(gap, "new", MISSING_S, worked=False)
    assert ask(gap, "old", MISSING_S)
    assert ask(gap, "new", MISSING_S + NEWCOMERS_S, worked=False)


def test_a_member_that_lies_about_where_it_stands_has_no_other_asked_that_stands_at_the_ledger() -> None:
    gap = Gap()
    ask(gap, "liar", 0.0, stands_at=10**9)
    assert ask(gap, "liar", MISSING_S, stands_at=10**9)
    assert not ask(gap, "honest", MISSING_S + NEXT_S, stands_at=3)


# ---- what a chain comes to -------------------------------------------------------------------------------------------


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


def submit(office: Office, *chain: Agreement) -> ReportAnswer:
    return office.reports.submit_chain([item.to_bytes() for item in chain], office.swarm.members[0].peer_id)


def test_chain_closes_the_gap_and_what_waited_behind_it_is_committed(office: Office) -> None:
    rounds = [office.swarm.round(seed=number) for number in range(6)]
    office.submit(rounds[0])
    assert office.submit(rounds[5]).accepted and office.reports.tip().round == 1
    assert submit(office, *rounds[1:5]) == ReportAnswer(True)
    assert office.credits() == office.expected_credits(range(1, 7))
    assert submit(office, *rounds) == ReportAnswer(True), "once more changes nothing"
    assert office.credits() == office.expected_credits(range(1, 7))


def test_known_rounds_of_a_chain_cost_no_signature(office: Office, checks: list[str]) -> None:
    rounds = [office.swarm.round(seed=number) for number in range(3)]
    submit(office, *rounds)
    checks.clear()
    assert submit(office, *rounds).accepted and not checks


def made_up(office: Office, round: int, base: str, by: Member | None = None) -> Agreement:
    """What one member, who was in no round, agrees on with itself."""
    return office.swarm.agree("ab" * 32, [by or office.member()], round=round, base=base)


def test_made_up_agreement_ends_the_chain_and_what_hangs_on_it_is_not_looked_at(
    office: Office, checks: list[str]
) -> None:
    first, second, third = [office.swarm.round(seed=number) for number in range(3)]
    office.submit(first)
    stranger = office.member()
    forged = made_up(office, 3, second.state, stranger)
    on_top = [made_up(office, number, forged.state, stranger) for number in range(4, 40)]
    checks.clear()
    answer = submit(office, second, forged, *on_top)
    assert not answer.accepted and "those who signed hold" in answer.reason
    assert checks.count(stranger.peer_id) == 2, "one claim and one vote, and none of the 36 after it"
    assert office.reports.tip().round == 2, "what came before it stays"
    assert submit(office, third).accepted
    assert office.credits() == office.expected_credits([1, 2, 3])


def test_changed_agreement_in_a_chain_is_refused(office: Office) -> None:
    first, second = [office.swarm.round(seed=number) for number in range(2)]
    value = second.to_json()
    value["votes"][1]["signatures"][0]["sig"] = value["votes"][0]["signatures"][0]["sig"]
    changed = canonical.dumps(value)
    answer = office.reports.submit_chain([first.to_bytes(), changed], "someone")
    assert not answer.accepted and "signature" in answer.reason
    assert office.credits() == office.expected_credits([1])


@pytest.mark.parametrize("kind", ["another run's", "with a hole", "from another state", "no agreements"])
def test_chain_that_does_not_follow_costs_no_signature(
    office: Office, tmp_path: Path, checks: list[str], kind: str
) -> None:
    first, _, third = [office.swarm.round(seed=number) for number in range(3)]
    office.submit(first)
    chain: list[bytes] = [third.to_bytes()]
    if kind == "another run's":
        (tmp_path / "other").mkdir()
        other = Office(tmp_path / "other", rounds=7)
        chain = [other.swarm.round(seed=number).to_bytes() for number in range(3)]
        other.close()
    elif kind == "from another state":
        chain = [made_up(office, 2, "ef" * 32).to_bytes()]
    elif kind == "no agreements":
        chain = [b"{}"]
    checks.clear()
    answer = office.reports.submit_chain(chain, "someone")
    assert not answer.accepted and not checks
    expected = "agreements of this run" if kind in ("another run's", "no agreements") else "does not follow round 1"
    assert expected in answer.reason
    assert office.credits() == office.expected_credits([1])


def test_chain_of_another_branch_is_refused_and_noted(office: Office) -> None:
    fork = office.swarm.agree("cd" * 32, office.swarm.members)
    office.submit(office.swarm.round())
    answer = submit(office, fork)
    assert not answer.accepted and "the ledger holds state" in answer.reason


# ---- what a member knows ---------------------------------------------------------------------------------------------


def test_member_knows_the_chain_to_its_head_or_sends_none(office: Office) -> None:
    shelf, sent = Shelf(Head(office.swarm.state)), list[bytes]()
    assert shelf.chain_to_head(0) == []
    for number in range(1, 6):
        agreement = office.swarm.round(seed=number)
        shelf.advance(Head(office.swarm.state, agreement))
        sent.append(agreement.to_bytes())
    assert [shelf.chain_to_head(round) for round in range(7)] == [sent[round:] for round in range(5)] + [[], []]
    restarted = Shelf(Head(office.swarm.state, agreement))
    assert restarted.chain_to_head(4) == sent[4:], "the head's own agreement is on disk"
    assert restarted.chain_to_head(3) == [], "with a hole it would be of no use"


def test_member_that_has_left_a_branch_shows_no_round_of_it(office: Office) -> None:
    shelf, heads = Shelf(Head(office.swarm.state)), list[Head]()
    for number in range(1, 6):
        agreement = office.swarm.round(seed=number)
        heads.append(Head(office.swarm.state, agreement))
        shelf.advance(heads[-1])
    shelf.advance(third := heads[2])  # in truth another third round, of a later epoch
    assert third.agreement is not None and shelf.chain_to_head(2) == [third.agreement.to_bytes()]
    assert shelf.chain_to_head(0) == shelf.chain_to_head(3) == []


# ---- with the service ------------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(gap_module, "MISSING_S", 0.0)
    with site_of(write_run(tmp_path / "source", rounds=0), tmp_path / "run") as site:
        yield site


class Knowing(Silent):
    """The first member, which knows the agreements of all rounds so far."""

    def __init__(self, site: Site, rounds: list[bytes]) -> None:
        self._session = draw_session(site.swarm.members[0].identity, site.host.invite.run)
        self._rounds, self.asked = rounds, list[int]()

    def greeting(self) -> Greeting:
        return Greeting(len(self._rounds), 1.0, [], False, self._session)

    def chain_since(self, round: int) -> list[bytes]:
        self.asked.append(round)
        return self._rounds[round:]


def visit(site: Site, folder: Path, peer: Knowing) -> None:
    """The first member visits the coordinator, as its link does every few seconds."""
    member = site.swarm.members[0]
    held = HeldCertificate(member.identity, member.certificate, time.time() + 3600)
    outbox, nothing = Outbox(folder / "outbox"), Nothing()
    CoordinatorLink(site.client, held, outbox, nothing, nothing, peer).visit()  # type: ignore[arg-type]


def test_ledger_goes_on_by_itself_when_all_reports_of_a_round_are_lost(site: Site, tmp_path: Path) -> None:
    rounds = [site.swarm.round(seed=number).to_bytes() for number in range(1, 9)]
    assert site.client.report(site.swarm.members[0].certificate, rounds[0]).accepted
    outbox = Outbox(tmp_path / "outbox")
    for number in (5, 6, 7, 8):  # nobody has the reports of 2, 3 and 4 any more
        outbox.put(number, rounds[number - 1])
    peer = Knowing(site, rounds)
    visit(site, tmp_path, peer)
    assert peer.asked == [1] and site.host.status().round == 8
    credited = {peer.peer_id: peer.rounds for peer in site.host.status().peers}
    assert [credited[member.peer_id] for member in site.swarm.members] == [8, 8, 8]
    visit(site, tmp_path, peer)
    assert peer.asked == [1], "nothing is missing any more"


def test_last_round_is_asked_for_though_none_comes_after_it(site: Site, tmp_path: Path) -> None:
    rounds = [site.swarm.round(seed=number).to_bytes() for number in range(1, 4)]
    for data in rounds[:2]:
        assert site.client.report(site.swarm.members[0].certificate, data).accepted
    visit(site, tmp_path, Knowing(site, rounds))
    assert site.host.status().round == 3


def test_chain_beyond_its_bounds_is_refused_before_it_is_read(site: Site) -> None:
    token = site.swarm.members[0].certificate
    for chain in ([b"{}"] * (MAX_CHAIN_ROUNDS + 1), [bytes(MAX_CHAIN_BYTES // 2 + 1)] * 2):
        with pytest.raises(FormatError, match="a chain has at most"):
            site.client.report_chain(token, chain)
