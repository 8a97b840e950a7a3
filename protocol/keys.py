"""Keys: a peer's Ed25519 identity, and a run's P-256 root key.

A peer has one key. It is its libp2p identity too, so the peer id that libp2p authenticates on every connection *is*
the public key, and anything signed by a peer can be checked with its peer id alone.

    identity file, 68 bytes: 08 01 12 40 | 32-byte seed | 32-byte public key      (libp2p PrivateKey protobuf)
    peer id: base58btc(00 24 08 01 12 20 | 32-byte public key)                    (libp2p peer-ids spec)

The root key signs checkpoints and the run card. It is P-256 because OpenSSF Model Signing takes no Ed25519 key.
Its fingerprint is the SHA-256 of the DER SubjectPublicKeyInfo.

    >>> identity = PeerIdentity.generate()
    >>> verify_peer_signature(identity.peer_id, identity.sign(b"hello"), b"hello")
    >>> identity.peer_id.startswith("12D3KooW")
    True
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import base58
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from protocol.canonical import sha256_hex
from protocol.disk import write_file
from protocol.errors import FormatError, InputError, SignatureError

_LIBP2P_PRIVATE_PREFIX = bytes.fromhex("08011240")
_LIBP2P_PEER_ID_PREFIX = bytes.fromhex("002408011220")
_RAW = serialization.Encoding.Raw
MAX_PEM_BYTES = 4096
_CURVE_HASHES = {"secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384(), "secp521r1": hashes.SHA512()}
KEY_HINT = "restore it from a backup; a run never changes its keys"


@dataclass(frozen=True)
class PeerIdentity:
    """A peer's private Ed25519 key."""

    private_key: Ed25519PrivateKey

    @classmethod
    def generate(cls) -> PeerIdentity:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_bytes(cls, data: bytes) -> PeerIdentity:
        """Read the 68-byte libp2p form.

        Raises:
            FormatError: another length or prefix, or the two halves do not belong together.
        """
        if len(data) != 68 or not data.startswith(_LIBP2P_PRIVATE_PREFIX):
            raise FormatError("not an Ed25519 libp2p identity (expected 68 bytes that begin 08 01 12 40)")
        identity = cls(Ed25519PrivateKey.from_private_bytes(data[4:36]))
        if identity.public_bytes != data[36:]:
            raise FormatError("the identity's public half does not match its private half")
        return identity

    @classmethod
    def load_or_create(cls, path: Path) -> PeerIdentity:
        """Read the identity at `path`, or make one there, readable by its owner alone.

        Raises:
            FormatError: something is there that is no identity.
            InputError: it cannot be read.
        """
        hint = "bring it back (`potluck identity import`, or `restore` from a plain backup), or move it away"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            identity = cls.generate()
            write_file(path, identity.to_bytes(), private=True)
            return identity
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}", hint) from error
        try:
            return cls.from_bytes(data)
        except FormatError as error:
            what = error.message if data else "empty"
            raise FormatError(f"{path}: {what}", hint) from error

    def to_bytes(self) -> bytes:
        seed = self.private_key.private_bytes(_RAW, serialization.PrivateFormat.Raw, serialization.NoEncryption())
        return _LIBP2P_PRIVATE_PREFIX + seed + self.public_bytes

    @property
    def public_bytes(self) -> bytes:
        return self.private_key.public_key().public_bytes(_RAW, serialization.PublicFormat.Raw)

    @property
    def peer_id(self) -> str:
        return peer_id_of(self.private_key.public_key())

    @property
    def keyid(self) -> str:
        return self.peer_id

    def sign(self, message: bytes) -> bytes:
        return self.private_key.sign(message)


def peer_id_of(key: Ed25519PublicKey) -> str:
    """The peer id that an Ed25519 key is."""
    return base58.b58encode(_LIBP2P_PEER_ID_PREFIX + key.public_bytes_raw()).decode()


def peer_public_key(peer_id: str) -> Ed25519PublicKey:
    """The public key inside a peer id.

    Raises:
        FormatError: not the base58 peer id of an Ed25519 key.
    """
    if not 40 <= len(peer_id) <= 64:
        raise FormatError("not a peer id: expected about 52 base58 characters")
    try:
        raw = base58.b58decode(peer_id)
    except ValueError as error:
        raise FormatError(f"not a peer id: {error}") from error
    if len(raw) != 38 or not raw.startswith(_LIBP2P_PEER_ID_PREFIX):
        raise FormatError("not the peer id of an Ed25519 key")
    return Ed25519PublicKey.from_public_bytes(raw[6:])


