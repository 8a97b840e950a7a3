"""A host in its folder: one at a time, the same run at each later start, and nothing else is taken for it."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from coordinator.host import Host
from coordinator.host_screen import HostScreen
from coordinator.run_folder import RunFolder as HostFolder
from peer.link.client import CoordinatorClient
from peer.training.genesis import load_state
from protocol.errors import CoordinatorAway, InputError, PotluckError, RefusedError, RunSpecError
from protocol.keys import PeerIdentity
from protocol.release import this_release
from protocol.run_spec import RunSpec
from protocol.status import RunStatus
from tests.kit.coordinator import Swarm, start_host, write_run, write_text


def test_second_host_in_a_folder_is_refused(tmp_path: Path) -> None:
    config = write_run(tmp_path / "source")
    host = start_host(config, tmp_path / "run")
    try:
        with pytest.raises(InputError, match=f"another host runs in this folder .process {os.getpid()}."):
            start_host(config, tmp_path / "run")
    finally:
        host.stop()
    start_host(config, tmp_path / "run").stop()


def test_second_host_on_a_port_is_refused(tmp_path: Path) -> None:
    first = start_host(write_run(tmp_path / "one"), tmp_path / "run-one")
    try:
        config = write_run(tmp_path / "two")
        config.write_text(config.read_text().replace("127.0.0.1:0", first.invite.addresses[0], 1))
        with pytest.raises(InputError, match="cannot listen on"):
            start_host(config, tmp_path / "run-two")
    finally:
        first.stop()


def test_later_start_goes_on_with_the_same_run(tmp_path: Path) -> None:
    config, folder = write_run(tmp_path / "source"), tmp_path / "run"
    host = start_host(config, folder)
    first = host.invite
    kept = {name: (folder / name).read_bytes() for name in ("root.pem", "tls.crt", "run-card.json", "run.json")}
    with CoordinatorClient(first) as client:
        swarm = Swarm.joined(client, client.get_run(), load_state(folder / "checkpoints" / "step-000000" / "model"))
        client.report(swarm.members[0].certificate, swarm.round().to_bytes())
    host.stop()
    again = start_host(config, folder)
    try:
        assert again.invite.model_copy(update={"addresses": first.addresses}) == first
        assert {name: (folder / name).read_bytes() for name in kept} == kept
        assert again.status().round == 1
        with CoordinatorClient(again.invite) as client:
            assert len(client.receipts(swarm.members[0].certificate)) == 1, "certificates outlive a restart"
            assert client.enroll(swarm.members[0].identity).certificate
            assert client.report(swarm.members[0].certificate, swarm.round(seed=2).to_bytes()).accepted
    finally:
        again.stop()
    assert RunStatus.from_bytes((folder / "status.json").read_bytes()).run == first.run
    for name in ("root.pem", "ledger.key", "membership.key", "tls.key"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600


def test_invite_holds_a_code_that_stays_unless_the_run_is_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = write_run(tmp_path / "source", code=None), tmp_path / "run"
    host = start_host(config, folder)
    try:
        HostScreen(as_json=False).started(host)
        HostScreen(as_json=True).started(host)
        told = capsys.readouterr()
        assert "by invite" in told.err and json.loads(told.out.splitlines()[-1])["open"] is False
        assert str(this_release()) in told.err
        assert json.loads(told.out.splitlines()[-1])["commit"] == this_release().commit
        with CoordinatorClient(host.invite.model_copy(update={"code": None})) as stranger:
            assert stranger.get_run(), "what a run is, anyone may know"
            with pytest.raises(RefusedError, match="this run is by invite"):
                stranger.enroll(PeerIdentity.generate())
        with CoordinatorClient(host.invite) as invited:
            assert invited.enroll(PeerIdentity.generate()).certificate
    finally:
        host.stop()
    assert len(host.invite.code or "") >= 20
    for name in ("admission.code", "invite.txt"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    assert HostFolder(folder).admission_code() == host.invite.code, "made once"
    config.write_text(config.read_text() + "open = true\n")
    opened = start_host(config, folder)
    try:
        HostScreen(as_json=False).started(opened)
        HostScreen(as_json=True).started(opened)
        told = capsys.readouterr()
        assert "This run is open" in told.err and json.loads(told.out.splitlines()[-1])["open"] is True
        with CoordinatorClient(opened.invite) as anyone:
            assert opened.invite.code is None and anyone.enroll(PeerIdentity.generate()).certificate
    finally:
        opened.stop()


@pytest.mark.parametrize(("lines", "code"), [("open = true", None), ('open = true\ncode = "wood"', "wood")])
def test_hosts_own_code_wins(tmp_path: Path, lines: str, code: str | None) -> None:
    host = Host(write_run(tmp_path / "source", code=None, host=lines), tmp_path / "run")
    assert host.code(HostFolder(tmp_path / "run")) == code


def test_full_run_says_so(tmp_path: Path) -> None:
    host = start_host(write_run(tmp_path / "source", host="max_members = 1\njoins_per_minute = 1"), tmp_path / "run")
    try:
        with CoordinatorClient(host.invite) as client:
            client.enroll(me := PeerIdentity.generate())
            with pytest.raises(RefusedError, match="this run is full") as refused:
                client.enroll(PeerIdentity.generate())
            assert refused.value.hint
            with pytest.raises(CoordinatorAway, match="too many new members from your network"):
                client.enroll(PeerIdentity.generate())
            assert client.enroll(me).certificate
    finally:
        host.stop()


def test_run_of_before_the_bounds_goes_on_as_it_began(tmp_path: Path) -> None:
    """Its run.toml says nothing of `clip` and `rules`; saying something else of them is another run."""
    config, folder = write_run(tmp_path / "source"), tmp_path / "run"
    plain = config.read_text()
    config.write_text(plain.replace("[sync]", "[sync]\nclip = 0\nrules = 1"))
    began = start_host(config, folder)
    began.stop()
    config.write_text(plain)
    again = start_host(config, folder)
    again.stop()
    assert again.invite == began.invite.model_copy(update={"addresses": again.invite.addresses})
    assert RunSpec.from_bytes((folder / "run.json").read_bytes()).sync.rules == 1
    config.write_text(plain.replace("[sync]", "[sync]\nclip = 3.0"))
    with pytest.raises(RunSpecError, match=r"sync\.clip: was null, is 3\.0"):
        start_host(config, folder)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("rounds = 4", "rounds = 5", "run.rounds: was 4, is 5"),
        ('license = "MIT"', 'license = "Apache-2.0"', "model.license"),
        ("round_tokens = 1000", "round_tokens = 2000", "sync.round_tokens: was 1000, is 2000"),
        ('path = "model"', 'path = "other"', "model: was"),
    ],
)
def test_changed_run_is_refused_and_the_change_is_named(tmp_path: Path, old: str, new: str, named: str) -> None:
    config, folder = write_run(tmp_path / "source"), tmp_path / "run"
    start_host(config, folder).stop()
    config.write_text(config.read_text().replace(old, new))
    with pytest.raises(RunSpecError, match="not the run in") as caught:
        start_host(config, folder)
    assert named in caught.value.message and "start a new run" in caught.value.hint


def test_changed_data_are_refused(tmp_path: Path) -> None:
    config, folder = write_run(tmp_path / "source"), tmp_path / "run"
    start_host(config, folder).stop()
    write_text(config.parent / "text.txt", words=3000)
    with pytest.raises(RunSpecError, match=r"data\.digest"):
        start_host(config, folder)


def test_keys_of_another_run_are_refused(tmp_path: Path) -> None:
    config, folder = write_run(tmp_path / "source"), tmp_path / "run"
    start_host(config, folder).stop()
    (folder / "membership.key").unlink()
    with pytest.raises(InputError, match="other keys"):
        start_host(config, folder)
    (folder / "root.pem").unlink()
    with pytest.raises(PotluckError, match="key"):
        start_host(config, folder)


def test_lost_ledger_is_not_replaced_by_a_new_one(tmp_path: Path) -> None:
    config, folder = write_run(tmp_path / "source"), tmp_path / "run"
    start_host(config, folder).stop()
    for path in folder.glob("ledger.db*"):
        path.unlink()
    with pytest.raises(InputError, match="holds a genesis"):
        start_host(config, folder)


def test_missing_data_are_said_plainly(tmp_path: Path) -> None:
    config = write_run(tmp_path / "source")
    (config.parent / "text.txt").unlink()
    with pytest.raises(InputError, match="no such data file"):
        start_host(config, tmp_path / "run")


def test_run_starts_from_a_checkpoint_of_another_run_only_when_that_verifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POTLUCK_HOME", str(tmp_path / "home"))
    first = start_host(write_run(tmp_path / "first"), tmp_path / "run-1")
    step, key = first.folder / "checkpoints" / "step-000000", first.invite.root
    first.stop()
    config = write_run(tmp_path / "second")
    plain = config.read_text()
    config.write_text(plain.replace('path = "model"', f'checkpoint = "{step}"', 1))
    with pytest.raises(InputError, match="signed by a key that you have not confirmed") as refused:
        start_host(config, tmp_path / "run-2")
    assert "model.key" in refused.value.hint
    config.write_text(plain.replace('path = "model"', f'checkpoint = "{step}"\nkey = "{key}"', 1))
    second = start_host(config, tmp_path / "run-2")
    second.stop()
    assert (
        load_state(second.folder / "checkpoints" / "step-000000" / "model").digest == load_state(step / "model").digest
    )
    (step / "model" / "LICENSE").write_text("changed\n")
    with pytest.raises(InputError, match="LICENSE: changed since it was signed"):
        start_host(config, tmp_path / "run-3")


def test_failed_start_lets_go_of_the_folder(tmp_path: Path) -> None:
    config = write_run(tmp_path / "source")
    text = config.read_text()
    config.write_text(text.replace("127.0.0.1:0", "256.0.0.1:1", 1))
    with pytest.raises(InputError):
        start_host(config, tmp_path / "run")
    config.write_text(text)
    before = threading.active_count()
    start_host(config, tmp_path / "run").stop()
    assert threading.active_count() <= before
