"""What a path is that was given to `potluck verify`: a checkpoint, a receipt or some, a proof of credit, or else.

A slip of the hand must not read like tampering: what is none of these is answered in one line, with what to give in
its place. Nor may tampering pass for a slip: what has the name of a checkpoint, or a file that only a checkpoint has,
is one, however much is missing from it. Names and the first bytes decide, nothing is believed yet. Only the path itself
may be a link, and is followed.

    >>> recognise(Path("step-000020"))
    Traceback (most recent call last):
    ...
    protocol.errors.InputError: step-000020: no such file or folder
"""

from __future__ import annotations

import contextlib
import os
import shlex
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from protocol import canonical, checkpoint, credit_proof, files, pasted, tlog_proof
from protocol.errors import FormatError, InputError, PotluckError, VerificationError
from protocol.invite import PREFIX
from protocol.model_signature import ModelSignature
from protocol.receipt import MAX_RECEIPT_BYTES
from protocol.report import one_line

_LOOKED_INTO = 1000  # entries of a folder, to find out what it is
_RECEIPT_KEYS = ("entry", "proof", "root_public_key", "run_card")
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".npz", ".onnx")
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".zst", ".xz", ".bz2", ".7z")
_IN_A_CHECKPOINT = {checkpoint.MODEL, checkpoint.SIGNATURE, checkpoint.LOG_PROOF, checkpoint.MAINTAINERS}
_ASK = "give a checkpoint's folder (step-…), a receipt, or a folder of receipts"


class Kind(StrEnum):
    """What can be verified."""

    CHECKPOINT = "checkpoint"
    RECEIPT = "receipt"
    RECEIPTS = "receipts"
    CREDIT = "credit"  # a file in which a proof of credit stands


@dataclass(frozen=True)
class Subject:
    """What there is to verify."""

    kind: Kind
    path: Path  # absolute, and no link


def recognise(given: Path) -> Subject:
    """Say what a path is.

    Raises:
        InputError: it is nothing that can be verified; the message says what it is, the hint what to give.
    """
    name = one_line(str(given))
    if name.startswith(PREFIX):
        raise InputError("an invite is nothing to verify", f"{_ASK}; --newest-by takes an invite")
    try:
        path = Path(os.path.realpath(given, strict=True))
    except FileNotFoundError as error:
        raise _absent(given, name) from error
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}", _ASK) from error
    if path.is_dir():
        return _folder(name, path)
    if path.is_file():
        return _file(name, path)
    raise InputError(f"{name}: neither a file nor a folder", _ASK)


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is a checkpoint, or was one before somebody took something away."""
    if checkpoint.step_round(path.name) is not None:
        return True
    if _is_model_of_checkpoint(path):
        return False
    if os.path.lexists(path / checkpoint.LOG_PROOF) or os.path.lexists(path / checkpoint.MODEL / checkpoint.INFO):
        return True
    return os.path.lexists(path / checkpoint.SIGNATURE) and not _signs_plain_model(path / checkpoint.SIGNATURE)


def _is_model_of_checkpoint(path: Path) -> bool:
    """Whether these are the files of a checkpoint's model/, whatever was put beside them."""
    return (path / checkpoint.INFO).is_file() and not os.path.lexists(path / checkpoint.MODEL)


def steps_in(folder: Path) -> list[Path]:
    """The step folders in a folder, by their rounds."""
    try:
        found = [
            (number, path) for path in folder.iterdir() if (number := checkpoint.step_round(path.name)) is not None
        ]
    except OSError:
        return []
    return [path for _, path in sorted(found)]


def _signs_plain_model(signature: Path) -> bool:
    """Whether a signature is of a model that was no checkpoint's; one that cannot be read is not."""
    try:
        return checkpoint.INFO not in ModelSignature.read(signature).files
    except PotluckError:
        return False


def _absent(given: Path, name: str) -> InputError:
    if given.is_symlink():
        return InputError(f"{name}: a link that leads nowhere", _ASK)
    if "://" in name or name.startswith(("https:/", "http:/")):
        return InputError(f"{name}: an address, and nothing is fetched", "download it, then give the folder")
    steps = steps_in(given.parent)
    if steps:
        return InputError(f"{name}: no such file or folder", f"there are {steps[0].name} to {steps[-1].name}")
    return InputError(f"{name}: no such file or folder", _ASK)


