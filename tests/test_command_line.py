"""The command line as people and scripts meet it: exit codes, one-line errors with a hint, JSON, quick help."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator import tls
from lab.processes import Community, eventually
from lab.training_fixtures import write_tiny_llama
from lab.warm_start import WarmStart
from peer.screen.starting import starting
from protocol.invite import Invite
from protocol.keys import PeerIdentity, public_pem
from protocol.trust import trust
from tests.kit import builders

VERBS = ([], ["host"], ["join"], ["leave"], ["verify"], ["status"], ["identity"], ["identity", "backup"])
HEAVY = ("torch", "hivemind", "transformers", "numpy", "grpc", "sqlalchemy", "peft", "safetensors")


def potluck(
    home: Path, *arguments: str | Path, timeout_s: float = 120, starter: WarmStart | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `potluck` to its end, with `home` as this user's own folder; a starter spares it the imports."""
    environment = os.environ | {"POTLUCK_HOME": str(home), "OMP_NUM_THREADS": "1", "LANG": "C.UTF-8"}
    words = [str(item) for item in arguments]
    if starter is not None:
        return starter.run(words, environment=environment, folder=home, timeout_s=timeout_s)
    return subprocess.run(
        [sys.executable, "-m", "potluck", *words],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
        env=environment,
        cwd=home,
    )


def check_refused(done: subprocess.CompletedProcess[str], code: int, error: str, hint: str) -> None:
    """At the end one line that says what is wrong and one that says what to do; nothing on standard output."""
    lines = done.stderr.strip().splitlines()[-2:]
    assert done.returncode == code, done.stderr
    assert [line.partition(":")[0] for line in lines] == ["error", "hint"], done.stderr
    assert error in lines[0] and hint in lines[1]
    assert not done.stdout


# ---- help, and what is imported --------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: " ".join(verb) or "potluck")
def test_help_explains_itself_and_imports_nothing_heavy(verb: list[str], tmp_path: Path) -> None:
    check_imports(tmp_path, [*verb, "--help"])


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


# ---- invites that lead nowhere ---------------------------------------------------------------------------------------


def an_invite(address: str, **values: str) -> Invite:
    return Invite.model_validate({"addresses": [address], "run": "a" * 64, "tls": "b" * 64, "root": "c" * 64} | values)


