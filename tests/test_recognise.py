"""What `potluck verify` is pointed at: a slip of the hand is told in one line; nothing tampered with passes for one."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import model_signing
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import potluck
from protocol.errors import InputError
from protocol.keys import public_pem
from protocol.recognise import Kind, recognise
from protocol.report import Answer
from protocol.verify import verify_path
from tests.kit.builders import Run, build_run
from tests.kit.verifying import verify_at, write_receipts


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return build_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def world(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host's run folder, a peer's home, and what else lies about on somebody's disk; the current folder."""
    host, peer = tmp_path / "run", tmp_path / "home" / "runs" / "0123456789abcdef"
    shutil.copytree(run.checkpoints, host / "checkpoints")
    (host / "checkpoints" / "rounds").mkdir()
    for number, agreement in run.agreements.items():
        (host / "checkpoints" / "rounds" / f"round-{number:06d}.json").write_bytes(agreement.to_bytes())
    (host / "coordinator.pub").write_bytes(public_pem(run.root.public_key))
    (host / "run-card.json").write_text(json.dumps(run.card_envelope))
    (host / "run.json").write_bytes(run.spec.to_bytes())
    shutil.copytree(run.step(0), peer / "step-000000")
    shutil.copy(host / "run-card.json", peer / "run-card.json")
    (tmp_path / "home" / "identity").write_bytes(run.peers[0].to_bytes())
    write_receipts(run, peer / "receipts")
    (tmp_path / "run.toml").write_text("[run]\n")
    (tmp_path / "invite.txt").write_text("\ufeffpotluck1.abc.def\n")
    (tmp_path / "head.note").write_text(run.proof(1).head_note)
    (tmp_path / "proof").write_text(run.proof(1).to_text())
    (tmp_path / "empty").mkdir()
    (tmp_path / "nothing.json").write_text("")
    (tmp_path / "not-receipts").mkdir()
    (tmp_path / "not-receipts" / "000001.json").write_text("{}")
    (tmp_path / "checkpoint.tar.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "noise.bin").write_bytes(bytes(range(256)))
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "config.json").write_text("{}")
    (tmp_path / "plain" / "model.safetensors").write_bytes(bytes(16))
    shutil.copytree(run.step(3) / "model", tmp_path / "model-alone")
    shutil.copytree(tmp_path / "model-alone", tmp_path / "all-in-one")
    for name in ("model.sig", "model.tlog-proof"):
        shutil.copy(run.step(3) / name, tmp_path / "all-in-one")
    (tmp_path / "dangling").symlink_to("gone")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- what can be verified --------------------------------------------------------------------------------------------


PEER = "home/runs/0123456789abcdef"


@pytest.mark.parametrize(
    ("path", "kind", "name"),
    [
        ("run/checkpoints/step-000003", Kind.CHECKPOINT, "step-000003"),
        (f"{PEER}/step-000000", Kind.CHECKPOINT, "step-000000"),
        (f"{PEER}/receipts", Kind.RECEIPTS, "receipts"),
        (f"{PEER}/receipts/round-000002.json", Kind.RECEIPT, "round-000002.json"),
    ],
)
def test_a_checkpoint_a_receipt_and_a_folder_of_receipts_are_verified_and_so_is_a_link_to_one(
    path: str, kind: Kind, name: str, run: Run, world: Path
) -> None:
    (world / "link").symlink_to(path)
    (world / "link to the link").symlink_to("link")
    for named in (path, "link", "link to the link"):
        assert recognise(Path(named)).kind is kind
        report = verify_at(run, named)
        assert report.ok and (report.kind, report.subject) == (str(kind), name), report.to_text()
        assert bool(report.notes) == named.startswith("link"), "who named a link is told what was checked"


