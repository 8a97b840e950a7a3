"""Which agreements extend the run, and what the rules of announcing and of status hold to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator import roster as roster_module
from coordinator.branch import Verdict, judge
from coordinator.roster import LIVE_S, MAX_OTHERS, Announcements
from protocol.agreement import Agreement, Counts
from protocol.errors import FormatError, VerificationError
from protocol.keys import PeerIdentity
from protocol.rpc import check_swarm_address
from protocol.status import RunStatus
from protocol.succession import Last
from tests.kit.coordinator import Office


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path)
    yield office
    office.close()


def test_verdicts(office: Office) -> None:
    swarm, spec, named = office.swarm, office.spec, office.named

    def verdict(agreement: Agreement, last: Last, committed: str | None = None) -> Verdict:
        return judge(agreement, last, spec, committed_state=committed, named=named)

    genesis = Last(0, office.card.genesis)
    first = swarm.agree("ab" * 32, swarm.members)
    assert verdict(first, genesis) is Verdict.COMMIT
    last = swarm.last = Last.of(first)
    assert verdict(first, last, first.state) is Verdict.KNOWN
    assert verdict(first, last, "cd" * 32) is Verdict.FORK
    second = swarm.agree("cd" * 32, swarm.members, round=2, base=first.state)
    assert verdict(second, last) is Verdict.COMMIT
    assert verdict(second, genesis) is Verdict.WAIT
    stray = swarm.agree("cd" * 32, swarm.members, round=2, base="ef" * 32)
    assert verdict(stray, last) is Verdict.FORK
    few = swarm.agree("cd" * 32, swarm.members[:1], round=2, base=first.state)
    with pytest.raises(VerificationError, match="of the weight that decides"):
        verdict(few, last)
    swarm.last = genesis
    wrong = swarm.agree("cd" * 32, swarm.members, tokens=10**6, round=2, base=first.state)
    with pytest.raises(VerificationError, match="weights"):
        verdict(dataclasses.replace(wrong, counts=Counts(dict.fromkeys(wrong.weights, 1))), last)


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(list(range(6)) * 2))
def test_whatever_the_order_each_claim_is_credited_once(
    tmp_path_factory: pytest.TempPathFactory, order: list[int]
) -> None:
    office = Office(tmp_path_factory.mktemp("order"), members=2)
    agreements = [office.swarm.round(seed=number) for number in range(6)]
    for index in order:
        assert office.submit(agreements[index]).accepted
    assert office.credits() == office.expected_credits(range(1, 7))
    office.close()


def address(peer_id: str, name: str = "ip4/203.0.113.7") -> str:
    return f"/{name}/tcp/4701/p2p/{peer_id}"


def test_member_that_falls_silent_is_forgotten_by_the_others() -> None:
    roster, me = Announcements(), PeerIdentity.generate().peer_id
    roster.announce(me, [address(me)], round=1, tokens_per_s=1.0, states=[], now=0.0)
    assert roster.addresses(besides="", now=LIVE_S) == [address(me)]
    assert roster.addresses(besides="", now=LIVE_S + 1) == [] and roster.live(LIVE_S + 1) == []


def test_answer_names_a_bounded_number_of_others() -> None:
    roster = Announcements()
    for _ in range(MAX_OTHERS + 10):
        peer_id = PeerIdentity.generate().peer_id
        roster.announce(peer_id, [address(peer_id)], round=0, tokens_per_s=0.0, states=[], now=0.0)
    assert len(set(roster.addresses(besides="", now=1.0))) == MAX_OTHERS


def test_identities_without_credit_do_not_crowd_out_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither out of what a member is told, nor out of the roster itself."""
    monkeypatch.setattr(roster_module, "MAX_ROSTER", 1000)
    members = [PeerIdentity.generate().peer_id for _ in range(5)]
    roster = Announcements(lambda: members)
    for now, peer_id in enumerate([*members, *(PeerIdentity.generate().peer_id for _ in range(1200))]):
        at = 0.0 if peer_id in members else 1.0 + now / 1e6
        roster.announce(peer_id, [address(peer_id)], round=0, tokens_per_s=1.0, states=[], now=at)
    assert set(members) < roster.seen().keys() and len(roster.seen()) == 1000
    told = roster.addresses(besides=members[0], now=2.0)
    assert {address(peer_id) for peer_id in members[1:]} < set(told) and len(told) == MAX_OTHERS
    newcomers = Announcements(lambda: roster.seen())
    for peer_id in [*roster.seen(), me := PeerIdentity.generate().peer_id]:
        newcomers.announce(peer_id, [address(peer_id)], round=0, tokens_per_s=1.0, states=[], now=3.0)
    assert address(me) in newcomers.addresses(besides="", now=3.0), "who is new is found, too"


def test_swarm_addresses_of_every_common_form_are_known() -> None:
    me = PeerIdentity.generate().peer_id
    for name in ("ip4/127.0.0.1", "ip6/2001:db8::1", "dns4/example.org", "dns/a-b.example.org"):
        assert check_swarm_address(address(me, name)) == me
    relay = PeerIdentity.generate().peer_id
    assert check_swarm_address(f"/ip4/203.0.113.7/udp/4001/quic-v1/p2p/{relay}/p2p-circuit/p2p/{me}") == me


@settings(max_examples=200)
@given(text=st.text(max_size=300))
def test_no_other_text_is_a_swarm_address(text: str) -> None:
    with pytest.raises(FormatError):
        check_swarm_address(text)


def test_status_from_outside_is_bounded_and_checked() -> None:
    for data in (b"{}", b"[]", b"null", b'{"name":1}', b"x" * (9 << 20)):
        with pytest.raises(FormatError):
            RunStatus.from_bytes(data)
