"""The command line as people and scripts meet it: exit codes, one-line errors with a hint, JSON, quick help."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from peer.screen.starting import starting
from protocol.keys import PeerIdentity, public_pem
from protocol.trust import trust
from tests.kit import builders
from tests.kit.command_line import an_invite, check_refused, potluck

VERBS = (
    [],
    ["host"],
    ["join"],
    ["leave"],
    ["verify"],
    ["status"],
    ["receipts"],
    ["identity"],
    ["identity", "export"],
    ["service"],
    ["uninstall"],
)
HEAVY = ("torch", "hivemind", "transformers", "numpy", "grpc", "sqlalchemy", "peft", "safetensors")


# ---- help, and what is imported --------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: " ".join(verb) or "potluck")
def test_help_explains_itself_and_imports_nothing_heavy(verb: list[str], tmp_path: Path) -> None:
    check_imports(tmp_path, [*verb, "--help"])


def test_help_is_in_the_language_that_is_asked_for(tmp_path: Path) -> None:
    assert potluck(tmp_path, "join", "--help", "--lang=zh").stdout.startswith("用法：")
    assert potluck(tmp_path, "join", "--help", "--lang", "en").stdout.startswith("Usage:")


def test_looking_after_ones_own_peers_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "runs" / ("ab" * 8)).mkdir(parents=True)
    check_imports(tmp_path, ["status", "--json"])
    assert json.loads(potluck(tmp_path, "status", "--json").stdout)[0]["running"] is False
    done = potluck(tmp_path, "leave")
    assert (done.returncode, done.stdout) == (0, "no peer runs here\n")
    assert "(unknown)" in potluck(tmp_path, "status").stdout


def test_verifying_imports_nothing_heavy(tmp_path: Path) -> None:
    step = a_checkpoint(tmp_path)
    check_imports(tmp_path, ["verify", str(step)], expected=1)


def check_imports(folder: Path, arguments: list[str], expected: int = 0) -> None:
    script = (
        "import json, sys, potluck\n"
        f"sys.argv = ['potluck', *{arguments!r}]\n"
        "try:\n    potluck.main()\n"
        "except SystemExit as end:\n"
        f"    print('\\n' + json.dumps([end.code, [name for name in {HEAVY!r} if name in sys.modules]]))\n"
    )
    environment = os.environ | {"POTLUCK_HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=environment, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 100, "it said something"
    assert json.loads(done.stdout.splitlines()[-1]) == [expected, []]


@pytest.mark.parametrize("verb", ["join", "host"])
def test_the_first_words_come_before_anything_heavy_is_imported(verb: str, tmp_path: Path) -> None:
    script = (
        "import json, sys, potluck, peer.screen.starting\n"
        "def starting(*modules, quiet):\n"
        f"    print(json.dumps([list(modules), [name for name in {HEAVY!r} if name in sys.modules]]))\n"
        "    raise SystemExit(0)\n"
        "peer.screen.starting.starting = starting\n"
        f"sys.argv = ['potluck', {verb!r}, {str(an_invite('127.0.0.1:1'))!r}]\n"
        "potluck.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    modules, heavy = json.loads(done.stdout)
    assert "torch" in modules and not heavy


def test_loading_is_said_before_each_part_on_a_terminal_and_once_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    monkeypatch.setattr(importlib, "import_module", lambda name: said.append(capsys.readouterr().err))
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    starting("torch", "peer.volunteer", quiet=False)
    assert "loading torch (1 of 2)" in said[0] and "loading peer (2 of 2)" in said[1]
    assert capsys.readouterr().err.endswith("\x1b[K"), "nothing of it stays"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    said.clear()
    starting("torch", "peer.volunteer", quiet=False)
    assert said[0].startswith("starting") and said[1] == ""
    starting("torch", quiet=True)
    assert capsys.readouterr() == ("", "")


def test_importing_the_protocol_imports_nothing_heavy() -> None:
    script = (
        "import pkgutil, importlib, sys, json, protocol\n"
        "names = [module.name for module in pkgutil.iter_modules(protocol.__path__)]\n"
        "names = [name for name in names if not name.endswith(('_pb2', '_pb2_grpc'))]\n"
        "for name in names: importlib.import_module(f'protocol.{name}')\n"
        f"print(json.dumps([len(names), [name for name in {HEAVY!r} if name in sys.modules]]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    count, heavy = json.loads(done.stdout)
    assert count > 15 and not heavy


def test_wrong_usage_exits_with_2(tmp_path: Path) -> None:
    for arguments in (["dance"], ["verify"], ["verify", "--no-such-option", "x"], ["join"]):
        done = potluck(tmp_path, *arguments)
        assert done.returncode == 2
        assert "Usage:" in done.stderr and "Traceback" not in done.stderr


# ---- verify ----------------------------------------------------------------------------------------------------------


def a_checkpoint(folder: Path) -> Path:
    """A signed checkpoint; its public key lies in `folder` as coordinator.pub."""
    run = builders.build_run(folder / "run", rounds=1)
    (folder / "coordinator.pub").write_bytes(public_pem(run.root.public_key))
    return run.step(1)


def test_verify_believes_a_key_file_a_fingerprint_or_an_invite_and_nothing_else(tmp_path: Path) -> None:
    step = a_checkpoint(tmp_path)
    public = tmp_path / "coordinator.pub"
    report = json.loads(potluck(tmp_path, "verify", step, "--key", public, "--json").stdout)
    assert report["ok"] and report["checks"]
    for home, arguments in (("a", ["--key", str(public)]), ("b", ["--key", report["fingerprint"]])):
        (tmp_path / home).mkdir()
        done = potluck(tmp_path / home, "verify", step, *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[-1].startswith("verified: signed by")

    stranger = tmp_path / "stranger"
    stranger.mkdir()
    done = potluck(stranger, "verify", step)
    said = f"intact, but signed by a key that you have not confirmed: {report['fingerprint']}"
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, said)
    assert json.loads(potluck(stranger, "verify", step, "--json").stdout)["verdict"] == said

    trust(report["fingerprint"], name="small", run="0" * 64, folder=stranger)  # what taking an invite does
    assert potluck(stranger, "verify", step).returncode == 0


def test_verify_says_no_to_a_changed_byte_and_2_to_what_is_not_there(tmp_path: Path) -> None:
    step = a_checkpoint(tmp_path)
    key = ["--key", str(tmp_path / "coordinator.pub")]
    weights = next((step / "model").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    done = potluck(tmp_path, "verify", step, *key)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("refused: ") and weights.name in done.stdout

    check_refused(potluck(tmp_path, "verify", tmp_path / "nothing"), 2, "no such file", "")
    done = potluck(tmp_path, "verify", step, "--signature-only", "--checkpoints", step.parent)
    check_refused(done, 2, "--signature-only and --checkpoints", "")
    receipt = tmp_path / "receipt.json"
    receipt.write_text("{}")
    check_refused(potluck(tmp_path, "verify", receipt, "--newest-by", receipt), 2, "only a checkpoint", "folder")
    done = potluck(tmp_path, "verify", step, "--newest-by", "nothing")
    check_refused(done, 2, "not an invite", "potluck1.")
    done = potluck(tmp_path, "verify", step, "--key", "abc")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --key abc: neither a PEM file nor a fingerprint")


def test_verify_says_3_when_something_is_left_out_and_4_when_there_is_a_newer_one(tmp_path: Path) -> None:
    run = builders.build_run(tmp_path / "run", rounds=2)
    key = ["--key", run.root.keyid]
    assert potluck(tmp_path, "verify", run.step(2), *key).returncode == 0, (
        "it finds the folder of checkpoints by itself"
    )
    assert potluck(run.checkpoints, "verify", "step-000002", *key, "--checkpoints", ".").returncode == 0
    assert potluck(run.step(2), "verify", ".", *key).returncode == 0
    older = potluck(tmp_path, "verify", run.step(1), *key)
    assert older.returncode == 0 and "step-000002 lies beside it" in older.stdout

    alone = tmp_path / "downloads" / "step-000002"
    shutil.copytree(run.step(2), alone)
    done = potluck(tmp_path, "verify", alone, *key)
    assert done.returncode == 3
    assert done.stdout.splitlines()[-1].startswith("incomplete: lineage: ")
    told = json.loads(potluck(tmp_path, "verify", alone, *key, "--json").stdout)
    assert (told["ok"], told["complete"], told["answer"]) == (False, False, "incomplete")
    done = potluck(tmp_path, "verify", alone, *key, "--signature-only")
    assert done.returncode == 0
    assert "the chain back to genesis was not checked" in done.stdout.splitlines()[-1]

    head = run.step(2) / "model.tlog-proof"  # holds a signed ledger head
    assert potluck(tmp_path, "verify", run.step(2), *key, "--newest-by", head).returncode == 0
    done = potluck(tmp_path, "verify", run.step(1), *key, "--newest-by", head)
    assert done.returncode == 3 and "only the coordinator can say" in done.stdout.splitlines()[-1]
    shutil.rmtree(run.step(1))
    assert potluck(tmp_path, "verify", run.step(2), *key).returncode == 3


# ---- identity --------------------------------------------------------------------------------------------------------


def test_an_identity_can_be_backed_up_lost_and_restored(tmp_path: Path) -> None:
    done = potluck(tmp_path, "identity", "backup", tmp_path / "backup")
    check_refused(done, 2, "there is no identity yet", "join a run first")
    me = potluck(tmp_path, "identity", "show").stdout.strip()
    assert me.startswith("12D3Koo")
    assert potluck(tmp_path, "identity", "backup", tmp_path / "backup").returncode == 0
    assert (tmp_path / "backup").stat().st_mode & 0o777 == 0o600
    check_refused(potluck(tmp_path, "identity", "backup", tmp_path / "backup"), 2, "is there already", "another name")

    (tmp_path / "identity").unlink()
    other = potluck(tmp_path, "identity", "show").stdout.strip()
    assert other != me
    done = potluck(tmp_path, "identity", "restore", tmp_path / "backup")
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == me
    assert potluck(tmp_path, "identity", "show").stdout.strip() == me
    kept = PeerIdentity.load_or_create(tmp_path / f"identity.{other[-8:]}")
    assert kept.peer_id == other, "the one that was there is kept"


def test_a_file_that_is_no_identity_is_not_restored(tmp_path: Path) -> None:
    me = potluck(tmp_path, "identity", "show").stdout
    (tmp_path / "junk").write_bytes(b"\x08\x01\x12\x40" + bytes(64))
    for name in ("junk", "nothing", "x" * 400, "/dev/zero", "."):
        done = potluck(tmp_path, "identity", "restore", tmp_path / name)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert potluck(tmp_path, "identity", "show").stdout == me