def test_a_damaged_invite_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    whole = str(an_invite("127.0.0.1:1"))
    for place in (12, len(whole) // 2, len(whole) - 1):
        changed = whole[:place] + ("A" if whole[place] != "A" else "B") + whole[place + 1 :]
        check_refused(potluck(tmp_path, "join", changed), 2, "invite", "copy the whole line")
    check_refused(potluck(tmp_path, "join", "hello"), 2, "not an invite", "potluck1.")
    check_refused(potluck(tmp_path, "status", whole[:-1]), 2, "invite is damaged", "copy the whole line")


@pytest.mark.swarm
def test_status_says_that_the_coordinator_is_away(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers there, and nobody else can take it
        invite = an_invite(f"127.0.0.1:{closed.getsockname()[1]}")
        done = potluck(tmp_path, "status", str(invite))
        assert done.returncode == 2 and "error: no coordinator at" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.swarm
def test_a_server_with_another_certificate_than_the_invites_hears_nothing(tmp_path: Path, starter: WarmStart) -> None:
    heard: list[bytes] = []
    identity = tls.load_or_create(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=listen_in, args=(server, tmp_path, heard), daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        other = "d" * 64
        assert other != identity.digest
        invite = str(an_invite(address, tls=other, code="secret"))
        done = potluck(tmp_path, "join", invite, "--yes", "--json", "--device", "cpu", starter=starter)
        eventually(lambda: bool(heard))
    assert done.returncode == 1
    assert "is not the coordinator you were invited to" in done.stderr and "fresh invite" in done.stderr
    assert set(heard) == {b""}, "no byte came after the handshake"
    assert not (tmp_path / "trusted.json").exists()


def listen_in(server: socket.socket, folder: Path, heard: list[bytes]) -> None:
    """Answer TLS handshakes, and note what comes after them."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    context.set_alpn_protocols(["h2"])
    while True:
        try:
            plain, _ = server.accept()
        except OSError:
            return
        plain.settimeout(10)
        with plain, context.wrap_socket(plain, server_side=True) as secure:
            heard.append(secure.recv(4096))


# ---- beside a real host ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def waiting(
    tmp_path_factory: pytest.TempPathFactory, glass_dir: Path, plays: Path, starter: WarmStart
) -> Iterator[Community]:
    """A host with an admission code, whose run waits for a second peer that never comes."""
    folder = tmp_path_factory.mktemp("waiting")
    config = {
        "run": {"name": "waiting"},
        "model": {"path": str(write_tiny_llama(folder / "tiny", glass_dir)), "license": "MIT"},
        "data": {"path": str(plays), "license": "CC0-1.0", "sequence_length": 32},
        "sync": {"round_tokens": 1000, "min_peers": 2},
        "host": {"code": "please"},
    }
    with Community(folder, config, starter=starter, fixed_ports=True) as community:
        community.host()
        yield community


@pytest.mark.swarm
def test_a_wrong_admission_code_is_refused(waiting: Community, tmp_path: Path, starter: WarmStart) -> None:
    options = ("--yes", "--json", "--device", "cpu", "--listen", "127.0.0.1:0")
    for code, started_by in (("pleas", None), (None, starter)):  # one as a volunteer starts it, with its own imports
        invite = Invite.parse(waiting.invite).model_copy(update={"code": code})
        done = potluck(tmp_path, "join", str(invite), *options, starter=started_by)
        assert done.returncode == 1, done.stderr
        assert "error: " in done.stderr and "code" in done.stderr and "Traceback" not in done.stderr
    assert not list((tmp_path / "runs").glob("*/certificate"))


@pytest.mark.swarm
def test_a_second_host_on_the_same_folder_or_port_is_refused(
    waiting: Community, tmp_path: Path, starter: WarmStart
) -> None:
    done = potluck(tmp_path, "host", waiting.config, "--folder", waiting.run, "--json", starter=starter)
    check_refused(done, 2, "another host runs in this folder", "stop it first")
    done = potluck(tmp_path, "host", waiting.config, "--folder", tmp_path / "other", "--json", starter=starter)
    check_refused(done, 2, "cannot listen on 127.0.0.1:", "choose another host.listen")


@pytest.mark.swarm
def test_two_peers_do_not_share_a_home(waiting: Community) -> None:
    first = waiting.peer("first")
    first.wait_for("waiting", lambda event: "1 more" in event["reason"])
    second = waiting.peer("first")
    assert second.wait() == 2
    assert "error: another peer of this run is using" in second.said and "--home" in second.said
    waiting.note_sockets()
    assert first.stop() == 0
    assert first.find("step", step="left")
    waiting.check_nothing_left("first")


@pytest.mark.swarm
def test_status_says_how_the_run_stands(waiting: Community, tmp_path: Path) -> None:
    told = json.loads(potluck(tmp_path, "status", waiting.invite, "--json").stdout)
    assert (told["name"], told["round"], told["finished"]) == ("waiting", 0, False)
    (tmp_path / "invite.txt").write_text(f"\n  {waiting.invite[:50]}\n{waiting.invite[50:]}\n")
    done = potluck(tmp_path, "status", tmp_path / "invite.txt")
    assert done.returncode == 0 and done.stdout.startswith("waiting: round 0 of")


@pytest.mark.swarm
def test_a_run_whose_terms_nobody_agrees_to_is_not_joined(
    waiting: Community, tmp_path: Path, starter: WarmStart
) -> None:
    options = ("--device", "cpu", "--listen", "127.0.0.1:0", "--lang", "en")
    done = potluck(tmp_path, "join", waiting.invite, *options, starter=starter)
    assert done.returncode == 1
    assert "--yes" in done.stderr and "licence" in done.stderr.lower()
    assert not list((tmp_path / "runs").glob("*/certificate")) and not (tmp_path / "trusted.json").exists()
