"""Admission: who holds a key and the code becomes a member, and nobody else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator import admission as admission_module
from coordinator.admission import Admission, Challenges, CodeGuard, Policy
from protocol import certificate
from protocol.errors import FormatError, NetworkError, RefusedError, SignatureError
from protocol.keys import PeerIdentity
from protocol.rpc import enroll_message
from tests.kit.coordinator import Office

NOW = 1_000_000.0


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path)
    yield office
    office.close()


@pytest.fixture
def admission(office: Office) -> Admission:
    return Admission(office.ledger, office.membership_key, office.card.run, "wood", lifetime_s=3600)


@pytest.fixture
def me() -> PeerIdentity:
    return PeerIdentity.generate()


def enroll(
    admission: Admission,
    office: Office,
    who: PeerIdentity,
    code: str = "wood",
    now: float = NOW,
    address: str = "203.0.113.7",
) -> str:
    challenge = admission.challenge(who.peer_id, now)
    signature = who.sign(enroll_message(office.card.run, challenge))
    return admission.enroll(who.peer_id, challenge, signature, code, address, now)


def test_holder_of_key_and_code_gets_a_certificate(admission: Admission, office: Office, me: PeerIdentity) -> None:
    token = enroll(admission, office, me, now=time.time())
    assert certificate.check(token, office.card.member_key, run=office.card.run).peer_id == me.peer_id


def test_member_renews_after_a_restart_without_the_code(admission: Admission, office: Office, me: PeerIdentity) -> None:
    enroll(admission, office, me)
    office.reopen()
    again = Admission(office.ledger, office.membership_key, office.card.run, "another", lifetime_s=3600)
    assert enroll(again, office, me, code="")


def test_wrong_code_is_refused(admission: Admission, office: Office, me: PeerIdentity) -> None:
    with pytest.raises(RefusedError, match="admission code is wrong"):
        enroll(admission, office, me, code="stone")


def test_wrong_codes_make_the_sender_wait_longer_and_longer(
    admission: Admission, office: Office, me: PeerIdentity
) -> None:
    now = NOW
    for wait_s in (1, 2, 4, 8, 16, 32, 64, 64):
        with pytest.raises(RefusedError, match="wrong or missing"):
            enroll(admission, office, me, code="stone", now=now)
        with pytest.raises(RefusedError, match="too many wrong"):
            enroll(admission, office, me, now=now + wait_s - 0.1)
        now += wait_s
    assert enroll(admission, office, me, now=now)


def test_guesser_does_not_slow_others_down() -> None:
    guard = CodeGuard("wood")
    with pytest.raises(RefusedError):
        guard.check("stone", "203.0.113.1", NOW)
    guard.check("wood", "203.0.113.2", NOW)


def test_replayed_challenge_is_refused(admission: Admission, office: Office, me: PeerIdentity) -> None:
    challenge = admission.challenge(me.peer_id, NOW)
    signature = me.sign(enroll_message(office.card.run, challenge))
    admission.enroll(me.peer_id, challenge, signature, "wood", "203.0.113.7", NOW)
    with pytest.raises(RefusedError, match="used before"):
        admission.enroll(me.peer_id, challenge, signature, "wood", "203.0.113.7", NOW)


def test_challenge_for_another_peer_is_refused(admission: Admission, office: Office, me: PeerIdentity) -> None:
    challenge = admission.challenge(PeerIdentity.generate().peer_id, NOW)
    signature = me.sign(enroll_message(office.card.run, challenge))
    with pytest.raises(RefusedError, match="not given to this peer"):
        admission.enroll(me.peer_id, challenge, signature, "wood", "203.0.113.7", NOW)


def test_old_challenge_is_refused(admission: Admission, office: Office, me: PeerIdentity) -> None:
    challenge = admission.challenge(me.peer_id, NOW)
    signature = me.sign(enroll_message(office.card.run, challenge))
    with pytest.raises(RefusedError, match="older than 60 s"):
        admission.enroll(me.peer_id, challenge, signature, "wood", "203.0.113.7", NOW + 61)


def test_challenge_with_a_later_deadline_is_refused(me: PeerIdentity) -> None:
    challenges = Challenges()
    challenge = bytearray(challenges.issue(me.peer_id, NOW))
    challenge[16 + 7] ^= 0x40
    with pytest.raises(RefusedError, match="not given to this peer"):
        challenges.check(bytes(challenge), me.peer_id, NOW)


def test_signature_by_another_key_is_refused(admission: Admission, office: Office, me: PeerIdentity) -> None:
    challenge = admission.challenge(me.peer_id, NOW)
    signature = PeerIdentity.generate().sign(enroll_message(office.card.run, challenge))
    with pytest.raises(SignatureError):
        admission.enroll(me.peer_id, challenge, signature, "wood", "203.0.113.7", NOW)


def test_signature_for_another_run_is_refused(admission: Admission, office: Office, me: PeerIdentity) -> None:
    challenge = admission.challenge(me.peer_id, NOW)
    with pytest.raises(SignatureError):
        signature = me.sign(enroll_message("0" * 64, challenge))
        admission.enroll(me.peer_id, challenge, signature, "wood", "203.0.113.7", NOW)


def test_odd_peer_ids_and_challenges_are_refused(admission: Admission) -> None:
    for peer_id in ("", "x", "12D3KooW" * 20, "Qm" + "1" * 44):
        with pytest.raises(FormatError):
            admission.challenge(peer_id, NOW)
    with pytest.raises(FormatError):
        admission.enroll(PeerIdentity.generate().peer_id, b"short", b"", "wood", "203.0.113.7", NOW)


def test_spent_challenges_are_forgotten_after_their_deadline(monkeypatch: pytest.MonkeyPatch, me: PeerIdentity) -> None:
    monkeypatch.setattr(admission_module, "MAX_USED", 2)
    challenges = Challenges()
    for _ in range(2):
        challenges.use(challenges.issue(me.peer_id, NOW), NOW)
    with pytest.raises(NetworkError):
        challenges.use(challenges.issue(me.peer_id, NOW), NOW)
    challenges.use(challenges.issue(me.peer_id, NOW + 61), NOW + 61)


def test_without_a_code_everyone_with_the_invite_is_admitted(office: Office, me: PeerIdentity) -> None:
    admission = Admission(office.ledger, office.membership_key, office.card.run, None, lifetime_s=60)
    assert enroll(admission, office, me, code="")


def test_no_code_at_all_makes_nobody_wait(admission: Admission, office: Office, me: PeerIdentity) -> None:
    """A stranger without an invite must not shut out a member's household."""
    for _ in range(3):
        with pytest.raises(RefusedError, match="by invite"):
            enroll(admission, office, PeerIdentity.generate(), code="")
    assert enroll(admission, office, me)


