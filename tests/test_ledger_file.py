"""A stranger's audit of a whole ledger: what is granted when, and every way to cheat with it by its entry's number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coordinator import ledger_export
from coordinator.ledger_export import ledger_lines
from peer.link.client import CoordinatorClient
from peer.link.fetching import fetch_ledger
from protocol import canonical, checkpoint, tlog_proof
from protocol.checkpoint import read_info
from protocol.errors import NetworkError, PotluckError
from protocol.keys import public_pem
from protocol.ledger_entry import BanEntry, ClaimEntry, CreditEntry, Entry, RoundEntry, UnbanEntry
from protocol.ledger_file import read_ledger
from protocol.receipt import check_receipt, make_receipt
from protocol.report import Answer
from protocol.run_card import MAX_RUN_CARD_BYTES
from protocol.verify import verify_path
from protocol.verify_ledger import LedgerAudit
from tests.kit.coordinator import Office, Site, site_of, write_run

HOLD = 3
DIGEST = "ab" * 32


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path, hold=HOLD)
    yield office
    office.close()


def commit(office: Office, rounds: int) -> list[bytes]:
    """More rounds; returns their agreements."""
    made = [office.swarm.round(seed=office.swarm.state.round) for _ in range(rounds)]
    assert all(office.submit(agreement).accepted for agreement in made)
    return [agreement.to_bytes() for agreement in made]


def rule(office: Office, entry: type[BanEntry] | type[UnbanEntry], peer: str) -> None:
    said = entry(run=office.card.run, round=office.swarm.state.round, peer_id=peer, reason="noise")
    with office.ledger.writing() as write:
        if isinstance(said, BanEntry):
            write.ban(said)
        else:
            write.unban(said)


def write_ledger(office: Office, path: Path) -> Path:
    card = canonical.loads(office.card.sign(office.root).to_bytes(), max_bytes=MAX_RUN_CARD_BYTES)
    with office.store.reading() as tables:
        path.write_bytes(b"".join(ledger_lines(tables, card, public_pem(office.root.public_key).decode())))
    return path


def audited(office: Office, rounds: Path | None = None) -> LedgerAudit:
    path = write_ledger(office, office.folder / "ledger.jsonl")
    return LedgerAudit(path, rounds).audit({office.root.keyid})


def refusal(office: Office, rounds: Path | None = None) -> str:
    report = audited(office, rounds).report
    assert report.answer is Answer.REFUSED
    return report.refusals[0].detail


def write_rounds(folder: Path, agreements: list[bytes]) -> Path:
    rounds = folder / "rounds"
    rounds.mkdir(exist_ok=True)
    for number, data in enumerate(agreements, 1):
        (rounds / checkpoint.round_name(number)).write_bytes(data)
    return rounds


# ---- granting --------------------------------------------------------------------------------------------------------


def test_credit_comes_after_the_hold_and_each_once(office: Office) -> None:
    commit(office, HOLD)
    assert office.credits() == []
    commit(office, 2)
    assert office.credits() == office.expected_credits([1, 2])
    office.reopen()
    commit(office, 1)
    assert office.credits() == office.expected_credits([1, 2, 3])
    book = audited(office).book
    assert book is not None
    assert {account.rounds for account in book.accounts.values()} == {3}
    assert {account.pending for account in book.accounts.values()} == {300, 303, 306}


def test_the_last_round_ends_the_hold(tmp_path: Path) -> None:
    office = Office(tmp_path, rounds=4, hold=HOLD)
    commit(office, 4)
    assert office.credits() == office.expected_credits([1, 2, 3, 4])
    assert audited(office).report.ok
    office.close()


def test_a_ban_voids_what_is_on_hold_and_an_unban_brings_nothing_back(office: Office) -> None:
    commit(office, HOLD + 1)
    cheat = office.swarm.members[1].peer_id
    rule(office, BanEntry, cheat)
    office.reopen()
    commit(office, HOLD + 1)
    rule(office, UnbanEntry, cheat)
    commit(office, HOLD + 1)
    rounds_of = {peer: [round for round, by in office.credits() if by == peer] for _, peer in office.credits()}
    newest = office.swarm.state.round
    assert rounds_of.pop(cheat) == [1, newest - HOLD]
    assert all(rounds == list(range(1, newest - HOLD + 1)) for rounds in rounds_of.values())
    audit = audited(office)
    assert audit.report.ok and audit.book is not None
    assert audit.book.accounts[cheat].void == 101 * HOLD and not audit.book.accounts[cheat].banned


@pytest.mark.parametrize("hold", [0, HOLD])
def test_the_work_of_each_round_is_held_against_what_its_members_signed(tmp_path: Path, hold: int) -> None:
    office = Office(tmp_path, hold=hold)
    agreements = commit(office, 3)
    rule(office, BanEntry, office.swarm.members[0].peer_id)
    agreements += commit(office, 2)
    report = audited(office, write_rounds(tmp_path, agreements)).report
    assert report.ok and "5 rounds" in next(check.detail for check in report.checks if check.name == "rounds")
    (tmp_path / "rounds" / checkpoint.round_name(4)).unlink()
    assert audited(office, tmp_path / "rounds").report.answer is Answer.INCOMPLETE
    office.close()


# ---- a host that cheats, with its ledger's own key -------------------------------------------------------------------

STRANGER = "12D3KooWQvF9JmFAP8hNnVDPcS7yQBSdPyRiNnZAHdZBqQJ4yGsV"


def credit(office: Office, **other: object) -> CreditEntry:
    said = {"run": office.card.run, "round": 5, "peer_id": STRANGER, "tokens": 10**15, "flops": 1, "claim": DIGEST}
    return CreditEntry.model_validate({**said, "state": office.swarm.state.digest, **other})


CHEATS: list[tuple[str, Callable[[Office], Entry], str]] = [
    ("no claim", lambda office: credit(office), "that no pending claim is for"),
    (
        "claim of a stranger",
        lambda office: ClaimEntry(**credit(office).model_dump(exclude={"type"})),
        "was not agreed|were not agreed",
    ),
    ("twice", lambda office: _of(office, CreditEntry), "that no pending claim is for"),
    ("too early", lambda office: CreditEntry.of(_of(office, ClaimEntry, last=True)), "before its hold is over"),
    ("another run", lambda office: credit(office, run="cd" * 32), "of run cdcd"),
    (
        "a round from nowhere",
        lambda office: RoundEntry(run=office.card.run, round=6, base=DIGEST, state=DIGEST, agreement=DIGEST),
        "another state than the one before",
    ),
    (
        "a round too many",
        lambda office: RoundEntry(
            run=office.card.run, round=7, base=office.swarm.state.digest, state=DIGEST, agreement=DIGEST
        ),
        "round 7 after round 5",
    ),
    (
        "unban of nobody",
        lambda office: UnbanEntry(run=office.card.run, round=5, peer_id=STRANGER, reason=""),
        "was not banned",
    ),
]


def _of(office: Office, kind: type[Entry], last: bool = False) -> Entry:
    found: list[Entry] = []
    read_ledger(
        write_ledger(office, office.folder / "now.jsonl"),
        each=lambda _, entry: found.append(entry) if isinstance(entry, kind) else None,
    )
    return found[-1 if last else 0]


@pytest.mark.parametrize(("entry", "why"), [case[1:] for case in CHEATS], ids=[case[0] for case in CHEATS])
def test_what_a_host_adds_is_refused_by_its_number(
    office: Office, entry: Callable[[Office], Entry], why: str, tmp_path: Path
) -> None:
    rounds = write_rounds(tmp_path, commit(office, 5))
    assert audited(office, rounds).report.ok
    number = office.ledger.size
    with office.ledger.writing() as write:
        write.leaf(entry(office))
    said = refusal(office, rounds)
    assert any(part in said for part in why.split("|")), said
    assert f"entry {number}" in said or "round 5" in said


def test_credit_that_is_kept_back_and_work_that_is_left_out_are_found(office: Office, tmp_path: Path) -> None:
    agreements = commit(office, 2)
    third = office.swarm.round(seed=3)
    with office.ledger.writing() as write:  # the round, without the work of anybody
        write.leaf(RoundEntry(run=office.card.run, round=3, base=third.base, state=third.state, agreement=DIGEST))
    assert audited(office).report.ok, "the ledger alone does not show it"
    assert "was agreed and is left out" in refusal(office, write_rounds(tmp_path, [*agreements, third.to_bytes()]))
    fourth = office.swarm.round(seed=4)
    with office.ledger.writing() as write:
        write.leaf(RoundEntry(run=office.card.run, round=4, base=fourth.base, state=fourth.state, agreement=DIGEST))
    assert "is due and is kept back" in refusal(office)


# ---- a file that was changed on the way ------------------------------------------------------------------------------


def lines_of(office: Office) -> list[bytes]:
    return write_ledger(office, office.folder / "whole.jsonl").read_bytes().splitlines(keepends=True)


CHANGES: list[tuple[str, Callable[[list[bytes]], list[bytes]], str]] = [
    ("cut", lambda lines: lines[:-2], "stand after the last signed head"),
    ("cut in a line", lambda lines: [*lines[:-1], lines[-1][:-9]], "cut short"),
    ("an entry less", lambda lines: [*lines[:5], *lines[6:]], "is of 5 entries, and 4 stand before it"),
    ("an entry twice", lambda lines: [*lines[:6], *lines[5:]], "worked in it twice"),
    ("swapped", lambda lines: [*lines[:5], lines[6], lines[5], *lines[7:]], "entries 1 to 4 are not those"),
    ("edited", lambda lines: [line.replace(b'"tokens":100,', b'"tokens":900,') for line in lines], "entries 1 to 4"),
    ("nothing", lambda lines: [], "not a ledger"),
    ("no entries", lambda lines: lines[:1], "after the last signed head"),
    ("not JSON", lambda lines: [*lines[:5], b"{\n", *lines[5:]], "entry 3"),
    ("a long line", lambda lines: [*lines[:5], b"{" * 10**6 + b"\n"], "too long"),
    ("a head of another key", lambda lines: [*lines[:-1], lines[-1].replace(b"potluck/", b"pothole/")], "the head"),
]


@pytest.mark.parametrize(("change", "why"), [case[1:] for case in CHANGES], ids=[case[0] for case in CHANGES])
def test_a_file_that_was_changed_is_refused(
    office: Office, change: Callable[[list[bytes]], list[bytes]], why: str
) -> None:
    commit(office, 3)
    path = office.folder / "changed.jsonl"
    path.write_bytes(b"".join(change(lines_of(office))))
    audit = LedgerAudit(path).audit({office.root.keyid})
    assert audit.report.answer is Answer.REFUSED and why in audit.report.refusals[0].detail
    with pytest.raises(PotluckError):
        read_ledger(path)


def test_two_histories_under_one_key_are_found(office: Office, tmp_path: Path) -> None:
    commit(office, 1)
    office.close()
    before = (office.folder / "ledger.db").read_bytes(), office.swarm.state, office.swarm.last
    office.open()
    commit(office, 2)
    shown = office.ledger.head_note.encode()
    old = audited(office)
    office.close()
    (office.folder / "ledger.db").write_bytes(before[0])
    for name in ("ledger.db-wal", "ledger.db-shm"):
        (office.folder / name).unlink(missing_ok=True)
    office.swarm.state, office.swarm.last = before[1:]
    office.open()
    rule(office, BanEntry, STRANGER)
    path = write_ledger(office, tmp_path / "other.jsonl")
    report = LedgerAudit(path).audit({office.root.keyid}, [("shown.note", shown)]).report
    assert "cut short, or old" in report.refusals[0].detail
    commit(office, 2)
    path = write_ledger(office, tmp_path / "other.jsonl")
    report = LedgerAudit(path).audit({office.root.keyid}, [("shown.note", shown)]).report
    assert report.answer is Answer.REFUSED and "shown two ways" in report.refusals[0].detail
    assert old.report.ok


# ---- what it is good for ---------------------------------------------------------------------------------------------


def test_a_receipt_comes_out_of_the_file_alone(office: Office, tmp_path: Path) -> None:
    commit(office, HOLD + 1)
    entries: list[Entry] = []
    ledger = read_ledger(write_ledger(office, tmp_path / "l.jsonl"), each=lambda _, entry: entries.append(entry))
    index = next(number for number, entry in enumerate(entries) if isinstance(entry, CreditEntry))
    receipt = make_receipt(
        run_card=ledger.run_card,
        root_public_key=ledger.root_public_key,
        entry=entries[index],
        proof=tlog_proof.make(ledger.tree, index, ledger.head, ledger.head_note),
    )
    assert check_receipt(receipt, {office.root.keyid}).entry == entries[index]


def test_who_does_not_trust_the_key_is_told(office: Office, tmp_path: Path) -> None:
    report = LedgerAudit(write_ledger(office, tmp_path / "l.jsonl")).audit(set()).report
    assert report.answer is Answer.REFUSED and "have not confirmed" in report.verdict


def test_a_member_fetches_the_ledger_as_it_was_within_the_last_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_run(tmp_path / "source", rounds=0, host=f"[credit]\nhold_rounds = {HOLD}")
    with site_of(config, tmp_path / "run") as site:
        out, public = tmp_path / "ledger.jsonl", site.folder / "public"
        rounds = write_rounds(tmp_path, [commit_at(site, seed) for seed in range(HOLD + 1)])
        fetch_ledger(site.host.invite, out, tmp_path / "home")
        audit = LedgerAudit(out, rounds).audit({site.host.invite.root})
        assert audit.report.ok and audit.book is not None and audit.book.newest.round == HOLD + 1
        before = out.read_bytes()
        commit_at(site, 9)
        fetch_ledger(site.host.invite, out, tmp_path / "home")
        assert out.read_bytes() == before
        monkeypatch.setattr(ledger_export, "COPY_S", 0.0)
        for _ in range(3):
            fetch_ledger(site.host.invite, out, tmp_path / "home")
        assert LedgerAudit(out).audit({site.host.invite.root}).report.facts["round"] == HOLD + 2
        assert len(list(public.iterdir())) == 2, "the newest, and the one before it"
        kept = out.read_bytes()
        commit_at(site, 11)
        monkeypatch.setattr(CoordinatorClient, "fetch_file", _breaks_off)
        with pytest.raises(NetworkError):
            fetch_ledger(site.host.invite, out, tmp_path / "home")
        assert out.read_bytes() == kept, "what was there stays until another is whole"


def test_a_checkpoint_names_what_is_credit_and_not_what_is_on_hold(tmp_path: Path) -> None:
    config = write_run(tmp_path / "source", rounds=0, every=2, host="[credit]\nhold_rounds = 1")
    with site_of(config, tmp_path / "run") as site:
        for seed in (1, 2):
            site.commit(seed)
        assert site.deliver(2).published
        step = site.folder / "checkpoints" / "step-000002"
        report = verify_path(step, trusted={site.host.invite.root})
        assert report.ok, report.to_text()
        assert {item.rounds for item in read_info(step).contributors} == {1}
        pending = {peer.peer_id: peer.pending_tokens for peer in site.host.status().peers}
        assert sorted(pending.values()) == [100, 101, 102]


def _breaks_off(*_: object) -> None:
    raise NetworkError("the line is cut")


def commit_at(site: Site, seed: int) -> bytes:
    site.commit(seed)
    agreement = site.client.agreement(site.swarm.members[0].certificate)
    assert agreement is not None
    return agreement.to_bytes()