# ---- folders ---------------------------------------------------------------------------------------------------------


def _folder(name: str, path: Path) -> Subject:
    if is_checkpoint(path):
        return Subject(Kind.CHECKPOINT, path)
    _refuse_part(name, path)
    try:
        inside = sorted(os.listdir(path))
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}", "give a folder that you may read") from error
    if not inside:
        raise InputError(f"{name}: an empty folder", _ASK)
    _refuse_run(name, path, inside)
    _refuse_model(name, path, inside)
    jsons = [path / item for item in inside if item.endswith(".json")][:_LOOKED_INTO]
    if any(_is_receipt(_read(item)) for item in jsons):
        return Subject(Kind.RECEIPTS, path)
    if any(_is_agreement(_read(item)) for item in jsons):
        raise InputError(
            f"{name}: the members' agreements of a run's rounds", "they are checked with a checkpoint: give that"
        )
    raise InputError(f"{name}: a folder without a checkpoint or a receipt", _ASK)


def _refuse_part(name: str, path: Path) -> None:
    """Raises: InputError: it is a part of a checkpoint."""
    for around in path.parents:
        if path.relative_to(around).parts[0] in _IN_A_CHECKPOINT and is_checkpoint(around):
            raise InputError(
                f"{name}: a part of a checkpoint, which is checked as a whole", f"potluck verify {_shown(around)}"
            )


def _refuse_run(name: str, path: Path, inside: list[str]) -> None:
    """Raises: InputError: it is a run's folder, or holds such folders, or a run's checkpoints."""
    if {"identity", "runs"} <= set(inside):
        receipts = [
            folder / "receipts" for folder in sorted((path / "runs").glob("*")) if (folder / "receipts").is_dir()
        ]
        hint = f"give the receipts of one: potluck verify {_shown(receipts[0])}" if receipts else _ASK
        raise InputError(f"{name}: a peer's home, with the runs that it has joined", hint)
    if {"run-card.json", "receipts"} <= set(inside):
        raise InputError(
            f"{name}: a peer's folder of a run", f"give its receipts: potluck verify {_shown(path / 'receipts')}"
        )
    steps = steps_in(path)
    if steps:
        raise InputError(
            f"{name}: {len(steps)} checkpoints of a run, and one is verified at a time",
            f"the newest: potluck verify {_shown(steps[-1])}",
        )
    steps = steps_in(path / "checkpoints")
    if steps:
        raise InputError(
            f"{name}: the folder of a run, with {len(steps)} checkpoints, and one is verified at a time",
            f"the newest: potluck verify {_shown(steps[-1])}",
        )
    if "run-card.json" in inside:
        raise InputError(f"{name}: the folder of a run without a checkpoint", _ASK)
    for item in inside[:_LOOKED_INTO]:
        steps = steps_in(path / item / "checkpoints") or steps_in(path / item)
        if steps:
            raise InputError(
                f"{name}: a folder around a run, and one checkpoint is verified at a time",
                f"for example: potluck verify {_shown(steps[-1])}",
            )


def _refuse_model(name: str, path: Path, inside: list[str]) -> None:
    """Raises: InputError: it is a model."""
    if _is_model_of_checkpoint(path):
        raise InputError(
            f"{name}: the files of a checkpoint's model/ without the folder around it",
            "give the whole checkpoint, in which model.sig and model.tlog-proof lie beside model/",
        )
    signature = path / checkpoint.SIGNATURE
    if checkpoint.MODEL in inside and checkpoint.SIGNATURE in inside:
        model = path / checkpoint.MODEL
    elif any(item == "config.json" or item.lower().endswith(_WEIGHTS) for item in inside):
        model = path
        if checkpoint.SIGNATURE not in inside:
            signature = path.parent / checkpoint.SIGNATURE
    else:
        return
    if signature.is_file():
        raise InputError(
            f"{name}: a model that is not of a run, and its signature",
            f"potluck verify {_shown(model)} --signature {_shown(signature)} --key THE_SIGNERS.pub",
        )
    raise InputError(
        f"{name}: a model without a signature",
        "give a checkpoint of a run (step-…); if the model was signed otherwise, name --signature and --key",
    )


