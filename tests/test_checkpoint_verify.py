"""Sound checkpoints are accepted, and the report says what was and was not checked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.numpy as safe_numpy

from protocol import checkpoint
from protocol.errors import FormatError, InputError, VerificationError
from protocol.keys import PeerIdentity
from protocol.lineage import folder_of
from protocol.model_signature import ModelSignature
from protocol.report import Answer, Report
from protocol.safetensors_file import FULL_FILE, INDEX_FILE
from protocol.verify import verify_checkpoint
from tests.kit.builders import SHAPES, Run, build_run, edit_info, fixed_root_key, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return build_run(tmp_path_factory.mktemp("run"))


def verify(run: Run, number: int = 3, **options) -> Report:
    return verify_checkpoint(
        run.step(number), **({"trusted": run.trusted, "checkpoints_dir": run.checkpoints} | options)
    )


def status(report: Report, name: str) -> str:
    return next(str(check.status) for check in report.checks if check.name == name)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_every_checkpoint_of_a_sound_run_is_accepted(method: str, tmp_path: Path) -> None:
    run = build_run(tmp_path, method=method)
    for number in range(4):
        report = verify(run, number)
        assert report.ok, report.to_text()
        assert report.verdict == f"verified: signed by {run.root.keyid}, which you have confirmed"
        assert {str(check.status) for check in report.checks if check.name != "maintainers"} == {"ok"}


def test_weights_in_shards_are_accepted(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.genesis()
    model = run.step(0) / "model"
    state = run.state_of(run.step(0), 0)
    weights = safe_numpy.load_file(model / FULL_FILE)
    (model / FULL_FILE).unlink()
    weight_map = {name: f"model-0000{index}-of-00002.safetensors" for index, name in enumerate(sorted(SHAPES), start=1)}
    for name, shard in weight_map.items():
        safe_numpy.save_file({name: weights[name]}, model / shard)
    (model / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert run.state_of(run.step(0), 0) == state
    run.payloads.clear()
    run.publish(0, None, state)
    assert verify(run, 0).ok, verify(run, 0).to_text()


def test_without_the_folder_of_checkpoints_the_answer_is_incomplete(run: Run) -> None:
    report = verify(run, checkpoints_dir=None)
    assert (report.answer, report.answer.exit_code) == (Answer.INCOMPLETE, 3)
    assert report.sound and not report.complete and not report.ok
    assert status(report, "lineage") == "not checked"
    assert report.verdict == ("incomplete: lineage: the checkpoints before this one, back to genesis, are not at hand")
    value = report.to_json()
    assert (value["ok"], value["complete"], value["answer"]) == (False, False, "incomplete")
    assert verify(run, 0, checkpoints_dir=None).ok, "genesis has nothing before it"


def test_who_asks_about_one_folder_alone_is_told_that_only_it_was_checked(run: Run, tmp_path: Path) -> None:
    report = verify(run, checkpoints_dir=None, alone=True)
    assert report.ok and report.answer.exit_code == 0
    assert status(report, "lineage") == "not checked"
    assert "verified by itself" in report.verdict and "back to genesis was not checked" in report.verdict
    assert report.to_json()["alone"] is True
    genesis = verify(run, 0, checkpoints_dir=None, alone=True)
    assert genesis.ok and "by itself" not in genesis.verdict
    shutil.copytree(run.step(3), tmp_path / "step-000003")
    (tmp_path / "step-000003/model/LICENSE").write_text("another\n")
    assert verify_checkpoint(tmp_path / "step-000003", trusted=run.trusted, alone=True).answer is Answer.REFUSED


def test_what_is_refused_is_refused_also_when_something_is_missing(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.step(3), tmp_path / "step-000003")
    (tmp_path / "step-000003/model/LICENSE").write_text("another\n")
    report = verify_checkpoint(tmp_path / "step-000003", trusted=run.trusted)
    assert not report.complete and report.answer is Answer.REFUSED and report.answer.exit_code == 1


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
    report = verify(sparse, 4, checkpoints_dir=tmp_path / "checkpoints")
    assert report.answer is Answer.INCOMPLETE
    assert "is not in the folder of checkpoints" in report.verdict


def test_later_checkpoints_at_hand_are_noted_and_change_no_verdict(sparse: Run, tmp_path: Path) -> None:
    report = verify(sparse, 2)
    assert report.ok
    assert report.notes == ["step-000004 lies beside it and says that it is a later checkpoint of this run"]
    assert report.notes[0] in report.to_text() and report.to_json()["notes"] == report.notes
    assert verify(sparse, 4).notes == []

    shutil.copytree(sparse.checkpoints, tmp_path / "checkpoints")
    shutil.rmtree(tmp_path / "checkpoints" / "step-000004")
    report = verify(sparse, 2, checkpoints_dir=tmp_path / "checkpoints")
    assert report.ok and report.notes == ["rounds/ goes on to round 4: there may be a later checkpoint"]

    other = build_run(tmp_path / "other", rounds=5, name="other")
    shutil.rmtree(tmp_path / "checkpoints" / "rounds")
    shutil.copytree(other.step(5), tmp_path / "checkpoints" / "step-000005")
    assert verify(sparse, 0, checkpoints_dir=tmp_path / "checkpoints").notes == [
        "step-000002 lies beside it and says that it is a later checkpoint of this run"
    ]


def test_a_moved_checkpoint_is_still_good(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.step(2), tmp_path / "my download")
    assert verify_checkpoint(tmp_path / "my download", trusted=run.trusted, checkpoints_dir=run.checkpoints).ok


def test_without_the_agreements_between_checkpoints_the_answer_is_incomplete(tmp_path: Path) -> None:
    run = build_run(tmp_path, rounds=4, every=2)
    report = verify(run, 4)
    assert report.answer is Answer.INCOMPLETE and report.sound, report.to_text()
    assert report.verdict.startswith("incomplete: rounds: ")
    assert status(report, "lineage") == "ok"
    assert status(report, "rounds") == "not checked"
    assert status(report, "contributors") == "not checked"
    assert status(report, "ledger growth") == "ok"


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


def test_rounds_that_an_invented_member_made_alone_are_no_yes_with_their_agreements_left_out(tmp_path: Path) -> None:
    run = build_run(tmp_path, rounds=2, every=2)
    run.peers = [PeerIdentity.generate()]
    for number in (3, 4):
        run.round(number, publish=number == 4)
    report = verify(run, 4)
    assert report.answer is Answer.INCOMPLETE, report.to_text()


def test_rounds_between_checkpoints_are_checked_when_their_agreements_are_at_hand(sparse: Run) -> None:
    report = verify(sparse, 4)
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
    report = verify(other, 4)
    check = next(check for check in report.checks if check.name == "rounds")
    assert reason in check.detail
    assert report.answer is Answer.REFUSED


@pytest.mark.parametrize("missing", [1, 3, 2, 4])
def test_every_agreement_between_checkpoints_is_needed(sparse: Run, tmp_path: Path, missing: int) -> None:
    other = sparse.copy(tmp_path)
    shutil.copytree(sparse.checkpoints, other.checkpoints)
    round_path(other, missing).unlink()
    report = verify(other, 4)
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
    assert verify(other, 4).answer is Answer.REFUSED


def test_a_published_round_whose_agreement_has_fewer_votes_beside_it_is_accepted(sparse: Run, tmp_path: Path) -> None:
    """Members that report later may bring other votes for the same state."""
    other = sparse.copy(tmp_path)
    shutil.copytree(sparse.checkpoints, other.checkpoints)
    value = json.loads(round_path(other, 2).read_bytes())
    heaviest = sorted(value["weights"], key=value["weights"].get)[1:]
    value["votes"] = [vote for vote in value["votes"] if vote["signatures"][0]["keyid"] in heaviest]
    round_path(other, 2).write_bytes(json.dumps(value).encode())
    assert verify(other, 4).ok, verify(other, 4).to_text()


def test_an_unconfirmed_key_is_not_called_intact_when_something_is_missing(run: Run) -> None:
    report = verify(run, trusted=set(), checkpoints_dir=None)
    assert report.verdict == f"incomplete, and signed by a key that you have not confirmed: {run.root.keyid}"
    assert report.answer.exit_code == 1


def test_contributors_named_with_more_than_all_rounds_show_are_refused(sparse: Run, tmp_path: Path) -> None:
    other = sparse.copy(tmp_path)
    shutil.copytree(sparse.checkpoints, other.checkpoints)
    named = [item.model_dump() for item in checkpoint.read_info(other.step(4)).contributors]
    named[0]["tokens"] += 1
    edit_info(other.step(4), contributors=named)
    other.resign(other.step(4))
    report = verify(other, 4)
    assert status(report, "contributors") == "refused", report.to_text()


def test_an_unconfirmed_key_is_no_yes_even_when_all_is_intact(run: Run) -> None:
    for trusted in (set(), {fixed_root_key(9).keyid}):
        report = verify(run, trusted=trusted)
        assert not report.ok
        assert report.verdict == f"intact, but signed by a key that you have not confirmed: {run.root.keyid}"
        assert [check.name for check in report.refusals] == ["key"]


def test_a_maintainers_signature_counts_when_the_key_is_at_hand(run: Run, tmp_path: Path) -> None:
    other = run.copy(tmp_path)
    shutil.copytree(run.checkpoints, other.checkpoints)
    maintainer = fixed_root_key(7)
    path = checkpoint.add_maintainer_signature(other.step(3), maintainer)
    assert path.name == f"{maintainer.keyid}.sig"
    assert status(verify(other), "maintainers") == "not checked"
    report = verify(other, keys=[maintainer.public_key, fixed_root_key(8).public_key])
    assert status(report, "maintainers") == "ok"
    assert report.ok


def test_a_maintainer_alone_does_not_stand_for_the_root_key(run: Run, tmp_path: Path) -> None:
    other = run.copy(tmp_path)
    shutil.copytree(run.checkpoints, other.checkpoints)
    maintainer = fixed_root_key(7)
    checkpoint.add_maintainer_signature(other.step(3), maintainer)
    assert not verify(other, trusted={maintainer.keyid}, keys=[maintainer.public_key]).ok


def test_the_payload_digest_is_that_of_the_signed_payload(run: Run) -> None:
    signature = ModelSignature.read(run.step(3) / "model.sig")
    assert checkpoint.payload_digest(run.step(3)) == signature.payload_digest == run.payloads[3]
    assert checkpoint.entry(run.step(3)).payload == run.payloads[3]
    assert checkpoint.entry(run.step(3)).parent == run.payloads[2]


def test_the_report_reads_as_text_and_as_json(run: Run) -> None:
    report = verify(run)
    text = report.to_text().splitlines()
    assert text[0] == "checkpoint step-000003"
    assert text[-1] == report.verdict
    value = json.loads(json.dumps(report.to_json()))
    assert value["ok"] is True
    assert value["fingerprint"] == run.root.keyid
    assert value["facts"]["round"] == 3
    assert value["facts"]["payload"] == run.payloads[3]
    assert [check["name"] for check in value["checks"]] == [check.name for check in report.checks]


def test_what_a_folder_says_cannot_paint_on_the_terminal(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.step(3), tmp_path / "step-000003")
    (tmp_path / "step-000003/model/\x1b[2J\nok").write_text("")
    report = verify_checkpoint(tmp_path / "step-000003", trusted=run.trusted)
    assert report.answer is Answer.REFUSED
    assert "\x1b" not in report.to_text()
    assert len(report.to_text().splitlines()) == len(report.checks) + 2


def test_many_problems_are_counted_not_all_spelled_out(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.step(3), tmp_path / "step-000003")
    for index in range(50):
        (tmp_path / f"step-000003/model/extra{index}").write_text("")
    report = verify_checkpoint(tmp_path / "step-000003", trusted=run.trusted)
    assert "and 30 more" in next(check.detail for check in report.checks if check.name == "files")


def test_a_path_that_is_no_folder_is_wrong_input_not_a_refusal(run: Run, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(run.step(3))
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "absent", tmp_path / "link", tmp_path / "file"):
        with pytest.raises(InputError, match="not a directory"):
            verify_checkpoint(path, trusted=run.trusted)
    with pytest.raises(InputError, match="not a directory"):
        verify(run, checkpoints_dir=tmp_path / "absent")


def test_any_other_folder_is_refused(run: Run, tmp_path: Path) -> None:
    report = verify_checkpoint(tmp_path, trusted=run.trusted)
    assert not report.ok
    assert "model.sig: missing" in report.verdict


def test_verification_changes_nothing_in_the_folder(run: Run) -> None:
    def snapshot() -> dict[str, tuple[int, bytes]]:
        files = sorted(path for path in run.checkpoints.rglob("*") if path.is_file())
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    before = snapshot()
    verify(run)
    assert snapshot() == before


def test_a_folder_with_a_link_is_not_signed(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.step(3), tmp_path / "step-000003")
    (tmp_path / "step-000003/model/link").symlink_to("/etc/hostname")
    with pytest.raises(VerificationError, match="symbolic link"):
        checkpoint.sign_checkpoint(tmp_path / "step-000003", run.root)


def test_checkpoint_json_reads_back(run: Run) -> None:
    info = checkpoint.read_info(run.step(3))
    assert checkpoint.CheckpointInfo.from_bytes(info.to_bytes()) == info
    with pytest.raises(FormatError, match="canonical form"):
        checkpoint.CheckpointInfo.from_bytes(b" " + info.to_bytes())


def test_a_verifier_needs_neither_torch_nor_numpy_nor_the_network(run: Run) -> None:
    program = (
        "import sys, socket; from pathlib import Path; from protocol.verify import verify_checkpoint\n"
        "def refuse(*args, **kwargs): raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "step = Path(sys.argv[1])\n"
        "report = verify_checkpoint(step, trusted={sys.argv[2]}, checkpoints_dir=step.parent)\n"
        "heavy = {'torch', 'numpy', 'transformers', 'hivemind', 'model_signing', 'safetensors', 'grpc'}\n"
        "print(report.ok, sorted(heavy & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", program, str(run.step(3)), run.root.keyid]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "True []", done.stderr
