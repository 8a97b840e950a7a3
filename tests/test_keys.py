"""Keys: a peer's identity in the libp2p form, and a run's root key."""

from __future__ import annotations

import stat
from pathlib import Path

import base58
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from protocol import keys
from protocol.errors import FormatError, InputError, SignatureError
from protocol.keys import PeerIdentity, RootKey
from tests.kit.builders import fixed_ed25519, fixed_root_key


@pytest.fixture
def identity() -> PeerIdentity:
    return PeerIdentity(fixed_ed25519("peer"))


def test_an_identity_is_written_in_the_libp2p_form(identity: PeerIdentity) -> None:
    data = identity.to_bytes()
    assert len(data) == 68
    assert data[:4] == bytes.fromhex("08011240")
    assert data[36:] == identity.public_bytes
    assert PeerIdentity.from_bytes(data).peer_id == identity.peer_id


def test_the_peer_id_is_the_libp2p_one_and_holds_the_public_key(identity: PeerIdentity) -> None:
    assert base58.b58decode(identity.peer_id) == bytes.fromhex("002408011220") + identity.public_bytes
    assert keys.peer_public_key(identity.peer_id) == identity.private_key.public_key()


def test_the_peer_id_of_the_libp2p_spec_is_read() -> None:
    # libp2p specs, peer-ids.md, the Ed25519 example
    assert keys.peer_public_key("12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA")


@pytest.mark.parametrize(
    "change",
    [lambda data: data[:-1], lambda data: data + b"x", lambda data: b"\x08\x02" + data[2:], lambda data: b""],
)
def test_a_damaged_identity_is_refused(identity: PeerIdentity, change) -> None:
    with pytest.raises(FormatError, match="not an Ed25519 libp2p identity"):
        PeerIdentity.from_bytes(change(identity.to_bytes()))


def test_an_identity_whose_halves_do_not_match_is_refused(identity: PeerIdentity) -> None:
    other = PeerIdentity(fixed_ed25519("other"))
    with pytest.raises(FormatError, match="does not match"):
        PeerIdentity.from_bytes(identity.to_bytes()[:36] + other.public_bytes)


def test_a_new_identity_is_readable_by_its_owner_alone_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "identity"
    made = PeerIdentity.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert PeerIdentity.load_or_create(path).peer_id == made.peer_id


def test_a_file_that_is_no_identity_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    path.write_bytes(b"my diary")
    with pytest.raises(InputError, match="identity") as caught:
        PeerIdentity.load_or_create(path)
    assert caught.value.hint
    assert path.read_bytes() == b"my diary"


def test_a_peer_signature_holds_for_its_message_and_peer_alone(identity: PeerIdentity) -> None:
    signature = identity.sign(b"message")
    keys.verify_peer_signature(identity.peer_id, signature, b"message")
    for peer_id, signed, message in [
        (identity.peer_id, signature, b"another message"),
        (PeerIdentity(fixed_ed25519("other")).peer_id, signature, b"message"),
        (identity.peer_id, bytes(64), b"message"),
        (identity.peer_id, b"", b"message"),
    ]:
        with pytest.raises(SignatureError):
            keys.verify_peer_signature(peer_id, signed, message)


@pytest.mark.parametrize("peer_id", ["", "12D3KooW", "0" * 52, "é" * 52, "Q" * 52, "1" * 52])
def test_what_is_no_peer_id_is_refused(peer_id: str) -> None:
    with pytest.raises(FormatError, match=r"not (a|the) peer id"):
        keys.peer_public_key(peer_id)


def test_a_root_key_is_kept_private_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "root.pem"
    made = RootKey.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert RootKey.load_or_create(path).keyid == made.keyid


@pytest.mark.parametrize("kind", ["garbage", "P-384", "Ed25519"])
def test_a_file_that_holds_another_key_is_refused(tmp_path: Path, kind: str) -> None:
    key = {"P-384": lambda: ec.generate_private_key(ec.SECP384R1()), "Ed25519": lambda: fixed_ed25519("x")}.get(kind)
    path = tmp_path / "root.pem"
    path.write_bytes(
        b"garbage"
        if key is None
        else key().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    with pytest.raises(InputError):
        RootKey.load_or_create(path)


def test_a_root_signature_holds_for_its_message_and_key_alone() -> None:
    root = fixed_root_key()
    signature = root.sign(b"message")
    keys.verify_root_signature(root.public_key, signature, b"message")
    for key, message in [(root.public_key, b"other"), (fixed_root_key(2).public_key, b"message")]:
        with pytest.raises(SignatureError):
            keys.verify_root_signature(key, signature, message)
    with pytest.raises(SignatureError):
        keys.verify_root_signature(root.public_key, b"not DER", b"message")


def test_the_fingerprint_is_that_of_the_der_form() -> None:
    # openssl ec -in root.pem -pubout -outform DER | sha256sum, of the key whose private number is 1
    root = fixed_root_key(1)
    assert keys.fingerprint(root.public_key) == "5cd252fb0ce8932436faf8ccd1040981b89ee4ad6b9fe9e2a2b7e71aacb27cd3"
    assert keys.load_public_pem(keys.public_pem(root.public_key)) == root.public_key


def test_a_public_key_of_another_kind_is_refused() -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    pem = other.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for data in (pem, b"", b"-----BEGIN PUBLIC KEY-----\n", b"x" * 5000):
        with pytest.raises(FormatError):
            keys.load_public_pem(data)