# ---- files -----------------------------------------------------------------------------------------------------------


def _file(name: str, path: Path) -> Subject:
    _refuse_part(name, path)
    data = _read(path)
    if _is_receipt(data):
        return Subject(Kind.RECEIPT, path)
    if not data:
        raise InputError(f"{name}: an empty file, or one that cannot be read", _ASK)
    start = data[:200].lstrip(b"\xef\xbb\xbf \r\n\t")
    if start.startswith(PREFIX.encode()):
        raise InputError(f"{name}: an invite, which is nothing to verify", f"{_ASK}; --newest-by takes an invite")
    if start.startswith(b"-----BEGIN"):
        raise InputError(f"{name}: a key, which is nothing to verify", f"{_ASK}; --key takes a public key")
    if start.startswith((tlog_proof.MAGIC.encode(), b"potluck/")):
        raise InputError(f"{name}: a head of a run's ledger", f"{_ASK}; --newest-by takes a ledger head")
    if _is_agreement(data):
        raise InputError(
            f"{name}: the members' agreement of a round",
            "it is checked with a checkpoint: give one that it lies beside",
        )
    if "dsseEnvelope" in _object(data):
        raise InputError(
            f"{name}: the signature of a model",
            "give the checkpoint that it belongs to; for another model, the model with --signature and --key",
        )
    if credit_proof.stands_in(data):
        return Subject(Kind.CREDIT, path)
    if _is_picture(data):
        if credit_proof.stands_in(_read(path, credit_proof.MAX_FILE_BYTES)):
            return Subject(Kind.CREDIT, path)
        raise InputError(
            f"{name}: this picture has no proof string in it",
            "a service that passes pictures on often takes it out: ask for the string itself, which begins with "
            f"'{credit_proof.PREFIX}', and give that",
        )
    if path.suffix.lower() == ".toml":
        raise InputError(f"{name}: what a run is to be, which is nothing to verify", _ASK)
    if path.suffix.lower() in _ARCHIVES:
        raise InputError(f"{name}: an archive", "unpack it, then give the folder in it")
    if path.suffix.lower() in _WEIGHTS:
        raise InputError(f"{name}: a file of weights, outside of a checkpoint", _ASK)
    raise InputError(f"{name}: neither a checkpoint nor a receipt", _ASK)


def _is_picture(data: bytes) -> bool:
    """Whether a file is a PNG, JPEG, WebP or SVG by its first bytes."""
    if data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")) or (data[:4], data[8:12]) == (b"RIFF", b"WEBP"):
        return True
    return b"<svg" in data[:4096] and pasted.decoded(data[:4096]).lstrip().startswith("<")


def _is_receipt(data: bytes) -> bool:
    """Whether these are the bytes of a receipt, or were before somebody damaged them."""
    value = _object(data)
    if value:
        return len(set(_RECEIPT_KEYS) & set(value)) > 1 and "contributors" not in value  # as checkpoint.json has
    words = sum(b'"%b"' % key.encode() in data for key in _RECEIPT_KEYS)
    return data.lstrip()[:1] == b"{" and (words > 1 or data.startswith(b'{"entry"')) and b'"contributors"' not in data


def _is_agreement(data: bytes) -> bool:
    return data.lstrip()[:1] == b"{" and b'"claims"' in data and b'"votes"' in data


def _object(data: bytes) -> dict[str, Any]:
    """A JSON object, or an empty one where these bytes are none."""
    try:
        value = canonical.loads(data, max_bytes=MAX_RECEIPT_BYTES)
    except FormatError:
        return {}
    return value if isinstance(value, dict) else {}


def _read(path: Path, max_bytes: int = MAX_RECEIPT_BYTES) -> bytes:
    """As much of a file as it may have, and one byte; nothing of what is no file, or cannot be read."""
    try:
        with files.open_regular(path) as file:
            return file.read(max_bytes + 1)
    except (VerificationError, OSError):
        return b""


def _shown(path: Path) -> str:
    """A path as one may type it."""
    with contextlib.suppress(ValueError, OSError):
        path = path.relative_to(Path.cwd())
    return shlex.quote(one_line(str(path)))