def verify_peer_signature(peer_id: str, signature: bytes, message: bytes) -> None:
    """Check a signature by the key that `peer_id` is.

    Raises:
        FormatError: `peer_id` is none.
        SignatureError: the signature does not hold.
    """
    try:
        peer_public_key(peer_id).verify(signature, message)
    except InvalidSignature as error:
        raise SignatureError(f"the signature is not by peer {peer_id}") from error


@dataclass(frozen=True)
class RootKey:
    """A run's private P-256 key: signs checkpoints (by model-signing) and the run card."""

    private_key: ec.EllipticCurvePrivateKey

    @classmethod
    def load_or_create(cls, path: Path, hint: str = KEY_HINT) -> RootKey:
        """Read the PEM at `path`, or make one there, readable by its owner alone.

        Args:
            hint: what to do about a damaged one.

        Raises:
            FormatError: the file is there and holds no P-256 private key.
            InputError: it cannot be read or made.
        """
        private_key = load_private_pem(path, hint)
        if private_key is None:
            key = cls(ec.generate_private_key(ec.SECP256R1()))
            write_file(path, key.to_pem(), private=True)
            return key
        if not isinstance(private_key, ec.EllipticCurvePrivateKey) or private_key.curve.name != "secp256r1":
            raise FormatError(f"{path}: expected a P-256 key", hint)
        return cls(private_key)

    def to_pem(self) -> bytes:
        return self.private_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self.private_key.public_key()

    @property
    def keyid(self) -> str:
        return fingerprint(self.public_key)

    def sign(self, message: bytes) -> bytes:
        """ECDSA-SHA256, DER."""
        return self.private_key.sign(message, ec.ECDSA(hashes.SHA256()))


def fingerprint(public_key: ec.EllipticCurvePublicKey) -> str:
    """Hex SHA-256 of the DER SubjectPublicKeyInfo: what a person compares."""
    return sha256_hex(public_der(public_key))


def public_der(public_key: ec.EllipticCurvePublicKey) -> bytes:
    return public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def public_pem(public_key: ec.EllipticCurvePublicKey) -> bytes:
    return public_key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def load_private_pem(path: Path, hint: str = KEY_HINT) -> object | None:
    """The private key in a PEM file without a passphrase; None: there is no such file.

    Raises:
        FormatError: something else is there; a file that is cut short, say.
        InputError: it cannot be read.
    """
    try:
        pem = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", hint) from error
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: it has a passphrase
        what = "not a PEM private key without a passphrase" if pem else "empty, expected a PEM private key"
        raise FormatError(f"{path}: {what}", hint) from error


def load_public_pem(pem: bytes) -> ec.EllipticCurvePublicKey:
    """Read a run's root key, which is on P-256.

    Raises:
        FormatError: anything else.
    """
    key = load_signer_pem(pem)
    if key.curve.name != "secp256r1":
        raise FormatError("expected a P-256 public key")
    return key


def load_signer_pem(pem: bytes) -> ec.EllipticCurvePublicKey:
    """Read a key that OMS signers may have: on P-256, P-384 or P-521.

    Raises:
        FormatError: anything else.
    """
    if len(pem) > MAX_PEM_BYTES:
        raise FormatError(f"expected a PEM public key of under {MAX_PEM_BYTES} bytes, got {len(pem)}")
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FormatError("not a PEM public key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVE_HASHES:
        raise FormatError("expected a public key on P-256, P-384 or P-521")
    return key


def verify_ecdsa(public_key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> None:
    """Check an ECDSA signature, with the hash that goes with the key's curve.

    Raises:
        SignatureError: it does not hold.
    """
    try:
        public_key.verify(signature, message, ec.ECDSA(_CURVE_HASHES[public_key.curve.name]))
    except InvalidSignature as error:
        raise SignatureError(f"the signature is not by the key {fingerprint(public_key)[:16]}…") from error


def verify_root_signature(public_key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> None:
    """Check an ECDSA-SHA256 signature by a root key.

    Raises:
        SignatureError: it does not hold.
    """
    try:
        public_key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise SignatureError(f"the signature is not by the root key {fingerprint(public_key)[:16]}…") from error
