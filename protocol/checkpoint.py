"""A checkpoint: a published, signed model folder. The coordinator writes one with these functions; `verify` reads it.

    step-000123/
      model/                    the signed folder: weights, config.json, tokenizer, README.md, LICENSE,
        checkpoint.json         `CheckpointInfo`, canonical JSON
        ledger/checkpoint       the ledger head before this checkpoint, a signed note
      model.sig                 OMS bundle, the root key
      signatures/<keyid>.sig    OMS bundles of further maintainers
      model.tlog-proof          this checkpoint's own `CheckpointEntry` is a ledger leaf

In order: write the model's files, `write_info`, `sign_checkpoint`, append the entry to the ledger, sign a head,
`write_log_proof`. The payload digest (SHA-256 of the DSSE payload of model.sig) is what identifies a checkpoint.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from protocol import canonical, files, merkle
from protocol.digests import Digest
from protocol.envelope import MAX_ENVELOPE_BYTES
from protocol.errors import FormatError, VerificationError
from protocol.fields import Fields
from protocol.held_out import Asked, Measured, open_measured
from protocol.keys import RootKey, load_public_pem, public_pem
from protocol.ledger_entry import CheckpointEntry, Counter, PeerId, Round
from protocol.model_signature import ModelSignature
from protocol.note import MAX_NOTE_BYTES, LedgerHead
from protocol.signed import Signed
from protocol.state import StateManifest
from protocol.tlog_proof import LogProof

MODEL = "model"
SIGNATURE = "model.sig"
LOG_PROOF = "model.tlog-proof"
MAINTAINERS = "signatures"
INFO = "checkpoint.json"  # in model/
LEDGER_HEAD = "ledger/checkpoint"  # in model/
ROUNDS = "rounds"  # beside the step folders: the agreement of each round, which needs no signature of the host's
MAX_INFO_BYTES = 16 << 20
MAX_CONTRIBUTORS = 100_000
_STEP = re.compile(r"step-([0-9]{6,9})")
_ROUND = re.compile(r"round-([0-9]{6,9})\.json")


class _Fields(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Evaluation(Fields):
    """How the model did on the held-out split."""

    later: ClassVar[frozenset[str]] = frozenset({"measured"})
    held_out_loss: float = Field(allow_inf_nan=False)  # nats per token
    sequences: int = Field(ge=0, le=10**9)
    tokens: Counter
    measured: dict[str, Any] | None = None  # the DSSE envelope of the member that measured it; None: the host did

    @classmethod
    def by_member(cls, signed: Signed[Measured]) -> Evaluation:
        """What a member has measured, with its signature."""
        found = signed.value
        return cls(
            held_out_loss=found.held_out_loss,
            sequences=found.sequences,
            tokens=found.tokens,
            measured=canonical.loads(signed.data, max_bytes=MAX_ENVELOPE_BYTES),
        )

    def check_measured(self, run: str, round: int, state: str) -> str | None:
        """The peer id of the member that measured this; None: the host did.

        Raises:
            FormatError, SignatureError, VerificationError: what it has signed is not this.
        """
        if self.measured is None:
            return None
        asked = Asked(run, round, state, self.sequences, self.tokens)
        signed = open_measured(canonical.dumps(self.measured), asked)
        if signed.value.held_out_loss != self.held_out_loss:
            raise VerificationError(
                f"the member measured a held-out loss of {signed.value.held_out_loss}, "
                f"checkpoint.json says {self.held_out_loss}"
            )
        return signed.by


class Contributor(_Fields):
    """One peer's agreed work on this checkpoint's line, from genesis up to its round."""

    peer_id: PeerId
    tokens: Counter  # sum of its weights in the agreements
    flops: Counter
    rounds: Round  # how many of them


class LedgerState(_Fields):
    """The ledger head that stands in model/ledger/checkpoint, and how it extends the parent's.

    The consistency proof runs from the head in the parent checkpoint's folder to this one; it is empty for genesis
    and where both have the same size.
    """

    origin: Annotated[str, Field(min_length=1, max_length=256)]
    size: Counter  # leaves
    root: Digest
    consistency: tuple[Annotated[str, Field(min_length=44, max_length=44)], ...] = Field(default=(), max_length=64)

    @classmethod
    def of(cls, tree: merkle.Tree, head: LedgerHead, parent: LedgerState | None) -> LedgerState:
        """Describe `head`, which is one of `tree`; `parent` is what the parent checkpoint says (None for genesis)."""
        needed = parent is not None and 0 < parent.size < head.size
        proof = tree.consistency_proof(parent.size, head.size) if parent is not None and needed else []
        return cls(
            origin=head.origin,
            size=head.size,
            root=head.root.hex(),
            consistency=tuple(base64.b64encode(item).decode() for item in proof),
        )

    @property
    def head(self) -> LedgerHead:
        return LedgerHead(self.origin, self.size, bytes.fromhex(self.root))

    def check_extends(self, parent: LedgerState) -> None:
        """Check that this ledger begins with the whole of the parent's.

        Raises:
            FormatError: the proof is not base64.
            VerificationError: it is another ledger, an older one, or one that was rewritten.
        """
        if parent.size == 0:
            return
        try:
            proof = [base64.b64decode(item, validate=True) for item in self.consistency]
        except (binascii.Error, ValueError) as error:
            raise FormatError("checkpoint.json: the ledger's consistency proof is not base64") from error
        merkle.verify_consistency(parent.size, self.size, parent.head.root, self.head.root, proof)


class CheckpointInfo(_Fields):
    """model/checkpoint.json. Run card and root key are claims here: the fingerprint that the user trusts decides."""

    version: Annotated[int, Field(ge=1, le=1)] = 1
    run: Digest  # run digest
    run_card: dict[str, Any]  # the run card's DSSE envelope
    root_public_key: Annotated[str, Field(max_length=4096)]  # PEM
    round: Round
    parent: Digest | None  # payload digest; None for genesis
    state: StateManifest
    agreement: dict[str, Any] | None  # protocol.agreement.Agreement.to_json(); None for genesis
    evaluation: Evaluation
    contributors: tuple[Contributor, ...] = Field(default=(), max_length=MAX_CONTRIBUTORS)
    ledger: LedgerState

    @field_validator("contributors")
    @classmethod
    def _each_once(cls, value: tuple[Contributor, ...]) -> tuple[Contributor, ...]:
        if len({item.peer_id for item in value}) != len(value):
            raise ValueError("a contributor stands twice")
        return value

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The root key that this checkpoint claims. Raises: FormatError."""
        return load_public_pem(self.root_public_key.encode(errors="replace"))

    @property
    def run_card_bytes(self) -> bytes:
        return canonical.dumps(self.run_card)

    def to_bytes(self) -> bytes:
        return canonical.dumps(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls, data: bytes) -> CheckpointInfo:
        """Read a checkpoint.json in canonical form; nothing in it is believed yet. Raises: FormatError."""
        try:
            info = cls.model_validate(canonical.loads(data, max_bytes=MAX_INFO_BYTES))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(step) for step in first["loc"])
            raise FormatError(f"checkpoint.json: {where}: {first['msg'].removeprefix('Value error, ')}") from error
        if info.to_bytes() != data:
            raise FormatError("checkpoint.json is not in canonical form")
        return info


