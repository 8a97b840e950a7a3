"""The OpenSSF model signature of a folder (an OMS bundle), read strictly.

A bundle is a Sigstore bundle around a DSSE envelope around an in-toto statement that lists every file's SHA-256:

    {"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":{"hint":"…"}},
     "dsseEnvelope":{"payload":"<base64>","payloadType":"application/vnd.in-toto+json","signatures":[{"sig":"…","keyid":""}]}}

Signing goes through the model-signing library (`checkpoint.sign_checkpoint`). Reading does not: the library follows
what the signed list says about symlinks, ignored paths and hash functions, accepts a key twice in JSON, and signatures
of its releases before 1.0. Here one form is good: files, sha256, nothing ignored. The tests hold both verdicts side by side.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from protocol import canonical, files
from protocol.envelope import pae
from protocol.errors import FormatError, SignatureError, VerificationError
from protocol.keys import fingerprint, public_pem, verify_root_signature

MAX_BUNDLE_BYTES = 16 << 20
_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_SERIALIZATION = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}


@dataclass(frozen=True)
class ModelSignature:
    """A parsed bundle; `files` is believed only after `verify`."""

    payload: bytes  # the in-toto statement
    signature: bytes  # ECDSA-SHA256, DER
    hint: str  # hex SHA-256 of the signer's PEM public key; not authenticated
    files: dict[str, str]  # relative path -> hex SHA-256

    @property
    def payload_digest(self) -> str:
        """Hex SHA-256 of the DSSE payload: what identifies a checkpoint."""
        return canonical.sha256_hex(self.payload)

    def verify(self, public_key: ec.EllipticCurvePublicKey) -> None:
        """Check who signed. Raises: SignatureError."""
        if self.hint != canonical.sha256_hex(public_pem(public_key)):
            raise SignatureError(f"made with another key than {fingerprint(public_key)}")
        verify_root_signature(public_key, self.signature, pae(_PAYLOAD_TYPE, self.payload))

    @classmethod
    def read(cls, path: Path) -> ModelSignature:
        """Read a bundle file. Raises: VerificationError, FormatError."""
        return cls.from_bytes(files.read_bounded(path, MAX_BUNDLE_BYTES))

    @classmethod
    def from_bytes(cls, data: bytes) -> ModelSignature:
        """Parse a bundle.

        Raises:
            FormatError: not a model signature.
            VerificationError: one that signs for less than every file's SHA-256.
        """
        bundle = canonical.loads(data, max_bytes=MAX_BUNDLE_BYTES)
        try:
            envelope, material = bundle["dsseEnvelope"], bundle["verificationMaterial"]
            (entry,) = envelope["signatures"]
            if (bundle["mediaType"], envelope["payloadType"]) != (_MEDIA_TYPE, _PAYLOAD_TYPE):
                raise FormatError("not a model signature: expected a Sigstore bundle v0.3 with an in-toto statement")
            if not _is_plain(bundle, envelope, material, entry):
                raise FormatError("not a model signature by a key: it holds more than one signature and the key's hint")
            payload = base64.b64decode(envelope["payload"], validate=True)
            signature = base64.b64decode(entry["sig"], validate=True)
            hint = str(material["publicKey"]["hint"])
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise FormatError("not a model signature with one DSSE envelope and one signature") from error
        return cls(payload, signature, hint, _signed_files(canonical.loads(payload, max_bytes=MAX_BUNDLE_BYTES)))


def _is_plain(bundle: Any, envelope: Any, material: Any, entry: Any) -> bool:
    """Whether nothing is there that the stock command would refuse, or that we would not look at."""
    return (
        set(bundle) == {"mediaType", "verificationMaterial", "dsseEnvelope"}
        and set(envelope) == {"payload", "payloadType", "signatures"}
        and {"publicKey"} <= set(material) <= {"publicKey", "tlogEntries"}
        and set(material["publicKey"]) == {"hint"}
        and material.get("tlogEntries", []) == []
        and {"sig"} <= set(entry) <= {"sig", "keyid"}
        and isinstance(entry.get("keyid", ""), str)
    )


def _signed_files(statement: Any) -> dict[str, str]:
    """Relative path -> hex SHA-256 of every file in the statement."""
    try:
        kind, predicate_type = statement["_type"], statement["predicateType"]
        (subject,) = statement["subject"]
        subject_name, subject_digest = subject["name"], subject["digest"]["sha256"]
        serialization = dict(statement["predicate"]["serialization"])
        resources = [(item["name"], item["algorithm"], item["digest"]) for item in statement["predicate"]["resources"]]
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError("the signed statement is not that of a model signature") from error
    if (kind, predicate_type) != (_STATEMENT_TYPE, _PREDICATE_TYPE) or not isinstance(subject_name, str):
        raise FormatError("the signed statement is not of the model signature type, version 1.0")
    if serialization != _SERIALIZATION:
        odd = sorted(key for key in serialization | _SERIALIZATION if serialization.get(key) != _SERIALIZATION.get(key))
        raise VerificationError(
            f"the signature does not cover every file by SHA-256: expected other settings of {', '.join(odd)[:200]}",
            "sign with --no-ignore-git-paths, by file, with sha256",
        )
    if not 1 <= len(resources) <= files.MAX_FILES:
        raise FormatError(f"a model signature lists 1 to {files.MAX_FILES} files, got {len(resources)}")
    result: dict[str, str] = {}
    together = hashlib.sha256()
    for name, algorithm, digest in resources:
        if not isinstance(name, str) or algorithm != "sha256" or not _is_sha256(digest):
            raise FormatError("a file in the signed list has no name or no SHA-256")
        files.check_relative(name)
        if name in result:
            raise FormatError(f"{name!r} stands twice in the signed list")
        result[name] = digest
        together.update(bytes.fromhex(digest))
    if together.hexdigest() != subject_digest:
        raise FormatError("the signed list is inconsistent: its files do not hash to its subject")
    return result


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None
