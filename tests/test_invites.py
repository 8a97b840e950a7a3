"""Invites of one's own, approval, and what a ban does to the way its member came in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.admission import Admission, Policy
from coordinator.members import list_invites, list_members
from coordinator.orders import ask
from peer.link.client import CoordinatorClient
from protocol.errors import InputError, NetworkError, RefusedError
from protocol.invite import Invite
from protocol.keys import PeerIdentity
from protocol.rpc import enroll_message
from tests.kit.coordinator import Office, start_host, write_run

DAY = 86_400.0
NOW = 1_000_000.0


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path)
    yield office
    office.close()


def admission_of(office: Office, approve: bool = False, reducer_code: str | None = None) -> Admission:
    key, policy = office.membership_key, Policy(approve=approve)
    return Admission(office.ledger, key, office.card.run, "wood", 3600, reducer_code, policy=policy)


def enroll(admission: Admission, office: Office, code: str, who: PeerIdentity | None = None, now: float = NOW) -> str:
    who = who or PeerIdentity.generate()
    challenge = admission.challenge(who.peer_id, now)
    signature = who.sign(enroll_message(office.card.run, challenge))
    admission.enroll(who.peer_id, challenge, signature, code, "198.51.100.7", now)
    return who.peer_id


def test_an_invite_lets_in_so_many_until_its_end_and_members_renew_without_it(office: Office) -> None:
    admission, me = admission_of(office), PeerIdentity.generate()
    code = admission.invites.make("bob", 2, 1, NOW)
    enroll(admission, office, code, me)
    enroll(admission, office, code, me, NOW + 100)
    enroll(admission, office, code, now=NOW + 120)
    with pytest.raises(RefusedError, match="was for 2, and so many have come"):
        enroll(admission, office, code, now=NOW + 180)
    late = admission.invites.make("carol", 9, 1, NOW)
    with pytest.raises(RefusedError, match="this invite is over"):
        enroll(admission, office, late, now=NOW + DAY + 1)
    enroll(admission, office, code, me, NOW + 2 * DAY)
    enroll(admission, office, "wood", now=NOW + 2 * DAY)
    again = admission_of(office)  # as a restart makes it
    with pytest.raises(RefusedError, match="was for 2"):
        enroll(again, office, code, now=NOW + 300)
    assert [(item.note, item.uses, item.most) for item in list_invites(office.folder)] == [
        ("bob", 2, 2),
        ("carol", 0, 9),
    ]
    stored = (office.folder / "ledger.db").read_bytes() + (office.folder / "ledger.db-wal").read_bytes()
    assert code.encode() not in stored, "only its digest is kept"


def test_a_used_up_invite_is_no_guess_and_a_wrong_code_is(office: Office) -> None:
    admission = admission_of(office, reducer_code="a good friend")
    code = admission.invites.make("bob", 1, 1, NOW)
    enroll(admission, office, code)
    for _ in range(3):
        with pytest.raises(RefusedError, match="was for 1"):
            enroll(admission, office, code)
    with pytest.raises(RefusedError, match="wrong or missing"):
        enroll(admission, office, code[:-1])
    with pytest.raises(RefusedError, match="too many wrong admission codes"):
        enroll(admission, office, code[:-1])


def test_a_ban_takes_the_invite_along_and_who_came_by_it_stays(office: Office) -> None:
    admission = admission_of(office)
    code = admission.invites.make("bob", 5, 1, NOW)
    cheat, friend = PeerIdentity.generate(), PeerIdentity.generate()
    enroll(admission, office, code, cheat)
    enroll(admission, office, code, friend)
    assert admission.bans.ban(cheat.peer_id, "noise")["revoked_invite"] == "bob"
    with pytest.raises(RefusedError, match="this invite is no longer good"):
        enroll(admission, office, code)  # under another name
    with pytest.raises(RefusedError, match="has banned this peer: noise"):
        enroll(admission, office, "wood", cheat, NOW + 100)
    enroll(admission, office, code, friend, NOW + 100)
    other = enroll(admission, office, "wood")
    assert admission.bans.ban(other, "noise")["revoked_invite"] is None
    notes = {item.peer_id: item.invite for item in list_members(office.folder)}
    assert notes == {cheat.peer_id: "bob", friend.peer_id: "bob", other: None}


@pytest.mark.parametrize(
    ("note", "uses", "days"), [("", 1, 1), ("x" * 61, 1, 1), ("a", 0, 1), ("a", 10**6, 1), ("a", 1, 0), ("a", 1, 9999)]
)
def test_what_no_invite_can_be_is_said(office: Office, note: str, uses: int, days: int) -> None:
    with pytest.raises(InputError, match="an invite has a note"):
        admission_of(office).invites.make(note, uses, days)


def test_notes_are_given_once_and_only_what_is_there_is_revoked(office: Office) -> None:
    invites = admission_of(office).invites
    invites.make("bob", 1, 1)
    with pytest.raises(InputError, match="the note bob already"):
        invites.make("bob", 1, 1)
    with pytest.raises(InputError, match="no invite with the note carol"):
        invites.revoke("carol")


def test_a_newcomer_waits_for_the_hosts_yes_unless_it_has_an_invite_of_its_own(office: Office) -> None:
    admission, me = admission_of(office, approve=True, reducer_code="a good friend"), PeerIdentity.generate()
    for _ in range(2):
        with pytest.raises(NetworkError, match=f"send it this peer's id, {me.peer_id}"):
            enroll(admission, office, "wood", me)
    assert [(item.peer_id, item.is_member) for item in list_members(office.folder)] == [(me.peer_id, False)]
    with pytest.raises(RefusedError, match="wrong or missing"):
        enroll(admission, office, "good", now=NOW + 10)
    with pytest.raises(InputError, match="0 newcomers"):
        admission.approve("nobody")
    assert admission.approve(me.peer_id[-8:]) == {"peer_id": me.peer_id}
    enroll(admission, office, "wood", me, NOW + 100)
    early = PeerIdentity.generate()
    admission.approve(early.peer_id)
    enroll(admission, office, "wood", early, NOW + 100)
    enroll(admission, office, admission.invites.make("bob", 1, 1, NOW), now=NOW + 100)
    enroll(admission, office, "a good friend", now=NOW + 100)
    assert len(list_members(office.folder)) == 4 and all(item.is_member for item in list_members(office.folder))


def test_the_owner_of_a_running_host_gives_an_invite_that_works(tmp_path: Path) -> None:
    host = start_host(write_run(tmp_path / "source"), tmp_path / "run")
    try:
        given = Invite.parse(ask(host.folder, "invite", note="bob", uses=1, days=7)["invite"])
        assert given.code != host.invite.code and given.run == host.invite.run
        with CoordinatorClient(given) as client:
            client.get_run()
            assert client.enroll(PeerIdentity.generate()).certificate
            with pytest.raises(RefusedError, match="was for 1"):
                client.enroll(PeerIdentity.generate())
        ask(host.folder, "revoke", note="bob")
        assert list_invites(host.folder)[0].revoked
    finally:
        host.stop()


def test_an_open_run_gives_no_invites(tmp_path: Path) -> None:
    host = start_host(write_run(tmp_path / "source", code=None, host="open = true"), tmp_path / "run")
    try:
        with pytest.raises(RefusedError, match="this run is open"):
            ask(host.folder, "invite", note="bob", uses=1, days=7)
    finally:
        host.stop()
