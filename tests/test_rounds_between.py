"""Rounds between two checkpoints: their agreements in `rounds/` are checked, and missed when they are not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from protocol import checkpoint
from protocol.keys import PeerIdentity
from protocol.lineage import folder_of
from protocol.report import Answer
from tests.kit.builders import Run, build_run, edit_info
from tests.kit.verifying import status, verify_step


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Four rounds, a checkpoint every second one, and the agreement of every round beside them."""
    run = build_run(tmp_path_factory.mktemp("sparse"), rounds=4, every=2)
    (run.checkpoints / checkpoint.ROUNDS).mkdir()
    for number, agreement in run.agreements.items():
        round_path(run, number).write_bytes(agreement.to_bytes())
    return run


def round_path(run: Run, number: int) -> Path:
    return run.checkpoints / checkpoint.ROUNDS / checkpoint.round_name(number)


def test_the_folder_of_checkpoints_is_the_one_that_the_step_lies_in(sparse: Run, tmp_path: Path) -> None:
    assert folder_of(sparse.step(4)) == sparse.checkpoints.resolve()
    shutil.copytree(sparse.step(4), tmp_path / "downloads" / "step-000004")
    assert folder_of(tmp_path / "downloads" / "step-000004") is None
    (tmp_path / "downloads" / "step-000002").mkdir()
    assert folder_of(tmp_path / "downloads" / "step-000004") == (tmp_path / "downloads").resolve()
    shutil.rmtree(tmp_path / "downloads" / "step-000002")
    (tmp_path / "downloads" / "rounds").mkdir()
    assert folder_of(tmp_path / "downloads" / "step-000004" / "model" / "..") == (tmp_path / "downloads").resolve()


def test_a_missing_ancestor_is_incomplete(sparse: Run, tmp_path: Path) -> None:
    shutil.copytree(sparse.checkpoints, tmp_path / "checkpoints")
    shutil.rmtree(tmp_path / "checkpoints" / "step-000002")
    report = verify_step(sparse, 4, checkpoints_dir=tmp_path / "checkpoints")
    assert report.answer is Answer.INCOMPLETE
    assert "is not in the folder of checkpoints" in report.verdict


def test_later_checkpoints_at_hand_are_noted_and_change_no_verdict(sparse: Run, tmp_path: Path) -> None:
    report = verify_step(sparse, 2)
    assert report.ok
    assert report.notes == ["step-000004 lies beside it and says that it is a later checkpoint of this run"]
    assert report.notes[0] in report.to_text() and report.to_json()["notes"] == report.notes
    assert verify_step(sparse, 4).notes == []

    shutil.copytree(sparse.checkpoints, tmp_path / "checkpoints")
    shutil.rmtree(tmp_path / "checkpoints" / "step-000004")
    report = verify_step(sparse, 2, checkpoints_dir=tmp_path / "checkpoints")
    assert report.ok and report.notes == ["rounds/ goes on to round 4: there may be a later checkpoint"]

    other = build_run(tmp_path / "other", rounds=5, name="other")
    shutil.rmtree(tmp_path / "checkpoints" / "rounds")
    shutil.copytree(other.step(5), tmp_path / "checkpoints" / "step-000005")
    assert verify_step(sparse, 0, checkpoints_dir=tmp_path / "checkpoints").notes == [
        "step-000002 lies beside it and says that it is a later checkpoint of this run"
    ]


def test_without_the_agreements_between_checkpoints_the_answer_is_incomplete(tmp_path: Path) -> None:
    run = build_run(tmp_path, rounds=4, every=2)
    report = verify_step(run, 4)
    assert report.answer is Answer.INCOMPLETE and report.sound, report.to_text()
    assert report.verdict.startswith("incomplete: rounds: ")
    assert status(report, "lineage") == "ok"
    assert status(report, "rounds") == "not checked"
    assert status(report, "contributors") == "not checked"
    assert status(report, "ledger growth") == "ok"


