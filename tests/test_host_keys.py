"""A host's keys and records: damaged ones are made anew while nothing hangs on them, and named afterwards."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator import tls
from coordinator.host import Host
from coordinator.rendezvous import Rendezvous
from coordinator.run_folder import RunFolder
from protocol.errors import FormatError, InputError
from tests.kit.coordinator import start_host, write_run


def _with_passphrase() -> bytes:
    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )


DAMAGE = {
    "empty": b"",
    "cut": b"-----BEGIN PRIVATE KEY-----\nMC4CAQ",
    "noise": b"\xff\x00" * 40,
    "locked": _with_passphrase(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("name", ["root.pem", "ledger.key", "membership.key"])
def test_a_damaged_key_is_made_anew_before_the_run_and_never_after(name: str, damage: bytes, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / name).write_bytes(damage)
    load = {"root.pem": folder.root_key, "ledger.key": folder.ledger_key, "membership.key": folder.membership_key}[name]
    with pytest.raises(FormatError, match=name) as caught:
        load()
    assert "backup" in caught.value.hint and (tmp_path / name).read_bytes() == damage
    folder.renew_damaged()
    assert load() is not None and (tmp_path / "damaged" / name).read_bytes() == damage


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("name", ["tls.key", "tls.crt", "admission.code"])
def test_what_invites_name_is_made_anew_while_there_is_no_invite(name: str, damage: bytes, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)

    def load() -> object:
        if name == "admission.code":
            return folder.before_invite(folder.admission_code, name)
        return folder.before_invite(lambda: tls.load_or_create(tmp_path), "tls.key", "tls.crt")

    load()
    damage = b"" if name == "admission.code" else damage
    (tmp_path / name).write_bytes(damage)
    assert load() and (tmp_path / name).read_bytes() != damage
    (tmp_path / "invite.txt").write_text("potluck1.x")
    (tmp_path / name).write_bytes(damage)
    with pytest.raises(FormatError, match=name) as caught:
        load()
    assert "new invite" in caught.value.hint and (tmp_path / name).read_bytes() == damage


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_rendezvous_key_is_made_anew_at_any_time(damage: bytes, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "rendezvous.key").write_bytes(damage)
    (tmp_path / "invite.txt").write_text("potluck1.x")
    first = folder.rendezvous_key()
    assert first.peer_id == folder.rendezvous_key().peer_id and len((tmp_path / "rendezvous.key").read_bytes()) == 68


def test_keys_that_an_earlier_start_left_empty_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def for_run(identity: Path, *_: object) -> Rendezvous:
        given.append(identity.read_bytes())
        return Rendezvous([sys.executable, "-c", ""], tmp_path / "log")

    monkeypatch.setattr(Rendezvous, "for_run", for_run)
    config, folder = write_run(tmp_path / "source", code=None), tmp_path / "run"
    names = ("rendezvous.key", "root.pem", "ledger.key", "membership.key", "tls.key", "tls.crt", "admission.code")
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    with Host(config, folder) as running:
        assert running.invite.code
    assert all((folder / name).stat().st_size for name in names) and [len(identity) for identity in given] == [68]


@pytest.mark.parametrize("name", ["root.pem", "ledger.key", "membership.key"])
def test_a_run_goes_on_with_its_own_keys_or_not_at_all(name: str, tmp_path: Path) -> None:
    config, folder = write_run(tmp_path / "source"), tmp_path / "run"
    start_host(config, folder).stop()
    (folder / name).write_bytes(b"")
    with pytest.raises(InputError, match=f"{name}: empty") as caught:
        start_host(config, folder)
    assert "backup" in caught.value.hint and (folder / name).read_bytes() == b""


@pytest.mark.parametrize("name", ["root.pem", "ledger.key", "tls.key", "tls.crt", "admission.code", "lock"])
def test_a_folder_where_a_key_should_be_is_an_error_and_no_crash(name: str, tmp_path: Path) -> None:
    config, folder = write_run(tmp_path / "source", code=None), tmp_path / "run"
    (folder / name).mkdir(parents=True)
    with pytest.raises(InputError, match=f"{name}: .*Is a directory"):
        start_host(config, folder)


@pytest.mark.parametrize("name", ["run.json", "run-card.json"])
def test_a_damaged_record_of_the_run_is_named(name: str, tmp_path: Path) -> None:
    config, folder = write_run(tmp_path / "source"), tmp_path / "run"
    start_host(config, folder).stop()
    (folder / name).write_bytes((folder / name).read_bytes()[:100])
    with pytest.raises(InputError, match=f"{name}: ") as caught:
        start_host(config, folder)
    assert "backup" in caught.value.hint
