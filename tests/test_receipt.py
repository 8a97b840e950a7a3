"""Receipts: checked offline, by whoever trusts the run's root key."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from protocol.errors import FormatError, VerificationError
from protocol.ledger_entry import CheckpointEntry, CreditEntry, RunEntry, entry_from_json, parse_entry
from protocol.receipt import Receipt, check_receipt
from protocol.verify import verify_receipt
from tests.kit.builders import Run, build_run, fixed_root_key


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return build_run(tmp_path_factory.mktemp("run"), rounds=2)


def test_a_receipt_for_every_entry_holds(run: Run) -> None:
    kinds = []
    for index, entry in enumerate(run.entries):
        checked = check_receipt(run.receipt(index), run.trusted)
        assert checked.entry == entry
        assert checked.head == run.head()
        assert checked.fingerprint == run.root.keyid
        kinds.append(type(entry))
    assert set(kinds) == {RunEntry, CreditEntry, CheckpointEntry}


def test_a_credit_receipt_says_who_did_how_much(run: Run) -> None:
    entry = check_receipt(run.receipt(2), run.trusted).entry
    assert isinstance(entry, CreditEntry)
    claimed = run.agreements[1].claims[0]
    assert (entry.peer_id, entry.round, entry.tokens, entry.claim) == (run.peers[0].peer_id, 1, 1024, claimed.digest)


def test_a_receipt_stays_good_while_the_ledger_grows(run: Run, tmp_path: Path) -> None:
    old = run.receipt(2)
    later = run.copy(tmp_path)
    later.append(run.entries[2])
    assert check_receipt(old, run.trusted).head.size < later.tree.size
    assert check_receipt(later.receipt(2), run.trusted).entry == run.entries[2]


def test_a_receipt_reads_back_as_it_was_written(run: Run) -> None:
    assert Receipt.from_bytes(run.receipt(2)).to_bytes() == run.receipt(2)


def test_without_a_confirmed_key_a_receipt_is_only_intact(run: Run) -> None:
    for trusted in (set(), {fixed_root_key(9).keyid}):
        with pytest.raises(VerificationError, match=r"intact, but signed by a key that you have not confirmed"):
            check_receipt(run.receipt(2), trusted)


def test_the_report_tells_a_person_what_was_checked(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "receipt.json"
    path.write_bytes(run.receipt(2))
    report = verify_receipt(path, run.trusted)
    assert report.ok
    assert f"credit of 1024 tokens to {run.peers[0].peer_id} for round 1" in report.to_text()
    assert report.to_json()["facts"]["tokens"] == 1024
    assert not verify_receipt(path, set()).ok


def test_an_entry_in_another_form_is_refused(run: Run) -> None:
    data = run.entries[2].to_bytes()
    assert parse_entry(data) == run.entries[2]
    with pytest.raises(FormatError, match="canonical form"):
        parse_entry(data.replace(b'{"', b'{ "', 1))
    with pytest.raises(FormatError, match="at most"):
        parse_entry(data + b" " * 3000)


@pytest.mark.parametrize(
    "changes",
    [{"tokens": -1}, {"tokens": 2**53}, {"peer_id": "me"}, {"round": 0}, {"claim": "x"}, {"type": "checkpoint"}],
)
def test_an_entry_out_of_bounds_is_refused(run: Run, changes: dict) -> None:
    with pytest.raises(FormatError, match="ledger entry"):
        entry_from_json(run.entries[2].to_json() | changes)


def test_a_receipt_under_the_card_of_another_run_with_the_same_keys_is_refused(run: Run, tmp_path: Path) -> None:
    other = build_run(tmp_path, rounds=0, name="other")
    mixed = dataclasses.replace(Receipt.from_bytes(run.receipt(2)), run_card=other.card_envelope)
    with pytest.raises(VerificationError, match="the entry is of run"):
        check_receipt(mixed.to_bytes(), run.trusted)