def test_the_current_folder_is_recognised_by_its_own_name(
    run: Run, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("run/checkpoints/step-000002")
    assert verify_at(run, ".").ok
    monkeypatch.chdir("model")
    with pytest.raises(InputError, match="a part of a checkpoint"):
        verify_at(run, ".")


def test_the_folder_of_checkpoints_may_be_named_by_a_link_and_must_hold_some(run: Run, world: Path) -> None:
    shutil.move("run/checkpoints/step-000003", "download")
    (world / "all").symlink_to("run/checkpoints")
    assert verify_path(Path("download"), trusted=run.trusted, checkpoints_dir=Path("all")).ok
    with pytest.raises(InputError, match=r"run: no step-… folder lies there"):
        verify_path(Path("download"), trusted=run.trusted, checkpoints_dir=Path("run"))


# ---- slips of the hand -----------------------------------------------------------------------------------------------


NEWEST = "potluck verify run/checkpoints/step-000003"
SLIPS = [
    ("run", "the folder of a run, with 4 checkpoints", NEWEST),
    ("run/checkpoints", "4 checkpoints of a run", NEWEST),
    (".", "a folder around a run", "potluck verify"),
    ("run/checkpoints/step-000003/model", "a part of a checkpoint", NEWEST),
    ("run/checkpoints/step-000003/model/ledger", "a part of a checkpoint", NEWEST),
    ("run/checkpoints/step-000003/model/model.safetensors", "a part of a checkpoint", NEWEST),
    ("run/checkpoints/step-000003/model/ledger/checkpoint", "a part of a checkpoint", NEWEST),
    ("run/checkpoints/step-000003/model.sig", "a part of a checkpoint", NEWEST),
    ("run/checkpoints/rounds", "agreements of a run's rounds", "with a checkpoint"),
    ("run/checkpoints/rounds/round-000001.json", "agreement of a round", "with a checkpoint"),
    ("run/coordinator.pub", "a key", "--key"),
    ("run/run-card.json", "neither a checkpoint nor a receipt", "step-…"),
    ("run/run.json", "neither a checkpoint nor a receipt", "step-…"),
    ("home", "a peer's home", f"potluck verify {PEER}/receipts"),
    ("home/runs", "a folder around a run", f"potluck verify {PEER}/step-000000"),
    (PEER, "a peer's folder of a run", f"potluck verify {PEER}/receipts"),
    ("run.toml", "what a run is to be", "step-…"),
    ("invite.txt", "an invite", "--newest-by"),
    ("potluck1.abc.def", "an invite", "--newest-by"),
    ("head.note", "a head of a run's ledger", "--newest-by"),
    ("proof", "a head of a run's ledger", "--newest-by"),
    ("empty", "an empty folder", "step-…"),
    ("nothing.json", "an empty file", "step-…"),
    ("not-receipts", "a folder without a checkpoint or a receipt", "a folder of receipts"),
    ("not-receipts/000001.json", "neither a checkpoint nor a receipt", "step-…"),
    ("checkpoint.tar.gz", "an archive", "unpack it"),
    ("noise.bin", "a file of weights", "step-…"),
    ("plain", "a model without a signature", "--signature"),
    ("plain/model.safetensors", "a file of weights", "step-…"),
    ("model-alone", "the files of a checkpoint's model/ without the folder", "beside model/"),
    ("all-in-one", "the files of a checkpoint's model/ without the folder", "beside model/"),
    ("dangling", "a link that leads nowhere", "step-…"),
    ("loop", "cannot be read", "step-…"),
    ("pipe", "neither a file nor a folder", "step-…"),
    ("absent", "no such file or folder", "step-…"),
    ("run/checkpoints/step-000009", "no such file or folder", "step-000000 to step-000003"),
    ("x" * 300, "cannot be read", "step-…"),
    ("https://example.org/step-000003", "an address", "download it"),
]


@pytest.mark.parametrize(("path", "said", "hint"), SLIPS, ids=[path[:60] for path, *_ in SLIPS])
def test_another_path_is_told_what_it_is_and_what_to_give(
    path: str, said: str, hint: str, run: Run, world: Path
) -> None:
    with pytest.raises(InputError) as caught:
        verify_at(run, path)
    error = caught.value
    assert said in error.message and hint in error.hint and error.exit_code == 2
    assert "\n" not in error.message + error.hint and "does not belong" not in error.message


def test_a_link_to_something_else_is_told_the_same(run: Run, world: Path) -> None:
    (world / "latest").symlink_to("run")
    with pytest.raises(InputError, match="latest: the folder of a run") as caught:
        verify_at(run, "latest")
    assert NEWEST in caught.value.hint


@pytest.mark.parametrize("beside", [True, False])
def test_a_model_that_the_stock_command_signed_is_told_how_to_be_checked(beside: bool, run: Run, world: Path) -> None:
    (world / "mine").mkdir()
    model = shutil.move(world / "plain", world / "mine" / "model")
    signature = model.parent / "model.sig" if beside else model / "model.sig"
    (world / "key.pem").write_bytes(run.root.to_pem())
    model_signing.signing.Config().use_elliptic_key_signer(private_key=world / "key.pem").sign(model, signature)
    for named in ("mine/model", "mine") if beside else ("mine/model",):
        with pytest.raises(InputError, match="a model that is not of a run") as caught:
            verify_at(run, named)
        assert f"potluck verify mine/model --signature {signature.relative_to(world)} --key" in caught.value.hint


def test_a_path_cannot_paint_on_the_terminal(run: Run, world: Path) -> None:
    (world / "\x1b[2Jrun").mkdir()
    with pytest.raises(InputError) as caught:
        verify_at(run, "\x1b[2Jrun")
    assert "\x1b" not in caught.value.message + caught.value.hint


# ---- tampering is no slip --------------------------------------------------------------------------------------------


PARTS = ["model", "model.sig", "model.tlog-proof", "model/checkpoint.json", "model/ledger", "model/model.safetensors"]


@pytest.mark.parametrize("name", ["step-000003", "my download"])
@pytest.mark.parametrize("kept", [None, *PARTS])
def test_a_checkpoint_with_parts_removed_is_refused_and_not_taken_for_something_else(
    kept: str | None, name: str, run: Run, tmp_path: Path
) -> None:
    """One part removed at a time; of a folder that is named as a checkpoint is, also all but one."""
    step = shutil.copytree(run.step(3), tmp_path / "one" / name)
    if kept is not None:
        path = step / kept
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert verify_at(run, step).answer is Answer.REFUSED
    if name.startswith("step-"):
        bare = tmp_path / "all" / name
        bare.mkdir(parents=True)
        if kept is not None:
            copy = shutil.copytree if (run.step(3) / kept).is_dir() else shutil.copy
            (bare / kept).parent.mkdir(exist_ok=True)
            copy(run.step(3) / kept, bare / kept)
        assert verify_at(run, bare).answer is Answer.REFUSED


@pytest.mark.parametrize("garbage", [b"", b"hello", b"{}"])
def test_a_checkpoint_whose_signature_was_spoiled_is_refused(garbage: bytes, run: Run, tmp_path: Path) -> None:
    step = shutil.copytree(run.step(3), tmp_path / "my download")
    (step / "model.sig").write_bytes(garbage)
    for name in ("model.tlog-proof", "model/checkpoint.json"):
        (step / name).unlink()
    assert verify_at(run, step).answer is Answer.REFUSED


def test_a_checkpoint_stripped_to_its_signed_model_is_told_from_a_plain_one(run: Run, tmp_path: Path) -> None:
    step = shutil.copytree(run.step(3), tmp_path / "my download")
    for name in ("model.tlog-proof", "model/checkpoint.json"):
        (step / name).unlink()
    report = verify_at(run, step)
    assert report.answer is Answer.REFUSED and "checkpoint.json: missing" in report.to_text()


# ---- the command -----------------------------------------------------------------------------------------------------


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["potluck", "verify", *words])
    with pytest.raises(SystemExit) as end:
        potluck.main()
    return int(end.value.code)


