"""An identity in one file under a passphrase: brought back whole, or refused in one line with nothing lost."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st

from commands import passphrases
from peer.disk import own_identity
from peer.disk.own_identity import OwnIdentity
from peer.disk.run_lock import RunLock
from protocol import canonical, identity_export
from protocol.errors import FormatError, InputError, PotluckError, RefusedError, UnsupportedError
from protocol.identity_export import LEAST_LOG2_N, MOST_LOG2_N, IdentityExport, Passphrase, seal, unseal
from protocol.keys import PeerIdentity
from tests.kit.vectors import PEERS, stored

PHRASE = "when everyone brings wood"
WOOD = Passphrase(PHRASE)


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity_export, "LOG2_N", LEAST_LOG2_N)


@pytest.fixture(scope="module")
def export() -> bytes:
    return seal(PEERS[0], WOOD, LEAST_LOG2_N)


def changed(export: bytes, **changes: Any) -> bytes:
    """With other values, and check digits that match; a value may be a function of what is there."""
    value = json.loads(export)
    del value["sha256"]
    for name, change in changes.items():
        value[name] = change(value[name]) if callable(change) else change
    return json.dumps(value | {"sha256": canonical.digest(value)}).encode()


# ---- the file --------------------------------------------------------------------------------------------------------


def test_an_export_gives_the_same_key_back_and_says_whose_it_is_without_the_passphrase(export: bytes) -> None:
    assert unseal(export, WOOD).to_bytes() == PEERS[0].to_bytes()
    assert IdentityExport.parse(export).peer_id == PEERS[0].peer_id
    assert PEERS[0].to_bytes()[4:36].hex() not in export.decode(), "the seed stands nowhere in the clear"


def test_an_export_of_before_opens_for_ever() -> None:
    assert unseal(stored("identity-export.json"), WOOD).to_bytes() == stored("identity")


def test_two_exports_of_one_key_share_neither_salt_nor_nonce(export: bytes) -> None:
    one, two = json.loads(export), json.loads(seal(PEERS[0], WOOD, LEAST_LOG2_N))
    assert one["kdf"]["salt"] != two["kdf"]["salt"] and one["cipher"]["nonce"] != two["cipher"]["nonce"]
    assert one["sealed"] != two["sealed"]


def test_a_passphrase_is_the_same_however_a_keyboard_composes_it() -> None:
    file = seal(PEERS[0], Passphrase("cafe\u0301 au lait"), LEAST_LOG2_N)
    assert unseal(file, Passphrase("caf\u00e9 au lait")).peer_id == PEERS[0].peer_id


@pytest.mark.parametrize(
    ("text", "said"), [("", "0 characters"), ("seven77", "7 characters"), ("x" * 2000, "at most 1024 characters")]
)
def test_a_passphrase_has_bounds(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Passphrase(text)


def test_a_wrong_passphrase_is_called_that(export: bytes) -> None:
    with pytest.raises(RefusedError, match=r"^wrong passphrase$"):
        unseal(export, Passphrase(PHRASE.upper()))


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (lambda data: data.replace(b'"p": 1', b'"p": 2'), FormatError, "check digits"),
        (lambda data: data.replace(b'"version": 1', b'"version": 7'), FormatError, "check digits"),
        (lambda data: data[:300], FormatError, "cannot be read to its end"),
        (lambda data: data + b" " * 5000, FormatError, "cannot be read to its end"),
        (lambda data: changed(data, version=2), UnsupportedError, "of version 2; this Potluck reads version 1"),
        (lambda data: changed(data, version={"a": []}), UnsupportedError, "of version"),
        (lambda data: changed(data, format="something else"), FormatError, "not an export of an identity"),
        (lambda data: changed(data, sealed="00"), FormatError, "sealed"),
        (lambda data: changed(data, more=1), FormatError, "more"),
        (lambda data: changed(data, peer_id="me"), FormatError, "peer_id"),
        (lambda data: changed(data, kdf=[]), FormatError, "kdf"),
        (lambda data: changed(data, peer_id=PEERS[1].peer_id), RefusedError, "wrong passphrase"),
        (lambda data: changed(data, sealed=lambda s: "10"[s[0] == "1"] + s[1:]), RefusedError, "wrong passphrase"),
        (lambda data: PEERS[0].to_bytes(), FormatError, "a plain backup, not an export"),
        (lambda data: b"", FormatError, "not an export of an identity"),
        (lambda data: b"[]", FormatError, "not an export of an identity"),
        (lambda data: bytes(range(256)) * 20, FormatError, "not an export of an identity"),
    ],
)  # fmt: skip
def test_what_is_no_whole_export_is_refused_by_name(
    export: bytes, spoil: Callable[[bytes], bytes], error: type[PotluckError], said: str
) -> None:
    assert spoil(export) != export
    with pytest.raises(error, match=said):
        unseal(spoil(export), WOOD)


@pytest.mark.parametrize(
    "kdf",
    [{"log2_n": MOST_LOG2_N + 1}, {"log2_n": 62}, {"log2_n": 1}, {"r": 1 << 20}, {"p": 1 << 20}, {"name": "none"}],
)
def test_what_scrypt_would_cost_is_bounded_before_it_is_computed(
    export: bytes, kdf: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity_export, "Scrypt", lambda **settings: pytest.fail("it was computed"))
    with pytest.raises(FormatError, match=rf"kdf\.{next(iter(kdf))}"):
        unseal(changed(export, kdf=lambda old: old | kdf), WOOD)


def test_a_computer_without_the_memory_says_so(export: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def derive(data: bytes) -> bytes:
        raise MemoryError

    monkeypatch.setattr(identity_export, "Scrypt", lambda **settings: SimpleNamespace(derive=derive))
    with pytest.raises(InputError, match="needs 4 MB of memory"):
        unseal(export, WOOD)


def test_an_export_that_holds_another_key_than_it_says_is_refused(export: bytes) -> None:
    parsed = IdentityExport.parse(export)
    nonce = bytes.fromhex(parsed.cipher.nonce)
    sealed = ChaCha20Poly1305(WOOD.key(parsed.kdf)).encrypt(nonce, PEERS[1].to_bytes(), parsed.header)
    with pytest.raises(FormatError, match=f"it is of {PEERS[0].peer_id}, and holds the key of {PEERS[1].peer_id}"):
        unseal(changed(export, sealed=sealed.hex()), WOOD)


@settings(max_examples=60)
@given(place=st.integers(0, 600), byte=st.integers(0, 255))
def test_no_byte_that_is_changed_gives_another_key_or_another_kind_of_error(place: int, byte: int) -> None:
    export = bytearray(stored("identity-export.json"))
    export[place % len(export)] = byte
    with contextlib.suppress(PotluckError):
        assert IdentityExport.parse(bytes(export)) == IdentityExport.parse(stored("identity-export.json"))


# ---- in its place ----------------------------------------------------------------------------------------------------


def own(home: Path, identity: PeerIdentity) -> OwnIdentity:
    result = OwnIdentity(home)
    result.replace(identity)
    return result


def test_an_export_is_private_opens_and_is_remembered(tmp_path: Path) -> None:
    here = own(tmp_path, PEERS[0])
    assert not here.has_copy(PEERS[0].peer_id)
    here.export(tmp_path / "me.json", WOOD)
    assert (tmp_path / "me.json").stat().st_mode & 0o777 == 0o600
    assert here.has_copy(PEERS[0].peer_id) and not here.has_copy(PEERS[1].peer_id)
    there = OwnIdentity(tmp_path / "there")
    assert there.bring_in((tmp_path / "me.json").read_bytes(), WOOD).kept is None
    assert there.load().peer_id == PEERS[0].peer_id and there.has_copy(PEERS[0].peer_id)
    assert there.path.stat().st_mode & 0o777 == 0o600


def test_a_memory_of_copies_that_is_damaged_asks_again(tmp_path: Path) -> None:
    here = own(tmp_path, PEERS[0])
    for damaged in (b"", b"[1]", b"{", b"{}" + bytes(1 << 17)):
        (tmp_path / "exported.json").write_bytes(damaged)
        assert not here.has_copy(PEERS[0].peer_id)
    here.note_copy(PEERS[0].peer_id)
    assert here.has_copy(PEERS[0].peer_id)


def test_an_export_is_written_over_nothing_but_an_earlier_one_of_its_own(tmp_path: Path, export: bytes) -> None:
    here, file = own(tmp_path, PEERS[0]), tmp_path / "me.json"
    file.write_bytes(export)
    with pytest.raises(InputError, match="is there already"):
        here.export(file, WOOD)
    here.export(file, WOOD, replace=True)
    assert file.read_bytes() != export
    others = {"letter": b"dear", "other": seal(PEERS[1], WOOD), "later": changed(export, version=7)}
    for name, data in others.items():
        (tmp_path / name).write_bytes(data)
    for name in (*others, "identity"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(InputError, match=r"no export of an identity|of another identity|of version 7"):
            here.export(tmp_path / name, WOOD, replace=True)
        assert (tmp_path / name).read_bytes() == before


def test_an_identity_that_is_here_makes_way_only_when_asked_and_is_kept(tmp_path: Path, export: bytes) -> None:
    here = own(tmp_path, PEERS[1])
    with pytest.raises(InputError, match=f"another identity is here, {PEERS[1].peer_id}"):
        here.bring_in(export, WOOD)
    assert here.load().peer_id == PEERS[1].peer_id
    replaced = here.bring_in(export, WOOD, replace=True)
    assert here.load().peer_id == PEERS[0].peer_id
    assert replaced.kept == tmp_path / f"identity.{PEERS[1].peer_id[-8:]}"
    assert replaced.kept.read_bytes() == PEERS[1].to_bytes() and replaced.kept.stat().st_mode & 0o777 == 0o600
    assert here.bring_in(export, WOOD).kept is None, "the same one may come again"


def test_a_damaged_identity_makes_way_for_its_export_and_is_kept_as_it_is(tmp_path: Path, export: bytes) -> None:
    here = OwnIdentity(tmp_path)
    here.path.write_bytes(b"half of a k")
    with pytest.raises(InputError, match="is there, and damaged"):
        here.bring_in(export, WOOD)
    kept = here.bring_in(export, WOOD, replace=True).kept
    assert kept is not None and kept.read_bytes() == b"half of a k" and here.load().peer_id == PEERS[0].peer_id


def test_a_wrong_passphrase_and_a_full_disk_leave_the_identity_that_is_here(
    tmp_path: Path, export: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = own(tmp_path, PEERS[1])
    with pytest.raises(RefusedError):
        here.bring_in(export, Passphrase("something else"), replace=True)

    def full(path: Path, data: bytes, *, private: bool = False) -> None:
        raise InputError(f"{path}: the disk is full")

    monkeypatch.setattr(own_identity, "write_file", full)
    with pytest.raises(InputError, match="full"):
        here.bring_in(export, WOOD, replace=True)
    assert here.load().peer_id == PEERS[1].peer_id and not here.has_copy(PEERS[0].peer_id)


def test_while_a_peer_runs_its_identity_stays(tmp_path: Path, export: bytes) -> None:
    here, folder = own(tmp_path, PEERS[1]), tmp_path / "runs" / ("ab" * 8)
    folder.mkdir(parents=True)
    lock = RunLock(folder / "lock")
    try:
        with pytest.raises(InputError, match="a peer runs with the identity that is here"):
            here.bring_in(export, WOOD, replace=True)
    finally:
        lock.close()
    assert here.load().peer_id == PEERS[1].peer_id


# ---- the passphrase as it comes --------------------------------------------------------------------------------------


def at_a_terminal(monkeypatch: pytest.MonkeyPatch, *typed: str) -> list[str]:
    """A person who types these; returns what was asked."""
    asked, answers = list[str](), iter(typed)

    def getpass(prompt: str) -> str:
        asked.append(prompt)
        answer = next(answers)
        if answer == "^D":
            raise EOFError
        return answer

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(passphrases.getpass, "getpass", getpass)
    return asked


def test_a_new_passphrase_is_asked_for_twice_and_a_known_one_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = at_a_terminal(monkeypatch, PHRASE, PHRASE, PHRASE)
    assert passphrases.ask(twice=True) == PHRASE and len(asked) == 2
    assert passphrases.ask(twice=False) == PHRASE and len(asked) == 3


@pytest.mark.parametrize(("typed", "said"), [((PHRASE, PHRASE + " "), "differ"), (("^D",), "no passphrase was given")])
def test_a_slip_of_the_hand_is_told(typed: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    at_a_terminal(monkeypatch, *typed)
    with pytest.raises(InputError, match=said):
        passphrases.ask(twice=True)


def test_where_nobody_is_there_a_file_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: False))
    with pytest.raises(InputError, match="nobody is there to type"):
        passphrases.ask(twice=False)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (PHRASE.encode(), None),
        (b"\xef\xbb\xbf" + PHRASE.encode() + b"\r\n", None),
        (b"", "expected one line"),
        (b"a\nb\n", "expected one line"),
        (b"a" * 9000, "expected one line"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_file_gives_its_only_line(data: bytes, said: str | None, tmp_path: Path) -> None:
    file = tmp_path / "phrase"
    file.write_bytes(data)
    if said is None:
        assert passphrases.read_line(file, 4096) == PHRASE
        return
    with pytest.raises(InputError, match=said):
        passphrases.read_line(file, 4096)


def test_a_file_that_is_not_there_or_has_no_end_is_no_passphrase(tmp_path: Path) -> None:
    for name in ("nothing", ".", "/dev/zero"):
        with pytest.raises(InputError):
            passphrases.read_line(tmp_path / name, 4096)
