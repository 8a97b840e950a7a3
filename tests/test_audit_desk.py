"""The host's side of an audit, without a network: who is asked, what is taken, what a verdict does, and to whom."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from coordinator.auditor import Auditor
from coordinator.audits import MOST_WAITING, AuditDesk
from coordinator.bans import Bans
from coordinator.ledger_export import ledger_lines
from peer.training.replay import BrokenOff
from peer.training.reveal import as_sent
from protocol import canonical
from protocol.errors import FormatError, InputError, VerificationError
from protocol.keys import public_pem
from protocol.ledger_entry import AuditEntry, parse_entry
from protocol.report import Answer
from protocol.run_card import MAX_RUN_CARD_BYTES
from protocol.run_spec import Audit
from protocol.verify_ledger import LedgerAudit
from tests.kit.coordinator import Member, Office

HOLD = 2
REVEAL_ROUNDS = 3
Distances = Callable[[Any], dict[str, float]]


class Audits:
    """An office with a desk and an auditor whose replays come to what a test says."""

    def __init__(self, folder: Path, **options: Any) -> None:
        audit = Audit(share=1e-9, first_rounds=3, reveal_rounds=REVEAL_ROUNDS)
        self.office = Office(folder, hold=HOLD, audit=audit, **options)
        self.distances: Distances = lambda revealed: {"update": 0.001}
        with self.office.store.writing() as tables:
            for member in self.office.swarm.members:
                tables.members.renew(member.peer_id, 1.0)
        self.open()

    def open(self) -> None:
        office = self.office
        self.desk = AuditDesk(office.ledger, office.card, office.folder / "reveals", show_s=0.0)
        self.bans = Bans(office.ledger, office.membership_key, office.card.run)
        nowhere = office.folder / "nowhere"
        evaluator: Any = SimpleNamespace(
            replay=self._replay, genesis_model=nowhere / "model", base_model=None, data=nowhere, let_go=lambda: None
        )
        self.auditor = Auditor(office.ledger, self.desk, self.bans, evaluator)

    def _replay(self, revealed: Any, is_over: Callable[[], bool] = lambda: False) -> dict[str, float]:
        return self.distances(revealed)

    def restart(self) -> None:
        self.office.reopen()
        self.open()

    def rounds(self, count: int = 1) -> None:
        for _ in range(count):
            assert self.office.submit(self.office.swarm.round()).accepted

    def show(self, member: Member) -> list[bool]:
        """It is asked, and shows all that it is asked for."""
        taken = []
        for claim in self.desk.ask(member.peer_id).claims:
            sent = as_sent(self.office.swarm.shown[claim])
            taken.append(self.desk.receive(member.peer_id, claim, sent.head, map(bytes, sent.pieces)))
        return taken

    def replay_all(self) -> None:
        while self.auditor.step():
            pass

    def verdicts(self) -> list[tuple[int, int, str]]:
        """(round, index of its member, verdict), in the ledger's order."""
        index = {member.peer_id: number for number, member in enumerate(self.office.swarm.members)}
        entries = map(parse_entry, map(self.office.ledger.entry, range(self.office.ledger.size)))
        return [
            (entry.round, index[entry.peer_id], entry.verdict) for entry in entries if isinstance(entry, AuditEntry)
        ]

    def check(self) -> None:
        """A stranger's audit of the ledger holds."""
        office = self.office
        card = canonical.loads(office.card.sign(office.root).to_bytes(), max_bytes=MAX_RUN_CARD_BYTES)
        path = office.folder / "ledger.jsonl"
        with office.store.reading() as tables:
            path.write_bytes(b"".join(ledger_lines(tables, card, public_pem(office.root.public_key).decode())))
        report = LedgerAudit(path).audit({office.root.keyid}).report
        assert report.answer is Answer.VERIFIED, report.to_text()


@pytest.fixture
def audits(tmp_path: Path) -> Iterator[Audits]:
    made = Audits(tmp_path)
    yield made
    made.office.close()


def test_a_claim_is_asked_for_when_the_next_round_is_there_and_is_credit_after_its_replay(audits: Audits) -> None:
    alice, bob, _ = audits.office.swarm.members
    audits.rounds()
    assert audits.desk.ask(alice.peer_id) == (0, ())
    audits.rounds()
    until, wanted = audits.desk.ask(alice.peer_id)
    assert until == 1 and len(wanted) == 1
    audits.rounds(3)
    assert audits.office.credits() == [], "nothing of what is drawn, and nothing that comes after it"
    assert audits.show(alice) == [True] * 3 and audits.desk.ask(alice.peer_id).claims == ()
    audits.replay_all()
    assert audits.verdicts() == [(round, 0, "pass") for round in (1, 2, 3)]
    assert audits.office.credits() == [(round, alice.peer_id) for round in (1, 2, 3)]
    audits.check()
    audits.restart()
    assert len(audits.desk.ask(bob.peer_id).claims) == 3, "who is asked is not forgotten over a restart"
    audits.check()


def test_who_is_found_out_is_banned_in_the_same_breath_and_all_it_has_on_hold_is_void(audits: Audits) -> None:
    alice, bob, carol = audits.office.swarm.members
    audits.distances = lambda revealed: {"update": 0.5 if revealed.by == bob.peer_id else 0.001}
    audits.rounds(2)
    size = audits.office.ledger.size
    for member in (alice, bob, carol):
        audits.show(member)
    audits.replay_all()
    assert (1, 1, "fail") in audits.verdicts() and audits.bans.why(bob.peer_id) is not None
    assert "5.0 times as far away as it may be" in str(audits.bans.why(bob.peer_id))
    entries = [parse_entry(audits.office.ledger.entry(index)) for index in range(size, audits.office.ledger.size)]
    fail = next(index for index, entry in enumerate(entries) if getattr(entry, "verdict", "") == "fail")
    assert entries[fail + 1].type == "ban"
    with audits.office.store.reading() as tables:
        heads = {int(note.splitlines()[1]) for note in tables.log.heads()}
    assert size + fail + 1 not in heads, "no head was signed between the two"
    audits.rounds(4)
    assert not [peer for _, peer in audits.office.credits() if peer == bob.peer_id]
    audits.check()


