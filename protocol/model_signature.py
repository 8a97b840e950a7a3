"""The OpenSSF model signature of a folder (an OMS bundle, specification v1.0), read strictly.

A bundle is a Sigstore bundle around a DSSE envelope around an in-toto statement that lists every file's SHA-256:

    {"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":{"hint":"…"}},
     "dsseEnvelope":{"payload":"<base64>","payloadType":"application/vnd.in-toto+json","signatures":[{"sig":"…","keyid":""}]}}

Signing goes through the model-signing library (`checkpoint.sign_checkpoint`). Reading does not: the library follows
what the signed list says about links and ignored paths, accepts a key twice in JSON, and signatures of its releases
before 1.0. Here all is accepted that the specification says a verifier must accept (section 11: `rawBytes` in place of
`hint`, `keyid` null or absent, log entries and timestamps of no use beside a key), and one thing is good: whole files,
by SHA-256. What the list says was left out of it (`ignore_paths`) is not signed for, and so does not belong there. The
tests hold the verdicts of the specification, of the stock command and of this reader side by side.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from protocol import canonical, files
from protocol.envelope import pae
from protocol.errors import FormatError, SignatureError, UnsupportedError
from protocol.keys import fingerprint, public_der, public_pem, verify_ecdsa

MAX_BUNDLE_BYTES = 16 << 20
WHOLE = "."  # how the stock command calls the one file of a model that is no folder
_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_BY_OTHERS = {"certificate", "x509CertificateChain"}  # in place of a key
_KEY_FIELDS = {"hint", "rawBytes", "keyDetails"}


@dataclass(frozen=True)
class ModelSignature:
    """A parsed bundle; `files` is believed only after `verify`."""

    payload: bytes  # the in-toto statement
    signature: bytes  # ECDSA, DER; where there are more, the first, as the stock command takes it
    hint: (
        str  # hex SHA-256 of the signer's public key; not authenticated; empty: the key itself stands there, or nothing
    )
    files: dict[str, str]  # relative path -> hex SHA-256
    left_out: frozenset[PurePosixPath] = frozenset()  # paths that the signer did not look at
    follows_links: bool = False  # the signer hashed what links lead to, as if it lay there
    extras: bool = False  # log entries, timestamps or further signatures stand beside it, which nobody looks at

    @property
    def payload_digest(self) -> str:
        """Hex SHA-256 of the DSSE payload: what identifies a checkpoint."""
        return canonical.sha256_hex(self.payload)

    def verify(self, public_key: ec.EllipticCurvePublicKey) -> None:
        """Check who signed. Raises: SignatureError."""
        if self.hint and self.hint not in _hints(public_key):
            raise SignatureError(f"made with another key than {fingerprint(public_key)}")
        verify_ecdsa(public_key, self.signature, pae(_PAYLOAD_TYPE, self.payload))

    def differences(self, here: Mapping[str, Path]) -> list[str]:
        """What is missing, not signed for or changed, one line a file.

        Args:
            here: relative path -> path of the files that are there.
        """
        problems = [f"{name}: missing" for name in sorted(set(self.files) - set(here))]
        for name in sorted(set(here) - set(self.files)):
            left_out = _is_within(name, self.left_out)
            problems.append(f"{name}: not signed for" + ("; the signer left it out" if left_out else ""))
        for name in sorted(set(here) & set(self.files)):
            if files.file_sha256(here[name]) != self.files[name]:
                problems.append(f"{name}: changed since it was signed")
        return problems

    @classmethod
    def read(cls, path: Path) -> ModelSignature:
        """Read a bundle file. Raises: as `from_bytes`; VerificationError too: it cannot be read."""
        return cls.from_bytes(files.read_bounded(path, MAX_BUNDLE_BYTES))

    @classmethod
    def from_bytes(cls, data: bytes) -> ModelSignature:
        """Parse a bundle.

        Raises:
            FormatError: not a model signature.
            UnsupportedError: one by a certificate, or of other things than whole files by SHA-256.
            VerificationError: a path in it could lead out of the folder.
        """
        bundle = canonical.loads(data, max_bytes=MAX_BUNDLE_BYTES)
        try:
            envelope, material = bundle["dsseEnvelope"], bundle["verificationMaterial"]
            entry, *more = envelope["signatures"]
            if (bundle["mediaType"], envelope["payloadType"]) != (_MEDIA_TYPE, _PAYLOAD_TYPE):
                raise FormatError("not a model signature: expected a Sigstore bundle v0.3 with an in-toto statement")
            if _BY_OTHERS & set(material):
                raise UnsupportedError(
                    "a model signature by a certificate; only those by a key are checked here",
                    "check it with `model_signing verify certificate`, or `model_signing verify sigstore`",
                )
            if not _is_by_key(bundle, envelope, material) or not all(_is_entry(item) for item in (entry, *more)):
                raise FormatError("not a model signature by a key: it holds more, or less, than the specification says")
            extras = bool(more or material.get("tlogEntries") or material.get("timestampVerificationData"))
            payload, signature = _base64(envelope["payload"]), _base64(entry["sig"])
            hint = material["publicKey"].get("hint", "")
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise FormatError("not a model signature with one DSSE envelope and a signature") from error
        statement = canonical.loads(payload, max_bytes=MAX_BUNDLE_BYTES)
        signed, left_out, follows_links = _read_statement(statement)
        return cls(payload, signature, hint, signed, left_out, follows_links, extras)


def _is_by_key(bundle: Any, envelope: Any, material: Any) -> bool:
    """Whether this is a bundle by a key as the specification's schemas have it, with nothing that they do not know."""
    key, stamps = material["publicKey"], material.get("timestampVerificationData", {})
    return (
        isinstance(key, dict)
        and set(bundle) == {"mediaType", "verificationMaterial", "dsseEnvelope"}
        and set(envelope) == {"payload", "payloadType", "signatures"}
        and set(material) <= {"publicKey", "tlogEntries", "timestampVerificationData"}
        and bool({"hint", "rawBytes"} & set(key))
        and set(key) <= _KEY_FIELDS
        and all(isinstance(value, str) for value in key.values())
        and _are_objects(material.get("tlogEntries", []))
        and isinstance(stamps, dict)
        and set(stamps) <= {"rfc3161Timestamps"}
        and _are_objects(stamps.get("rfc3161Timestamps", []))
    )


