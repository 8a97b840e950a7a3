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
from protocol.model_signature import ModelSignature
from protocol.report import Answer
from protocol.safetensors_file import FULL_FILE, INDEX_FILE
from protocol.verify import verify_checkpoint
from tests.kit.builders import SHAPES, Run, build_run, fixed_root_key, make_run
from tests.kit.verifying import status, verify_step


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return build_run(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_every_checkpoint_of_a_sound_run_is_accepted(method: str, tmp_path: Path) -> None:
    run = build_run(tmp_path, method=method)
    for number in range(4):
        report = verify_step(run, number)
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
    assert verify_step(run, 0).ok, verify_step(run, 0).to_text()


def test_without_the_folder_of_checkpoints_the_answer_is_incomplete(run: Run) -> None:
    report = verify_step(run, checkpoints_dir=None)
    assert (report.answer, report.answer.exit_code) == (Answer.INCOMPLETE, 3)
    assert report.sound and not report.complete and not report.ok
    assert status(report, "lineage") == "not checked"
    assert report.verdict == ("incomplete: lineage: the checkpoints before this one, back to genesis, are not at hand")
    value = report.to_json()
    assert (value["ok"], value["complete"], value["answer"]) == (False, False, "incomplete")
    assert verify_step(run, 0, checkpoints_dir=None).ok, "genesis has nothing before it"


def test_who_asks_about_one_folder_alone_is_told_that_only_it_was_checked(run: Run, tmp_path: Path) -> None:
    report = verify_step(run, checkpoints_dir=None, alone=True)
    assert report.ok and report.answer.exit_code == 0
    assert status(report, "lineage") == "not checked"
    assert "verified by itself" in report.verdict and "back to genesis was not checked" in report.verdict
    assert report.to_json()["alone"] is True
    genesis = verify_step(run, 0, checkpoints_dir=None, alone=True)
    assert genesis.ok and "by itself" not in genesis.verdict
    shutil.copytree(run.step(3), tmp_path / "step-000003")
    (tmp_path / "step-000003/model/LICENSE").write_text("another\n")
    assert verify_checkpoint(tmp_path / "step-000003", trusted=run.trusted, alone=True).answer is Answer.REFUSED


def test_what_is_refused_is_refused_also_when_something_is_missing(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.step(3), tmp_path / "step-000003")
    (tmp_path / "step-000003/model/LICENSE").write_text("another\n")
    report = verify_checkpoint(tmp_path / "step-000003", trusted=run.trusted)
    assert not report.complete and report.answer is Answer.REFUSED and report.answer.exit_code == 1


def test_a_moved_checkpoint_is_still_good(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.step(2), tmp_path / "my download")
    assert verify_checkpoint(tmp_path / "my download", trusted=run.trusted, checkpoints_dir=run.checkpoints).ok


def test_an_unconfirmed_key_is_not_called_intact_when_something_is_missing(run: Run) -> None:
    report = verify_step(run, trusted=set(), checkpoints_dir=None)
    assert report.verdict == f"incomplete, and signed by a key that you have not confirmed: {run.root.keyid}"
    assert report.answer.exit_code == 1


def test_an_unconfirmed_key_is_no_yes_even_when_all_is_intact(run: Run) -> None:
    for trusted in (set(), {fixed_root_key(9).keyid}):
        report = verify_step(run, trusted=trusted)
        assert not report.ok
        assert report.verdict == f"intact, but signed by a key that you have not confirmed: {run.root.keyid}"
        assert [check.name for check in report.refusals] == ["key"]


def test_a_maintainers_signature_counts_when_the_key_is_at_hand(run: Run, tmp_path: Path) -> None:
    other = run.copy(tmp_path)
    shutil.copytree(run.checkpoints, other.checkpoints)
    maintainer = fixed_root_key(7)
    path = checkpoint.add_maintainer_signature(other.step(3), maintainer)
    assert path.name == f"{maintainer.keyid}.sig"
    assert status(verify_step(other), "maintainers") == "not checked"
    report = verify_step(other, keys=[maintainer.public_key, fixed_root_key(8).public_key])
    assert status(report, "maintainers") == "ok"
    assert report.ok


def test_a_maintainer_alone_does_not_stand_for_the_root_key(run: Run, tmp_path: Path) -> None:
    other = run.copy(tmp_path)
    shutil.copytree(run.checkpoints, other.checkpoints)
    maintainer = fixed_root_key(7)
    checkpoint.add_maintainer_signature(other.step(3), maintainer)
    assert not verify_step(other, trusted={maintainer.keyid}, keys=[maintainer.public_key]).ok


def test_the_payload_digest_is_that_of_the_signed_payload(run: Run) -> None:
    signature = ModelSignature.read(run.step(3) / "model.sig")
    assert checkpoint.payload_digest(run.step(3)) == signature.payload_digest == run.payloads[3]
    assert checkpoint.entry(run.step(3)).payload == run.payloads[3]
    assert checkpoint.entry(run.step(3)).parent == run.payloads[2]


def test_the_report_reads_as_text_and_as_json(run: Run) -> None:
    report = verify_step(run)
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
        verify_step(run, checkpoints_dir=tmp_path / "absent")


def test_any_other_folder_is_refused(run: Run, tmp_path: Path) -> None:
    report = verify_checkpoint(tmp_path, trusted=run.trusted)
    assert not report.ok
    assert "model.sig: missing" in report.verdict


def test_verification_changes_nothing_in_the_folder(run: Run) -> None:
    def snapshot() -> dict[str, tuple[int, bytes]]:
        files = sorted(path for path in run.checkpoints.rglob("*") if path.is_file())
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    before = snapshot()
    verify_step(run)
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
