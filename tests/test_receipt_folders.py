"""`potluck verify` of a folder of receipts: summed up, each credit once, and one bad receipt is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol import merkle
from protocol.errors import InputError
from protocol.ledger_entry import CreditEntry
from protocol.report import Answer
from protocol.verify import verify_path
from tests.kit.builders import Run, build_run, fixed_root_key
from tests.kit.verifying import verify_at, write_receipts


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return build_run(tmp_path_factory.mktemp("run"))


def test_a_folder_of_receipts_is_summed_up_each_credit_once(run: Run, tmp_path: Path) -> None:
    write_receipts(run, tmp_path / "receipts")
    shutil.copy(tmp_path / "receipts/round-000001.json", tmp_path / "receipts/copy.json")
    (tmp_path / "receipts/notes.txt").write_text("mine\n")
    report = verify_at(run, tmp_path / "receipts")
    assert report.ok, report.to_text()
    tokens = sum(agreed.weights[run.peers[0].peer_id] for agreed in run.agreements.values())
    assert report.facts == {"receipts": 4, "tokens": tokens}
    said = next(check.detail for check in report.checks if check.name == "credit")
    assert said == f"{tokens} tokens to {run.peers[0].peer_id}, in 3 rounds from 1 to 3"
    assert report.notes == ["1 other entries in it were not looked at"]


def more_tokens(path: Path) -> None:
    value = json.loads(path.read_bytes())
    value["entry"]["tokens"] += 1
    path.write_text(json.dumps(value))


def garbage(path: Path) -> None:
    path.write_bytes(bytes(100))


def emptied(path: Path) -> None:
    path.write_text("{}")


def linked(path: Path) -> None:
    shutil.move(path, path.parent / "elsewhere")
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("spoil", [more_tokens, garbage, emptied, linked])
def test_one_bad_receipt_among_good_ones_is_named_and_the_folder_refused(
    spoil: Callable[[Path], None], run: Run, tmp_path: Path
) -> None:
    write_receipts(run, tmp_path / "receipts")
    spoil(tmp_path / "receipts" / "round-000002.json")
    report = verify_at(run, tmp_path / "receipts")
    assert report.answer is Answer.REFUSED
    assert report.verdict.startswith("refused: receipts: round-000002.json: ") and "000001" not in report.verdict


def test_receipts_by_a_key_that_was_not_confirmed_are_no_yes(run: Run, tmp_path: Path) -> None:
    write_receipts(run, tmp_path / "receipts")
    report = verify_path(tmp_path / "receipts", trusted={fixed_root_key(9).keyid})
    assert report.verdict == f"intact, but signed by a key that you have not confirmed: {run.root.keyid}"
    other = build_run(tmp_path / "other", rounds=1, keys=9)
    write_receipts(other, tmp_path / "of-another")
    shutil.copy(tmp_path / "of-another/round-000001.json", tmp_path / "receipts/other.json")
    report = verify_at(run, tmp_path / "receipts")
    assert report.verdict == f"intact, but signed by a key that you have not confirmed: {other.root.keyid}"


def test_receipts_that_show_two_ledgers_are_refused(run: Run, tmp_path: Path) -> None:
    """The host has signed two heads of the same size, and gave this peer receipts for both."""
    write_receipts(run, tmp_path / "receipts")
    other = run.copy(tmp_path)
    other.entries[-1] = run.entries[0]
    other.tree = merkle.Tree(merkle.leaf_hash(entry.to_bytes()) for entry in other.entries)
    (tmp_path / "receipts" / "second.json").write_bytes(other.receipt(first_credit(run)))
    assert "the ledger signed two different heads" in verify_at(run, tmp_path / "receipts").verdict


def test_receipts_of_two_credits_for_one_round_are_refused(run: Run, tmp_path: Path) -> None:
    write_receipts(run, tmp_path / "receipts")
    other = run.copy(tmp_path)
    entry = run.entries[first_credit(run)]
    position = other.append(entry.model_copy(update={"tokens": entry.tokens + 1}))
    (tmp_path / "receipts" / "second.json").write_bytes(other.receipt(position))
    assert (
        "second.json: another one shows other credit for the same round"
        in verify_at(run, tmp_path / "receipts").verdict
    )


def first_credit(run: Run) -> int:
    first = run.peers[0].peer_id
    return next(
        index for index, entry in enumerate(run.entries) if isinstance(entry, CreditEntry) and entry.peer_id == first
    )


def test_options_of_a_checkpoint_are_not_ignored_for_a_receipt(run: Run, tmp_path: Path) -> None:
    write_receipts(run, tmp_path / "receipts")
    for path in (tmp_path / "receipts", tmp_path / "receipts" / "round-000001.json"):
        with pytest.raises(InputError, match="options that go with one alone"):
            verify_path(path, trusted=run.trusted, alone=True)