def test_who_shows_nothing_loses_that_claim_earns_nothing_meanwhile_and_is_banned_the_third_time(
    audits: Audits,
) -> None:
    alice, bob, carol = audits.office.swarm.members
    for _ in range(REVEAL_ROUNDS + 5):
        audits.rounds()
        for member in (alice, carol):
            audits.show(member)
        audits.desk.ask(bob.peer_id)
        audits.replay_all()
        assert not [peer for _, peer in audits.office.credits() if peer == bob.peer_id]
    assert [verdict for verdict in audits.verdicts() if verdict[1] == 1] == [(n, 1, "silent") for n in (1, 2, 3)]
    assert audits.bans.why(bob.peer_id) == "round 3: it has not shown the work that it claimed"
    assert audits.bans.why(alice.peer_id) is audits.bans.why(carol.peer_id) is None
    audits.check()


def test_nobody_is_silent_who_was_not_asked(audits: Audits) -> None:
    audits.rounds(REVEAL_ROUNDS + 5)
    audits.replay_all()
    assert audits.verdicts() == []
    audits.check()


def test_where_the_host_has_no_room_the_claim_is_excused(audits: Audits) -> None:
    alice = audits.office.swarm.members[0]
    audits.rounds(2)
    for number in range(MOST_WAITING):
        (audits.desk.folder / f"{number}.part").mkdir(parents=True)
    assert audits.show(alice) == [False]
    audits.rounds(REVEAL_ROUNDS)
    audits.replay_all()
    assert audits.verdicts() == [(1, 0, "excused")]
    audits.check()


@pytest.mark.parametrize(("more", "verdict"), [(0, "excused"), (1000, "silent")], ids=["as large as others", "huge"])
def test_a_replay_that_takes_too_long_is_given_up(tmp_path: Path, more: int, verdict: str) -> None:
    audits = Audits(tmp_path)
    swarm = audits.office.swarm

    def too_long(revealed: Any) -> dict[str, float]:
        raise BrokenOff("too long")

    audits.distances = too_long
    bob = swarm.members[1]
    state = swarm.next_state(0)
    agreement = swarm.agree(state.digest, swarm.members, tokens={bob.peer_id: 100 + more})
    assert audits.office.submit(agreement).accepted
    swarm.go_on(agreement, state)
    audits.rounds()
    assert audits.show(bob) == [True]
    audits.rounds(REVEAL_ROUNDS)
    audits.replay_all()
    assert audits.verdicts() == [(1, 1, verdict)]
    audits.check()
    audits.office.close()


def test_a_device_that_cannot_replay_says_nothing_of_the_claim(audits: Audits) -> None:
    def no_memory(revealed: Any) -> dict[str, float]:
        raise InputError("its memory is not enough")

    audits.distances = no_memory
    audits.rounds(2)
    audits.show(audits.office.swarm.members[0])
    with pytest.raises(InputError):
        audits.auditor.step()
    audits.distances = lambda revealed: {"update": 0.001}
    audits.replay_all()
    assert audits.verdicts() == [(1, 0, "pass")], "it is tried again"


def test_only_what_was_asked_for_is_taken_and_only_whole(audits: Audits) -> None:
    alice, bob, _ = audits.office.swarm.members
    audits.rounds(2)
    (mine,), (others,) = audits.desk.ask(alice.peer_id).claims, audits.desk.ask(bob.peer_id).claims
    sent = as_sent(audits.office.swarm.shown[mine])
    data = b"".join(map(bytes, sent.pieces))

    def receive(claim: str = mine, head: bytes = sent.head, pieces: bytes = data) -> bool:
        return audits.desk.receive(alice.peer_id, claim, head, [pieces])

    assert not receive(claim=others) and not receive(claim="0" * 64) and not receive(claim="../" + mine)
    for pieces, said in ((data[:-1], "shorter"), (data + b"x", "longer")):
        with pytest.raises(FormatError, match=said):
            receive(pieces=pieces)
    with pytest.raises(VerificationError, match="not what the claim names"):
        receive(head=as_sent(audits.office.swarm.shown[others]).head)
    with pytest.raises(FormatError):
        receive(head=b"{}")
    assert not audits.desk.has(mine) and list(audits.desk.folder.iterdir()) == []
    spoilt = bytes([data[0] ^ 1]) + data[1:]
    assert receive(pieces=spoilt), "its bytes are looked at before they are replayed"
    audits.replay_all()
    assert audits.verdicts() == [] and mine in audits.desk.ask(alice.peer_id).claims, "it is asked for again"
    assert receive()
    audits.replay_all()
    assert audits.verdicts() == [(1, 0, "pass")]


def test_what_a_banned_member_has_shown_is_thrown_away(audits: Audits) -> None:
    alice = audits.office.swarm.members[0]
    audits.rounds(2)
    audits.show(alice)
    audits.bans.ban(alice.peer_id, "noise")
    audits.replay_all()
    assert audits.verdicts() == [] and list(audits.desk.folder.iterdir()) == []
    audits.check()
