"""The coordinator's TLS key and certificate: P-256 and self-signed, since the invite pins it whole. `host` calls it.

gRPC refuses Ed25519 server certificates and expired ones, so this one is P-256 and lasts for ten years.
"""

from __future__ import annotations

import datetime
import hashlib
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocol.disk import write_file
from protocol.errors import FormatError, InputError
from protocol.keys import RootKey
from protocol.rpc import TLS_NAME

LIFETIME = datetime.timedelta(days=3653)


@dataclass(frozen=True)
class TlsIdentity:
    """What the server shows."""

    key_pem: bytes
    certificate_pem: bytes

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the DER certificate: what the invite pins."""
        certificate = x509.load_pem_x509_certificate(self.certificate_pem)
        return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def load_or_create(folder: Path) -> TlsIdentity:
    """The TLS identity in a run's folder, made when it is not there.

    Raises:
        FormatError: a file is damaged, or they do not belong together.
        InputError: the certificate has expired, or a file cannot be read or made.
    """
    hint = "move tls.key and tls.crt away for a new certificate; volunteers then need a new invite"
    key = RootKey.load_or_create(folder / "tls.key", hint)  # a P-256 key like the root's, and no relation
    path = folder / "tls.crt"
    try:
        pem = path.read_bytes()
    except FileNotFoundError:
        pem = _self_signed(key).public_bytes(serialization.Encoding.PEM)
        write_file(path, pem)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", hint) from error
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise FormatError(f"{path}: not a PEM certificate", hint) from error
    if certificate.public_key() != key.public_key:
        raise FormatError(f"{path}: the certificate is not of the key in tls.key", hint)
    if certificate.not_valid_after_utc <= datetime.datetime.now(datetime.UTC):
        raise InputError(f"{path}: the certificate has expired", hint)
    return TlsIdentity(key.to_pem(), pem)


def _self_signed(key: RootKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, TLS_NAME)])
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # volunteers' clocks are not exact
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(TLS_NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key.private_key, hashes.SHA256())
    )
