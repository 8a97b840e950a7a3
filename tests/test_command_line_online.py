"""The command line and a coordinator that is not there, not the right one, or does not let one in."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator import tls
from lab.processes import Community, eventually
from lab.training_fixtures import write_tiny_llama
from lab.warm_start import WarmStart
from protocol.invite import Invite
from tests.kit.command_line import an_invite, check_refused, potluck


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
