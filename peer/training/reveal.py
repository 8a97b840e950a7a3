"""A reveal as bytes (`protocol.reveal`): written by the author of a claim, read and checked by whoever replays it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch

from peer.training.codecs.codec import EncodedUpdate, chunk_sizes, codec
from peer.training.own_state import OwnState
from peer.training.replay import Before, Revealed
from peer.training.state import SharedState
from peer.training.vectors import bytes_of, chunks_of, is_finite
from protocol import merkle
from protocol.errors import FormatError, VerificationError
from protocol.reveal import RevealHead
from protocol.state import StateManifest
from protocol.statements import Claim, Jump, UpdateDigest


class Sent(NamedTuple):
    """What travels."""

    head: bytes
    size_bytes: int  # of the pieces
    pieces: Iterable[bytes | memoryview]


def as_sent(revealed: Revealed) -> Sent:
    head = head_of(revealed)
    return Sent(head.to_bytes(), size_of(head, revealed.claim), pieces_of(revealed))


def head_of(revealed: Revealed) -> RevealHead:
    start, before = revealed.start, revealed.before
    return RevealHead(
        base=revealed.base.manifest(),
        before=before.base.manifest() if before is not None else None,
        start=start.manifest if start is not None else None,
        end=revealed.end.manifest,
    )


def pieces_of(revealed: Revealed) -> Iterator[memoryview | bytes]:
    """The bytes after the head, in pieces of 1 MiB at most."""
    before = revealed.before
    for base in (revealed.base, *((before.base,) if before is not None else ())):
        yield from chunks_of(bytes_of(base.parameters))
    for own in (revealed.start, revealed.end):
        for _, vector in sorted(own.vectors.items()) if own is not None else ():
            yield from chunks_of(bytes_of(vector.contiguous()))
    for update in (revealed.update, *((before.update,) if before is not None else ())):
        for chunk in update.chunks:
            yield from chunks_of(memoryview(chunk))


def size_of(head: RevealHead, claim: Claim) -> int:
    """How many bytes follow a head. Raises: FormatError: no such codec, or an unknown vector."""
    bases = head.base.parameter_bytes * (1 if head.before is None else 2)
    updates = (claim.update, *((jump.update,) if (jump := _jump(claim)) is not None else ()))
    return bases + sum(size for _, _, size, _ in head.vectors) + sum(sum(_encoded_bytes(each)) for each in updates)


def read_revealed(head: RevealHead, path: Path, claim: Claim, by: str) -> Revealed:
    """What lies in a file of such bytes, all of it held against what the claim names.

    Args:
        by: peer id of the claim's author.

    Raises:
        FormatError: another length, values that are not finite, or what does not decode.
        VerificationError: not the bytes that the claim was made for.
        OSError: it cannot be read.
    """
    if path.stat().st_size != size_of(head, claim):
        raise FormatError(f"expected {size_of(head, claim)} bytes, got {path.stat().st_size}")
    with path.open("rb") as file:
        base = _read_base(file, head.base, "the base")
        before = _read_base(file, head.before, "the base before") if head.before is not None else None
        owns: dict[str, dict[str, torch.Tensor]] = {"start": {}, "end": {}}
        for which, name, size, root in head.vectors:
            kind = torch.uint8 if name.endswith("_8bit") else torch.float32
            vector = owns[which][name] = _read(file, size, root, f"{name} of the {which}", kind)
            if kind is torch.float32 and not is_finite(vector):
                raise FormatError(f"{name} of the {which}: values that are not finite")
        update, jump = _read_update(file, claim.update), _jump(claim)
        stood_on = Before(before, _read_update(file, jump.update)) if before is not None and jump is not None else None
    start = OwnState(head.start.numbers, owns["start"]) if head.start is not None else None
    return Revealed(claim, by, base, start, OwnState(head.end.numbers, owns["end"]), update, stood_on)


def _jump(claim: Claim) -> Jump | None:
    start = claim.trajectory.start if claim.trajectory is not None else None
    return start.jump if start is not None else None


def _read_base(file: BinaryIO, manifest: StateManifest, what: str) -> SharedState:
    """Without what the outer optimizer remembers."""
    parameters = _read(file, manifest.parameter_bytes, manifest.parameters, what, torch.float32)
    return SharedState(manifest.round, manifest.tensors, parameters)


def _read_update(file: BinaryIO, named: UpdateDigest) -> EncodedUpdate:
    chunks = tuple(_exactly(file, size) for size in _encoded_bytes(named))
    update = EncodedUpdate(named.codec, named.values, named.chunk_values, chunks)
    if update.root != named.root:
        raise VerificationError("an update is not the one that the claim was made for")
    return update


def _encoded_bytes(named: UpdateDigest) -> list[int]:
    coder = codec(named.codec)
    return [coder.encoded_bytes(values) for values in chunk_sizes(named.values, named.chunk_values)]


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise FormatError("the reveal ends too soon")
    return data


def _read(file: BinaryIO, size: int, root: str, what: str, kind: torch.dtype) -> torch.Tensor:
    vector = torch.empty(size // (4 if kind is torch.float32 else 1), dtype=kind)
    target, leaves = bytes_of(vector), []
    for piece in chunks_of(target):
        piece[:] = _exactly(file, len(piece))
        leaves.append(merkle.leaf_hash(piece))
    if merkle.root(leaves).hex() != root:
        raise VerificationError(f"{what} is not what the claim names")
    return vector