def test_the_command_says_a_slip_in_two_lines_and_a_folder_of_receipts_in_full(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POTLUCK_HOME", str(world / "nobody"))
    key = ["--key", "run/coordinator.pub"]
    assert command(monkeypatch, "run", *key) == 2
    said = capsys.readouterr()
    assert [line.partition(":")[0] for line in said.err.splitlines()] == ["error", "hint"] and not said.out
    assert command(monkeypatch, f"{PEER}/receipts", *key) == 0
    assert "3 receipts" in capsys.readouterr().out
    assert command(monkeypatch, f"{PEER}/receipts", *key, "--newest-by", "head.note") == 2
    assert "options that go with one alone" in capsys.readouterr().err


def test_the_command_checks_a_model_by_its_signature_and_asks_for_the_key(
    run: Run, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POTLUCK_HOME", str(world / "nobody"))
    (world / "key.pem").write_bytes(run.root.to_pem())
    signer = model_signing.signing.Config().use_elliptic_key_signer(private_key=world / "key.pem")
    signer.sign(world / "plain", world / "plain.sig")
    asked = ["plain", "--signature", "plain.sig"]
    assert command(monkeypatch, *asked, "--key", "run/coordinator.pub") == 0
    said = capsys.readouterr().out.splitlines()
    assert "this does not prove which run made it" in said[-2] and said[-1].startswith("verified: these are the files")
    for words, error in (
        ([], "--signature goes with the signer's public key"),
        (["--key", run.root.keyid], "--signature goes with the signer's public key"),
        (["--key", "run/coordinator.pub", "--signature-only"], "with no other option"),
        (["--key", "key.pem"], "--key key.pem: not a PEM public key"),
        (["--key", "x" * 300], "neither a PEM file nor a fingerprint"),
    ):
        assert command(monkeypatch, *asked, *words) == 2
        assert error in capsys.readouterr().err


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.sampled_from([b"", b"{", b'{"entry"', b"potluck1.", b"\xff\xfe", b"[" * 50]), rest=st.binary(max_size=50)
)
def test_a_file_with_any_bytes_is_answered(start: bytes, rest: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(start + rest)
    try:
        assert recognise(path).kind is Kind.RECEIPT and start == b'{"entry"'
    except InputError as error:
        assert error.message and error.hint
