"""A reveal as bytes (`protocol.reveal`): written by the author of a claim, read and checked by whoever replays it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch

from peer.training.codecs.codec import EncodedUpdate, chunk_sizes, codec
from peer.training.own_state import OwnState
from peer.training.replay import Revealed
from peer.training.state import SharedState
from peer.training.vectors import bytes_of, chunks_of, is_finite
from protocol import merkle
from protocol.errors import FormatError, VerificationError
from protocol.reveal import RevealHead
from protocol.statements import Claim


class Sent(NamedTuple):
    """What travels."""

    head: bytes
    size_bytes: int  # of the pieces
    pieces: Iterable[bytes | memoryview]


def as_sent(revealed: Revealed) -> Sent:
    head = head_of(revealed)
    return Sent(head.to_bytes(), size_of(head, revealed.claim), pieces_of(revealed))


def head_of(revealed: Revealed) -> RevealHead:
    start = revealed.start.manifest if revealed.start is not None else None
    return RevealHead(base=revealed.base.manifest(), start=start, end=revealed.end.manifest)


def pieces_of(revealed: Revealed) -> Iterator[memoryview | bytes]:
    """The bytes after the head, in pieces of 1 MiB at most."""
    yield from chunks_of(bytes_of(revealed.base.parameters))
    for own in (revealed.start, revealed.end):
        for _, vector in sorted(own.vectors.items()) if own is not None else ():
            yield from chunks_of(bytes_of(vector.contiguous()))
    for chunk in revealed.update.chunks:
        yield from chunks_of(memoryview(chunk))


def size_of(head: RevealHead, claim: Claim) -> int:
    """How many bytes follow a head. Raises: FormatError: no such codec, or an unknown vector."""
    return head.base.parameter_bytes + sum(size for _, _, size, _ in head.vectors) + sum(_encoded_bytes(claim))


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
        parameters = _read(file, head.base.parameter_bytes, head.base.parameters, "the base", torch.float32)
        base = SharedState(head.base.round, head.base.tensors, parameters)  # without what the outer optimizer remembers
        owns: dict[str, dict[str, torch.Tensor]] = {"start": {}, "end": {}}
        for which, name, size, root in head.vectors:
            kind = torch.uint8 if name.endswith("_8bit") else torch.float32
            vector = owns[which][name] = _read(file, size, root, f"{name} of the {which}", kind)
            if kind is torch.float32 and not is_finite(vector):
                raise FormatError(f"{name} of the {which}: values that are not finite")
        chunks = tuple(_exactly(file, size) for size in _encoded_bytes(claim))
    named = claim.update
    update = EncodedUpdate(named.codec, named.values, named.chunk_values, chunks)
    if update.root != named.root:
        raise VerificationError("the update is not the one that the claim was made for")
    start = OwnState(head.start.numbers, owns["start"]) if head.start is not None else None
    return Revealed(claim, by, base, start, OwnState(head.end.numbers, owns["end"]), update)


def _encoded_bytes(claim: Claim) -> list[int]:
    named = claim.update
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