def test_rounds_that_an_invented_member_made_alone_are_no_yes_with_their_agreements_left_out(tmp_path: Path) -> None:
    run = build_run(tmp_path, rounds=2, every=2)
    run.peers = [PeerIdentity.generate()]
    for number in (3, 4):
        run.round(number, publish=number == 4)
    report = verify_step(run, 4)
    assert report.answer is Answer.INCOMPLETE, report.to_text()


def test_rounds_between_checkpoints_are_checked_when_their_agreements_are_at_hand(sparse: Run) -> None:
    report = verify_step(sparse, 4)
    assert report.ok, report.to_text()
    assert status(report, "rounds") == status(report, "contributors") == "ok"


@pytest.mark.parametrize(
    "attack, reason",
    [
        ("weights lowered by the host", "do not follow from the claims"),
        ("a round of another number", "is of round 1"),
        ("no JSON", "not JSON"),
        ("all votes but the lightest taken away", "a majority"),
    ],
)
def test_hostile_round_between_checkpoints_is_refused(sparse: Run, tmp_path: Path, attack: str, reason: str) -> None:
    other = sparse.copy(tmp_path)
    shutil.copytree(sparse.checkpoints, other.checkpoints)
    path = round_path(other, 3)
    value = json.loads(path.read_bytes())
    if attack == "weights lowered by the host":
        value["weights"] = dict.fromkeys(value["weights"], 1)
    elif attack == "a round of another number":
        value = json.loads(round_path(other, 1).read_bytes())
    elif attack == "all votes but the lightest taken away":
        lightest = min(value["weights"], key=value["weights"].get)
        value["votes"] = [vote for vote in value["votes"] if vote["signatures"][0]["keyid"] == lightest]
    path.write_bytes(b"{" if attack == "no JSON" else json.dumps(value).encode())
    report = verify_step(other, 4)
    check = next(check for check in report.checks if check.name == "rounds")
    assert reason in check.detail
    assert report.answer is Answer.REFUSED


@pytest.mark.parametrize("missing", [1, 3, 2, 4])
def test_every_agreement_between_checkpoints_is_needed(sparse: Run, tmp_path: Path, missing: int) -> None:
    other = sparse.copy(tmp_path)
    shutil.copytree(sparse.checkpoints, other.checkpoints)
    round_path(other, missing).unlink()
    report = verify_step(other, 4)
    if missing in (2, 4):  # their checkpoints hold them
        assert report.ok, report.to_text()
    else:
        assert report.answer is Answer.INCOMPLETE
        assert checkpoint.round_name(missing) in report.verdict


def test_a_damaged_agreement_is_refused_although_others_are_missing(sparse: Run, tmp_path: Path) -> None:
    other = sparse.copy(tmp_path)
    shutil.copytree(sparse.checkpoints, other.checkpoints)
    round_path(other, 1).unlink()
    round_path(other, 3).write_bytes(b"{}")
    assert verify_step(other, 4).answer is Answer.REFUSED


def test_a_published_round_whose_agreement_has_fewer_votes_beside_it_is_accepted(sparse: Run, tmp_path: Path) -> None:
    """Members that report later may bring other votes for the same state."""
    other = sparse.copy(tmp_path)
    shutil.copytree(sparse.checkpoints, other.checkpoints)
    value = json.loads(round_path(other, 2).read_bytes())
    heaviest = sorted(value["weights"], key=value["weights"].get)[1:]
    value["votes"] = [vote for vote in value["votes"] if vote["signatures"][0]["keyid"] in heaviest]
    round_path(other, 2).write_bytes(json.dumps(value).encode())
    assert verify_step(other, 4).ok, verify_step(other, 4).to_text()


def test_contributors_named_with_more_than_all_rounds_show_are_refused(sparse: Run, tmp_path: Path) -> None:
    other = sparse.copy(tmp_path)
    shutil.copytree(sparse.checkpoints, other.checkpoints)
    named = [item.model_dump() for item in checkpoint.read_info(other.step(4)).contributors]
    named[0]["tokens"] += 1
    edit_info(other.step(4), contributors=named)
    other.resign(other.step(4))
    report = verify_step(other, 4)
    assert status(report, "contributors") == "refused", report.to_text()