def _is_entry(entry: Any) -> bool:
    """Whether this is one signature of an envelope; the specification wants any `keyid` accepted, and none believed."""
    return (
        _are_objects([entry])
        and {"sig"} <= set(entry) <= {"sig", "keyid"}
        and isinstance(entry.get("keyid"), str | None)
    )


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _base64(text: Any) -> bytes:
    """DSSE has either alphabet. Raises: TypeError, ValueError, binascii.Error."""
    if not isinstance(text, str):
        raise TypeError("base64 is text")
    return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)


def _hints(public_key: ec.EllipticCurvePublicKey) -> set[str]:
    """How signers name a key: the stock command by the SHA-256 of its PEM form."""
    return {canonical.sha256_hex(public_pem(public_key)), canonical.sha256_hex(public_der(public_key))}


def _read_statement(statement: Any) -> tuple[dict[str, str], frozenset[PurePosixPath], bool]:
    """(relative path -> hex SHA-256 of every file, paths that were left out, whether links were followed)."""
    try:
        kind, predicate_type, predicate = statement["_type"], statement["predicateType"], statement["predicate"]
        (subject,) = statement["subject"]
        subject_name, subject_digest = subject["name"], subject["digest"]["sha256"]
        serialization = predicate["serialization"]
        resources = [(item["name"], item["algorithm"], item["digest"]) for item in predicate["resources"]]
        more = set(statement) - {"_type", "subject", "predicateType", "predicate"}
        more |= set(predicate) - {"serialization", "resources"}
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError("the signed statement is not that of a model signature") from error
    if (kind, predicate_type) != (_STATEMENT_TYPE, _PREDICATE_TYPE) or more:
        raise FormatError("the signed statement is not of the model signature type, version 1.0")
    if not isinstance(subject_name, str) or not subject_name:
        raise FormatError("the signed statement does not name its model")
    left_out, follows_links = _read_serialization(serialization)
    signed = _read_resources(resources, subject_digest)
    for name in signed:
        if _is_within(name, left_out):
            raise FormatError(f"{name!r} is signed for and left out")
    return signed, left_out, follows_links


def _is_within(name: str, left_out: frozenset[PurePosixPath]) -> bool:
    path = PurePosixPath(name)
    return path in left_out or not left_out.isdisjoint(path.parents)


def _read_serialization(value: Any) -> tuple[frozenset[PurePosixPath], bool]:
    """(paths that were left out, whether links were followed); only whole files by SHA-256 are read here."""
    needed, known = {"method", "hash_type", "allow_symlinks"}, {"shard_size", "ignore_paths"}
    if not isinstance(value, dict) or not needed <= set(value) <= needed | known:
        raise FormatError("the signed statement does not say how its files were hashed")
    left_out, follows_links = value.get("ignore_paths", []), value["allow_symlinks"]
    if not isinstance(left_out, list) or not all(isinstance(path, str) and path for path in left_out):
        raise FormatError("the signed statement leaves out what is no path")
    if not isinstance(follows_links, bool):
        raise FormatError("the signed statement does not say whether links were followed")
    if (value["method"], value["hash_type"]) != ("files", "sha256"):
        raise UnsupportedError(
            "a model signature of parts of files, or by another hash; only whole files by SHA-256 are checked here",
            "check it with `model_signing verify key`, or sign by file, with sha256",
        )
    if "shard_size" in value:
        raise FormatError("the signed statement is of whole files, and gives the size of parts")
    return frozenset(map(PurePosixPath, left_out)), follows_links


def _read_resources(resources: list[tuple[Any, Any, Any]], subject_digest: Any) -> dict[str, str]:
    if not 1 <= len(resources) <= files.MAX_FILES:
        raise FormatError(f"a model signature lists 1 to {files.MAX_FILES} files, got {len(resources)}")
    result: dict[str, str] = {}
    together = hashlib.sha256()
    for name, algorithm, digest in resources:
        if not isinstance(name, str) or algorithm != "sha256" or not _is_sha256(digest):
            raise FormatError("a file in the signed list has no name or no SHA-256")
        if name != WHOLE or len(resources) > 1:
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