def test_newcomers_from_one_network_come_in_slowly_and_members_renew_at_will(office: Office, me: PeerIdentity) -> None:
    admission = Admission(
        office.ledger, office.membership_key, office.card.run, "wood", lifetime_s=3600, policy=Policy(per_minute=3)
    )
    enroll(admission, office, me)
    for _ in range(5):
        enroll(admission, office, PeerIdentity.generate())
    with pytest.raises(NetworkError, match="too many new members from your network at once: wait 20 s"):
        enroll(admission, office, PeerIdentity.generate())
    for _ in range(10):
        enroll(admission, office, me)
    assert enroll(admission, office, PeerIdentity.generate(), now=NOW + 20)
    with pytest.raises(NetworkError):
        enroll(admission, office, PeerIdentity.generate(), now=NOW + 39)
    assert enroll(admission, office, PeerIdentity.generate(), address="198.51.100.1")


def test_full_run_says_so_and_shuts_out_nobody_who_has_worked(office: Office, me: PeerIdentity) -> None:
    office.submit(office.swarm.round())
    worker, day = office.swarm.members[0].identity, 3600.0
    admission = Admission(
        office.ledger, office.membership_key, office.card.run, "wood", lifetime_s=3600, policy=Policy(max_members=2)
    )
    others = [PeerIdentity.generate() for _ in range(2)]
    for who in others:
        enroll(admission, office, who)
    with pytest.raises(RefusedError, match="this run is full: it has 2 members, and its host allows 2") as full:
        enroll(admission, office, me)
    assert "host.max_members" in full.value.hint
    assert enroll(admission, office, others[0], now=NOW + day / 2), "whoever is in renews"
    assert enroll(admission, office, worker)
    with pytest.raises(RefusedError, match="full"):
        enroll(admission, office, me, now=NOW + day)
    assert enroll(admission, office, me, now=NOW + day + 1), "a certificate that has ended leaves its place"
    with pytest.raises(RefusedError, match="full"):
        enroll(admission, office, others[1], now=NOW + day + 1)
    assert enroll(admission, office, worker, now=NOW + 3 * day)


def test_only_the_reducers_code_makes_a_trusted_reducer_and_guessing_at_it_takes_long(
    office: Office, me: PeerIdentity
) -> None:
    admission = Admission(
        office.ledger, office.membership_key, office.card.run, "wood", lifetime_s=3600, reducer_code="a friend"
    )

    def is_reducer(who: PeerIdentity, code: str, now: float) -> bool:
        token = enroll(admission, office, who, code, now)
        member = certificate.check(token, office.card.member_key, run=office.card.run, accept_expired=True)
        return member.reducer

    assert not is_reducer(me, "wood", NOW)
    assert is_reducer(PeerIdentity.generate(), "a friend", NOW), "it admits, too"
    now = NOW
    for wait_s in (1, 2, 4):
        assert not is_reducer(me, "a fiend", now), "a member that guesses stays an ordinary one"
        assert not is_reducer(me, "a friend", now + wait_s - 0.1), (
            "and is not told when it is right before it has waited"
        )
        now += wait_s
    assert is_reducer(me, "a friend", now)
    with pytest.raises(RefusedError, match="wrong or missing"):
        enroll(admission, office, PeerIdentity.generate(), "a fiend", NOW + 1000)