def step_name(round_number: int) -> str:
    """The folder of a round's checkpoint.

    >>> step_name(123), step_round("step-000123"), step_round("notes")
    ('step-000123', 123, None)
    """
    return f"step-{round_number:06d}"


def round_name(round_number: int) -> str:
    """ "round-000012.json" for round 12: the file in `ROUNDS` that holds its agreement."""
    return f"round-{round_number:06d}.json"


def round_number(name: str) -> int | None:
    """The round whose agreement a file's name promises, or None.

    >>> round_number("round-000012.json"), round_number("round-0000000012.json"), round_number("notes")
    (12, None, None)
    """
    match = _ROUND.fullmatch(name)
    number = int(match[1]) if match else None
    return number if number is not None and round_name(number) == name else None


def step_round(name: str) -> int | None:
    """The round that a folder's name states, or None."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None


def write_info(step_dir: Path, info: CheckpointInfo, head_note: str) -> None:
    """Write model/checkpoint.json and model/ledger/checkpoint; the other files of model/ lie there already.

    Args:
        step_dir: the checkpoint's folder.
        info: whose `ledger` is the head in `head_note`.
        head_note: the ledger head, as `note.sign_head` made it.
    """
    model = step_dir / MODEL
    (model / LEDGER_HEAD).parent.mkdir(parents=True, exist_ok=True)
    (model / INFO).write_bytes(info.to_bytes())
    (model / LEDGER_HEAD).write_text(head_note, encoding="utf-8")


def read_info(step_dir: Path) -> CheckpointInfo:
    """Read model/checkpoint.json; nothing in it is believed yet. Raises: FormatError, VerificationError."""
    return CheckpointInfo.from_bytes(files.read_bounded(step_dir / MODEL / INFO, MAX_INFO_BYTES))


def read_head_note(step_dir: Path) -> str:
    """The note in model/ledger/checkpoint. Raises: FormatError, VerificationError."""
    return _text(files.read_bounded(step_dir / MODEL / LEDGER_HEAD, MAX_NOTE_BYTES), LEDGER_HEAD)


def sign_checkpoint(step_dir: Path, root_key: RootKey) -> str:
    """Sign every file of model/ with the run's root key into model.sig; returns the payload digest.

    Raises:
        VerificationError: model/ holds symlinks, devices or empty directories, which no signature covers.
    """
    _sign_folder(step_dir, step_dir / SIGNATURE, root_key)
    return payload_digest(step_dir)


def add_maintainer_signature(step_dir: Path, key: RootKey) -> Path:
    """Sign the same folder with a further P-256 key, into signatures/<keyid>.sig; returns that path.

    Raises: as `sign_checkpoint`.
    """
    path = step_dir / MAINTAINERS / f"{key.keyid}.sig"
    path.parent.mkdir(exist_ok=True)
    _sign_folder(step_dir, path, key)
    return path


def payload_digest(step_dir: Path) -> str:
    """What identifies the checkpoint: SHA-256 of model.sig's DSSE payload. Raises: FormatError, VerificationError."""
    return ModelSignature.read(step_dir / SIGNATURE).payload_digest


