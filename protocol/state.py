"""The shared state: how it is laid out, named by a digest, and checked chunk by chunk.

The state after a round is the run's trainable parameters and what the outer optimizer remembers. Every tensor is fp32.
The parameters, in the order of their sorted names, are laid end to end as little-endian bytes; so are the outer
optimizer's vectors (none, one or two, each as long as the parameters). Both byte strings are cut into 1 MiB chunks,
which are the leaves of an RFC 6962 Merkle tree each. The state digest is

    SHA-256("potluck-state-v1\\n" + canonical JSON of {"round", "tensors", "parameters", "outer", "outer_steps"})

so a checkpoint's weights can be held against the members' agreement with nothing but the file and `checkpoint.json`.

    >>> manifest = StateManifest(round=0, tensors=(("w", (2, 3)),), parameters="0" * 64, outer=EMPTY_ROOT)
    >>> manifest.parameter_bytes, len(manifest.digest)
    (24, 64)
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol import canonical
from protocol.digests import Digest
from protocol.errors import FormatError

STATE_CHUNK_BYTES = 1 << 20
MAX_MANIFEST_BYTES = 4 << 20
EMPTY_ROOT = canonical.sha256_hex(b"")  # RFC 6962: the root of a tree without leaves
_DOMAIN = b"potluck-state-v1\n"

Name = Annotated[str, Field(min_length=1, max_length=512)]
Size = Annotated[int, Field(ge=1, le=2**40)]


class StateManifest(BaseModel):
    """What a state digest stands for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    round: int = Field(ge=0, le=10**9)  # the state after this round; 0 is genesis
    tensors: tuple[tuple[Name, tuple[Size, ...]], ...] = Field(
        min_length=1, max_length=100_000
    )  # (name, shape), sorted by name
    parameters: Digest  # Merkle root of the parameters' chunks
    outer: Digest = EMPTY_ROOT  # Merkle root of the outer optimizer's chunks
    outer_vectors: int = Field(default=0, ge=0, le=2)  # how many vectors the outer optimizer keeps
    outer_steps: int = Field(default=0, ge=0, le=10**9)  # AdamW's step count

    @property
    def parameter_count(self) -> int:
        return sum(math.prod(shape) for _, shape in self.tensors)

    @property
    def parameter_bytes(self) -> int:
        return 4 * self.parameter_count

    @property
    def outer_bytes(self) -> int:
        return self.outer_vectors * self.parameter_bytes

    @property
    def digest(self) -> str:
        """The state digest."""
        return canonical.sha256_hex(_DOMAIN + self.to_bytes())

    def to_bytes(self) -> bytes:
        return canonical.dumps(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls, data: bytes) -> StateManifest:
        """Read a manifest; compare its `digest` before believing it.

        Raises:
            FormatError: not a manifest, or names that are not sorted or stand twice.
        """
        try:
            manifest = cls.model_validate(canonical.loads(data, max_bytes=MAX_MANIFEST_BYTES))
        except ValidationError as error:
            raise FormatError(f"not a state manifest: {error.errors()[0]['msg']}") from error
        names = [name for name, _ in manifest.tensors]
        if names != sorted(set(names)):
            raise FormatError("a state manifest lists each tensor once, sorted by name")
        return manifest


def chunk_count(size_bytes: int) -> int:
    return -(-size_bytes // STATE_CHUNK_BYTES)
