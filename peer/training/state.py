"""The shared state in memory and on disk: what all members hold, byte for byte, after a committed round.

The swarm serves it chunk by chunk, the outer step makes the next one, the model is loaded from it. Its layout and its
digest are fixed in `protocol.state`: here are the tensors behind them. Everything is fp32 on the CPU.

    >>> state = SharedState(0, (("a", (2,)), ("b", (1, 3))), torch.arange(5.0))
    >>> state.manifest().parameter_count, state.chunk_count, len(state.chunk(0))
    (5, 1, 20)
    >>> assembler = StateAssembler(state.manifest(), state.leaf_hashes())
    >>> assembler.put(0, state.chunk(0))
    >>> assembler.state().digest == state.digest
    True

N in the shapes below is the number of trainable parameters.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from peer.training.tensor_file import write_tensors
from peer.training.vectors import bytes_of, check_vector
from protocol import merkle
from protocol.errors import FormatError, InputError, VerificationError
from protocol.state import STATE_CHUNK_BYTES, StateManifest, chunk_count

NamesShapes = tuple[tuple[str, tuple[int, ...]], ...]
_HASH_THREADS_FROM = 8  # chunks; below that one thread is as fast
_REFETCH = "delete the file; the state is fetched again from the members"


@dataclass(frozen=True, eq=False)
class SharedState:
    """The agreed state after a round.

    Args:
        round: the state after this round; 0 is genesis.
        names_shapes: (name, shape) of each tensor, sorted by name.
        parameters: flat fp32 [N] on the CPU, the tensors in that order.
        outer: what the outer optimizer remembers: none, one or two flat fp32 [N].
        outer_steps: AdamW's step count.
        known: chunk -> its Merkle leaf hash, of the chunks that are those of the state before.

    Raises:
        FormatError: another dtype, device or length, unsorted names, or values that are not finite.
    """

    round: int
    names_shapes: NamesShapes
    parameters: torch.Tensor
    outer: tuple[torch.Tensor, ...] = ()
    outer_steps: int = 0
    known: Mapping[int, bytes] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if sys.byteorder != "little":
            raise FormatError("the shared state is little-endian; this machine is not")
        names = [name for name, _ in self.names_shapes]
        if names != sorted(set(names)):
            raise FormatError("a state lists each tensor once, sorted by name")
        count = sum(math.prod(shape) for _, shape in self.names_shapes)
        for label, vector in (("parameters", self.parameters), *((f"outer.{i}", v) for i, v in enumerate(self.outer))):
            check_vector(vector, count, f"the state's {label}")

    def manifest(self) -> StateManifest:
        """What the state digest stands for; computed once."""
        return self._manifest

    @property
    def digest(self) -> str:
        """The state digest, hex."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return self._manifest.digest

    @cached_property
    def _manifest(self) -> StateManifest:
        leaves = self.leaf_hashes()
        split = chunk_count(4 * self.parameters.numel())
        return StateManifest(
            round=self.round,
            tensors=self.names_shapes,
            parameters=merkle.root(leaves[:split]).hex(),
            outer=merkle.root(leaves[split:]).hex(),
            outer_vectors=len(self.outer),
            outer_steps=self.outer_steps,
        )

    def leaf_hashes(self) -> list[bytes]:
        """32-byte Merkle leaf hashes: the parameters' chunks, then the outer vectors'; computed once."""
        return list(self._leaf_hashes)

    @cached_property
    def _leaf_hashes(self) -> tuple[bytes, ...]:
        found = dict(self.known)
        unknown = [index for index in range(self.chunk_count) if index not in found]
        pieces = [self._chunk_view(index) for index in unknown]
        if len(pieces) < _HASH_THREADS_FROM:
            found |= zip(unknown, map(merkle.leaf_hash, pieces), strict=True)
        else:
            with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:  # hashlib lets go of the GIL
                found |= zip(unknown, pool.map(merkle.leaf_hash, pieces), strict=True)
        return tuple(found[index] for index in range(self.chunk_count))

    def leaves_outside(self, changed: slice, outer_vectors: int) -> dict[int, bytes]:
        """The leaf hashes that a state has in common with this one, for `known`.

        Args:
            changed: the values in which it may differ, of the parameters and of each outer vector.
            outer_vectors: how many of these it has.
        """
        count = self.parameters.numel()
        start, stop, _ = changed.indices(count)
        if (start, stop) == (0, count) or outer_vectors != len(self.outer):
            return {}
        split, found = chunk_count(4 * count), dict(enumerate(self.leaf_hashes()))
        for first, vector in ((0, 0), *((split, number) for number in range(outer_vectors))):
            low, high = 4 * (vector * count + start), 4 * (vector * count + stop)
            for chunk in range(low // STATE_CHUNK_BYTES, chunk_count(high)):
                found.pop(first + chunk, None)
        return found

    def differs_from(self, other: SharedState) -> list[slice]:
        """In which stretches of the parameters two states of one shape may differ, by their leaf hashes."""
        pairs = zip(self.leaf_hashes(), other.leaf_hashes(), strict=False)  # the parameters' come first
        size = STATE_CHUNK_BYTES // 4
        split = chunk_count(4 * self.parameters.numel())
        return [slice(i * size, (i + 1) * size) for i, (own, its) in enumerate(pairs) if i < split and own != its]

    @property
    def chunk_count(self) -> int:
        """How many chunks there are, parameters and outer vectors together."""
        return chunk_count(4 * self.parameters.numel()) + chunk_count(4 * self.parameters.numel() * len(self.outer))

    def chunk(self, index: int) -> bytes:
        """Chunk `index`, at most 1 MiB: the parameters' chunks first, then those of the outer vectors laid end to end.

        Raises:
            FormatError: there is no such chunk.
        """
        return bytes(self._chunk_view(index))

    def _chunk_view(self, index: int) -> memoryview:
        if not 0 <= index < self.chunk_count:
            raise FormatError(f"expected a chunk index below {self.chunk_count}, got {index}")
        split = chunk_count(4 * self.parameters.numel())
        if index < split:
            return bytes_of(self.parameters)[index * STATE_CHUNK_BYTES : (index + 1) * STATE_CHUNK_BYTES]
        start = (index - split) * STATE_CHUNK_BYTES
        size = 4 * self.parameters.numel()
        end = min(start + STATE_CHUNK_BYTES, size * len(self.outer))
        if start // size == (end - 1) // size:
            return bytes_of(self.outer[start // size])[start % size : (end - 1) % size + 1]
        joined = b"".join(
            bytes_of(vector)[max(start - i * size, 0) : max(end - i * size, 0)] for i, vector in enumerate(self.outer)
        )
        return memoryview(joined)  # this chunk lies across vectors

    def save(self, path: Path) -> None:
        """Write the state to one safetensors file, whole or not at all.

        Raises:
            InputError: the disk is full, or the folder cannot be written.
        """
        tensors = {"parameters": self.parameters} | {f"outer.{i}": vector for i, vector in enumerate(self.outer)}
        write_tensors(path, tensors, {"manifest": self.manifest().to_bytes().decode(), "digest": self.digest})

    @classmethod
    def load(cls, path: Path) -> SharedState:
        """Read what `save` wrote and check it against its own digest.

        Raises:
            InputError: unreadable, or its bytes have changed.
        """
        if not path.is_file():
            raise InputError(f"{path}: no such state file")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                manifest = StateManifest.from_bytes(metadata["manifest"].encode())
                labels = ["parameters", *(f"outer.{i}" for i in range(manifest.outer_vectors))]
                vectors = [file.get_tensor(label).clone() for label in labels]
            state = cls(manifest.round, manifest.tensors, vectors[0], tuple(vectors[1:]), manifest.outer_steps)
        except (SafetensorError, OSError, KeyError, FormatError, json.JSONDecodeError) as error:
            raise InputError(f"{path}: not a state file, or it is damaged: {error}", _REFETCH) from error
        if state.digest != metadata.get("digest"):
            expected = str(metadata.get("digest"))[:16]
            raise InputError(f"{path}: expected state {expected}…, got {state.digest[:16]}…", _REFETCH)
        return state


class StateAssembler:
    """Takes the chunks of one state in any order, each checked before it is kept.

    Args:
        manifest: its digest was compared by the caller.
        leaf_hashes: what some member says the chunks' hashes are; checked against the manifest's roots at once, so
            that each chunk can be checked when it comes.

    Raises:
        VerificationError: the leaf hashes do not lead to the manifest's roots.
    """

    def __init__(self, manifest: StateManifest, leaf_hashes: list[bytes]) -> None:
        self.manifest = manifest
        self._split = chunk_count(manifest.parameter_bytes)
        self.chunk_count = self._split + chunk_count(manifest.outer_bytes)
        roots = [merkle.root(leaf_hashes[: self._split]).hex(), merkle.root(leaf_hashes[self._split :]).hex()]
        if len(leaf_hashes) != self.chunk_count or roots != [manifest.parameters, manifest.outer]:
            raise VerificationError("the leaf hashes do not lead to the roots in the state manifest")
        self._leaf_hashes = leaf_hashes
        self._vectors = [torch.empty(manifest.parameter_count) for _ in range(1 + manifest.outer_vectors)]
        self._missing = set(range(self.chunk_count))

    @property
    def missing(self) -> list[int]:
        """Indices of chunks that have not come yet, in order."""
        return sorted(self._missing)

    def chunk_bytes(self, index: int) -> int:
        """How long chunk `index` must be. Raises: FormatError: there is no such chunk."""
        if not 0 <= index < self.chunk_count:
            raise FormatError(f"expected a chunk index below {self.chunk_count}, got {index}")
        start, end = self._span(index)
        return end - start

    def put(self, index: int, data: bytes | bytearray | memoryview) -> None:
        """Keep one chunk. Putting one twice is harmless.

        Raises:
            FormatError: no such chunk, or another size.
            VerificationError: another hash than its leaf.
        """
        expected = self.chunk_bytes(index)
        if len(data) != expected:
            raise FormatError(f"state chunk {index}: expected {expected} bytes, got {len(data)}")
        if merkle.leaf_hash(data) != self._leaf_hashes[index]:
            raise VerificationError(f"state chunk {index} does not have the hash that its leaf states")
        start, end = self._span(index)
        vectors = self._vectors[:1] if index < self._split else self._vectors[1:]
        size = self.manifest.parameter_bytes
        source = memoryview(data)
        for i, vector in enumerate(vectors):
            low, high = max(start, i * size), min(end, (i + 1) * size)
            if low < high:
                bytes_of(vector)[low - i * size : high - i * size] = source[low - start : high - start]
        self._missing.discard(index)

    def take(self, other: SharedState) -> None:
        """Copy what is the same in another state of this shape, as told by the leaf hashes."""
        same = [
            i for i, (mine, its) in enumerate(zip(self._leaf_hashes, other.leaf_hashes(), strict=True)) if mine == its
        ]
        for index in self._missing.intersection(same):
            with contextlib.suppress(VerificationError):  # it has changed in memory since it was hashed
                self.put(index, other.chunk(index))

    def _span(self, index: int) -> tuple[int, int]:
        if index < self._split:
            start, total = index * STATE_CHUNK_BYTES, self.manifest.parameter_bytes
        else:
            start, total = (index - self._split) * STATE_CHUNK_BYTES, self.manifest.outer_bytes
        return start, min(start + STATE_CHUNK_BYTES, total)

    def state(self) -> SharedState:
        """The whole state, checked.

        Raises:
            FormatError: chunks are missing, or values are not finite.
            VerificationError: the bytes do not have the manifest's roots.
        """
        if self._missing:
            raise FormatError(f"{len(self._missing)} of {self.chunk_count} chunks of the state are missing")
        m = self.manifest
        state = SharedState(m.round, m.tensors, self._vectors[0], tuple(self._vectors[1:]), m.outer_steps)
        if state.digest != m.digest:
            raise VerificationError(f"expected state {m.digest[:16]}…, got {state.digest[:16]}…")
        return state