def entry(step_dir: Path) -> CheckpointEntry:
    """What the ledger holds of a signed checkpoint. Raises: FormatError, VerificationError."""
    info = read_info(step_dir)
    return CheckpointEntry(
        run=info.run,
        round=info.round,
        payload=payload_digest(step_dir),
        state=info.state.digest,
        parent=info.parent,
    )


def write_log_proof(step_dir: Path, proof: LogProof) -> None:
    """Write model.tlog-proof."""
    (step_dir / LOG_PROOF).write_text(proof.to_text(), encoding="utf-8")


def read_log_proof(step_dir: Path) -> LogProof:
    """Read model.tlog-proof. Raises: FormatError, VerificationError."""
    return LogProof.from_text(_text(files.read_bounded(step_dir / LOG_PROOF, 4 * MAX_NOTE_BYTES), LOG_PROOF))


def root_pem(root_key: RootKey) -> str:
    """What stands in `root_public_key`."""
    return public_pem(root_key.public_key).decode()


def _sign_folder(step_dir: Path, signature: Path, key: RootKey) -> None:
    import model_signing  # 0.5 s to import, and verifiers need it not

    model = step_dir / MODEL
    files.list_files(model)
    hashing = model_signing.hashing.Config().use_file_serialization(hashing_algorithm="sha256")
    hashing.set_ignored_paths(paths=(), ignore_git_paths=False)
    # The library reads a private key from a path only; through a pipe the key touches no disk.
    reader, writer = os.pipe()
    try:
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(key.to_pem())
        config = model_signing.signing.Config().use_elliptic_key_signer(private_key=f"/dev/fd/{reader}")
    finally:
        os.close(reader)
    config.set_hashing_config(hashing).sign(model, signature)


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{what}: not UTF-8") from error
