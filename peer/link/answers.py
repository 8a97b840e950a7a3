"""What the coordinator's service says, parsed: the values that `client` returns.

>>> parse_files([coordinator_pb2.ModelFile(path="../x", sha256="0" * 64, size_bytes=1)])
Traceback (most recent call last):
...
protocol.errors.VerificationError: '../x': not a plain relative path
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from peer.training.memory import base_parameters
from peer.training.model_shape import ModelShape
from protocol import canonical, coordinator_pb2
from protocol.errors import FormatError, SignatureError
from protocol.files import MAX_FILES, check_relative, tree_digest
from protocol.rpc import MAX_MODEL_CONFIG_BYTES, Twin, check_swarm_address
from protocol.run_card import RunCard
from protocol.run_spec import RunSpec
from protocol.status import Alarm

MAX_KNOWN_ADDRESSES = 1024  # in one answer
MAX_WANTED = 64  # claims, likewise


class RemoteFile(NamedTuple):
    """A file that the coordinator offers."""

    path: str  # relative, forward slashes
    sha256: str  # hex
    size_bytes: int


class RunDescription(NamedTuple):
    """A run, as the root key in the invite vouches for it."""

    card: RunCard
    card_bytes: bytes
    root_public_pem: bytes
    genesis_files: tuple[RemoteFile, ...]  # a signed folder: verify it before use
    model_files: tuple[RemoteFile, ...]  # LoRA only: the base model; their tree digest is the spec's
    round: int = 0  # the newest in the ledger, by the coordinator's word
    finished: bool = False  # likewise: it has had all its rounds
    shape: ModelShape | None = None  # of the model, if the coordinator has sent its config.json
    version: int = 0  # of the protocol that members must speak; 0: a host of before
    release: str = ""  # of the host's Potluck, for people


class RunFiles(NamedTuple):
    """Where the files of a run lie on this machine."""

    genesis: Path  # the folder step-000000
    base_model: Path | None  # LoRA only
    data: Path


class Enrollment(NamedTuple):
    """What a member holds."""

    certificate: str  # JWT
    expires: int  # Unix seconds
    swarm_addresses: tuple[str, ...]
    reducer: bool = False  # the certificate says that the host trusts this peer to reduce for the others


class Announcement(NamedTuple):
    """What the coordinator answers to `announce`."""

    swarm_addresses: tuple[str, ...]  # where other live members can be reached
    want_state: str  # digest of the state to upload; empty: none
    round: int  # the newest in the ledger
    finished: bool
    beginners: bytes  # the coordinator's signed word on who begins, `protocol.beginners`; empty: not known yet
    alarm: Alarm | None = None  # the run stays clearly worse than its last published checkpoint
    twin: Twin = Twin.NONE
    want_chain: bool = False  # round + 1 is missing in the ledger: send the agreements after `round`, if they are here
    banned: bytes = b""  # a newer signed list of who is banned, `protocol.banned`
    ledger_head: str = ""  # the newest, a signed note
    expelled: str = ""  # the host has banned this peer, and why
    want_loss: str = ""  # digest of the state whose held-out loss is to be measured here; empty: none
    drawn_until: int = 0  # up to this round it is drawn whose claims are replayed
    want_reveals: tuple[str, ...] = ()  # digests of claims of this peer whose work is to be shown


def parse_twin(reply: coordinator_pb2.AnnounceReply) -> Twin:
    """What is said of another computer with this identity; a newer coordinator may say more than is known here."""
    return Twin(reply.twin) if reply.twin in tuple(Twin) else Twin.NONE


def parse_description(reply: coordinator_pb2.GetRunReply, card: RunCard) -> RunDescription:
    """What a run is, whose card has been held against the invite.

    Raises:
        FormatError, VerificationError: as `parse_files`; or base model files without need, or missing.
        SignatureError: base model files other than those that the run spec pins.
    """
    model_files = parse_files(reply.model_files)
    if model_files and tree_digest({file.path: file[1:] for file in model_files}) != card.spec.model.digest:
        raise SignatureError("the base model's files are not those that the run spec pins")
    if (card.spec.method.kind == "lora") != bool(model_files):
        raise FormatError("expected base model files exactly when the run trains an adapter")
    genesis_files = parse_files(reply.genesis_files)
    return RunDescription(
        card,
        reply.run_card,
        reply.root_public_key,
        genesis_files,
        model_files,
        reply.round,
        reply.finished,
        parse_shape(reply.model_config, genesis_files, model_files, card.spec),
        reply.version,
        reply.release,
    )


def parse_files(files: Iterable[coordinator_pb2.ModelFile]) -> tuple[RemoteFile, ...]:
    """The files on offer.

    Raises:
        FormatError: too many, one twice, or no SHA-256.
        VerificationError: a path that leads elsewhere.
    """
    result = tuple(RemoteFile(file.path, file.sha256, file.size_bytes) for file in files)
    if len(result) > MAX_FILES or len({file.path for file in result}) != len(result):
        raise FormatError(f"expected at most {MAX_FILES} files, each once, got {len(result)}")
    for file in result:
        check_relative(file.path)
        if len(file.sha256) != 64 or set(file.sha256) - set("0123456789abcdef"):
            raise FormatError(f"{file.path}: not a SHA-256: {file.sha256[:80]!r}")
    return result


def parse_shape(
    config: bytes, genesis_files: Iterable[RemoteFile], model_files: Iterable[RemoteFile], spec: RunSpec
) -> ModelShape | None:
    """The model's shape by its config.json; None: it was not sent, is not that among the files, or says too little."""
    places = {"config.json": model_files} if spec.method.kind == "lora" else {"model/config.json": genesis_files}
    listed = {file.sha256 for path, files in places.items() for file in files if file.path == path}
    if hashlib.sha256(config).hexdigest() not in listed:
        return None
    try:
        value = canonical.loads(config, max_bytes=MAX_MODEL_CONFIG_BYTES)
    except FormatError:  # transformers reads more than is unambiguous, and only estimates want it
        return None
    return ModelShape.from_config(value, base_parameters(spec)) if isinstance(value, dict) else None


def parse_addresses(addresses: Iterable[str]) -> tuple[str, ...]:
    """Those that are swarm addresses; an odd one is left out, since there are others."""
    good = []
    for address in addresses:
        try:
            check_swarm_address(address)
        except FormatError:
            continue
        good.append(address)
    return tuple(good[:MAX_KNOWN_ADDRESSES])


def parse_alarm(reply: coordinator_pb2.AnnounceReply) -> Alarm | None:
    """What the coordinator is alarmed about."""
    if not reply.HasField("alarm"):
        return None
    said = reply.alarm
    now, before = (loss if math.isfinite(loss) else None for loss in (said.held_out_loss, said.published_loss))
    return Alarm(
        round=said.round,
        held_out_loss=now,
        published_round=said.published_round,
        published_loss=before,
        held_back=said.held_back,
    )
