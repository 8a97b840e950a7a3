"""How an update travels: as fp32, fp16 or int8, cut into chunks that a claim binds by a Merkle root.

Encoding happens once, on the sender; decoding on every member, with the same bits everywhere: fp16 to fp32 is exact, and
int8 is one fp32 product for each value. All numbers are little-endian; `n` values become

    fp32   n x f32
    fp16   n x f16, values beyond the largest one (65504) saturated
    int8   ceil(n / 256) x f32 scale, then n x i8 from -127 to 127; value = i8 * scale of its block of 256

    >>> int8 = codec("int8")
    >>> data = int8.encode(torch.tensor([0.0, -1.0, 0.5]))
    >>> len(data) == int8.encoded_bytes(3) == 4 + 3
    True
    >>> int8.decode(data, 3)
    tensor([ 0.0000, -1.0000,  0.5039])

An update is cut into chunks of `chunk_values` values, each encoded by itself, so that whoever reduces some chunks can check
them against the claim of their sender and needs no others:

    >>> update = EncodedUpdate.encode(torch.ones(5), "fp16", chunk_values=2)
    >>> [len(chunk) for chunk in update.chunks], len(update.root)
    ([4, 4, 2], 64)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from peer.training.aggregate import fp32
from peer.training.state import check_vector, is_finite
from protocol import merkle
from protocol.claim import UpdateDigest
from protocol.errors import FormatError

CHUNK_VALUES = 65536  # 256 KiB of fp32
BLOCK_VALUES = 256  # int8: values that share a scale
_FP16_MAX = 65504.0


class Codec(ABC):
    """One way to write fp32 values as bytes."""

    name: str

    @abstractmethod
    def encoded_bytes(self, count: int) -> int:
        """How many bytes `count` values take."""

    @abstractmethod
    def _encode(self, values: torch.Tensor) -> bytes: ...

    @abstractmethod
    def _decode(self, data: memoryview, count: int) -> tuple[torch.Tensor, bool]:
        """The values, and whether all are finite."""

    def encode(self, values: torch.Tensor) -> bytes:
        """Write flat fp32 [n] as bytes.

        Raises:
            FormatError: not flat contiguous fp32 on the CPU, or not finite.
        """
        check_vector(values, values.numel(), f"{self.name} codec")
        return self._encode(values)

    def decode(self, data: bytes | bytearray | memoryview, count: int) -> torch.Tensor:
        """Read `count` values back as flat fp32; never shares memory with `data`.

        Raises:
            FormatError: another size than `count` values take, bytes the encoder does not write, or values that are
                not finite.
        """
        if count < 0 or len(data) != self.encoded_bytes(count):
            expected = self.encoded_bytes(max(count, 0))
            raise FormatError(f"{self.name} codec: expected {expected} bytes for {count} values, got {len(data)}")
        values, finite = self._decode(memoryview(data), count)
        if not finite:
            raise FormatError(f"{self.name} codec: values that are not finite")
        return values


class _Fp32(Codec):
    name = "fp32"

    def encoded_bytes(self, count: int) -> int:
        return 4 * count

    def _encode(self, values: torch.Tensor) -> bytes:
        return values.numpy().tobytes()

    def _decode(self, data: memoryview, count: int) -> tuple[torch.Tensor, bool]:
        values = _floats(data, "<f4")
        return values, is_finite(values)


class _Fp16(Codec):
    name = "fp16"

    def encoded_bytes(self, count: int) -> int:
        return 2 * count

    def _encode(self, values: torch.Tensor) -> bytes:
        return values.clamp(-_FP16_MAX, _FP16_MAX).to(torch.float16).numpy().tobytes()

    def _decode(self, data: memoryview, count: int) -> tuple[torch.Tensor, bool]:
        values = _floats(data, "<f2").to(torch.float32)
        return values, is_finite(values)


class _Int8(Codec):
    name = "int8"

    def encoded_bytes(self, count: int) -> int:
        return 4 * _blocks(count) + count

    def _encode(self, values: torch.Tensor) -> bytes:
        blocks = _in_blocks(values)
        scales = torch.mul(blocks.abs().amax(dim=1, keepdim=True), fp32(1.0 / 127.0))
        # a block of zeros, or of values too small for a scale, is all zeros
        quotients = torch.where(scales > 0, torch.div(blocks, scales), torch.zeros_like(blocks))
        levels = quotients.round_().clamp_(-127, 127).to(torch.int8)
        return scales.numpy().tobytes() + levels.view(-1)[: values.numel()].numpy().tobytes()

    def _decode(self, data: memoryview, count: int) -> tuple[torch.Tensor, bool]:
        split = 4 * _blocks(count)
        scales, levels = _floats(data[:split], "<f4"), np.frombuffer(data[split:], dtype=np.int8)
        if count == 0:
            return torch.zeros(0), True
        if scales.min().item() < 0 or levels.min() < -127:
            raise FormatError("int8 codec: a scale that is negative, or a level of -128")
        blocks = _in_blocks(torch.from_numpy(levels.astype(np.float32)))
        values = torch.mul(blocks, scales.view(-1, 1), out=blocks).view(-1)[:count]
        return values, is_finite(values)


def _floats(data: memoryview, dtype: str) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(data, dtype=dtype).copy())


def _blocks(count: int) -> int:
    return -(-count // BLOCK_VALUES)


def _in_blocks(values: torch.Tensor) -> torch.Tensor:
    """[n] -> [ceil(n / 256), 256], the last block filled up with zeros."""
    missing = _blocks(values.numel()) * BLOCK_VALUES - values.numel()
    if missing:
        values = torch.nn.functional.pad(values, (0, missing))
    return values.view(-1, BLOCK_VALUES)


_CODECS: dict[str, Codec] = {c.name: c for c in (_Fp32(), _Fp16(), _Int8())}


def codec(name: str) -> Codec:
    """The codec of that name.

    Raises:
        FormatError: there is none.
    """
    try:
        return _CODECS[name]
    except KeyError:
        raise FormatError(f"expected one of the codecs {', '.join(_CODECS)}, got {name[:32]!r}") from None


def chunk_sizes(values: int, chunk_values: int) -> list[int]:
    """How many values each chunk of an update of `values` values has; all but the last are full."""
    full, rest = divmod(values, chunk_values)
    return [chunk_values] * full + ([rest] if rest else [])


@dataclass(frozen=True, eq=False)
class EncodedUpdate:
    """An update as it travels.

    Args:
        codec: the codec's name.
        values: fp32 values before encoding.
        chunk_values: per chunk; the last may be shorter.
        chunks: encoded, in order.
    """

    codec: str
    values: int
    chunk_values: int
    chunks: tuple[bytes, ...]

    @classmethod
    def encode(cls, vector: torch.Tensor, codec_name: str, chunk_values: int = CHUNK_VALUES) -> EncodedUpdate:
        """Encode flat fp32 [N].

        Raises:
            FormatError: no such codec, or the vector is not flat fp32 on the CPU, or not finite.
        """
        coder = codec(codec_name)
        pieces = vector.split(chunk_values) if vector.dim() == 1 else (vector,)
        return cls(codec_name, vector.numel(), chunk_values, tuple(coder.encode(piece) for piece in pieces))

    @classmethod
    def join(cls, digest: UpdateDigest, chunks: list[bytes]) -> EncodedUpdate:
        """Put a received update together, checked against the digest in its sender's claim.

        Raises:
            FormatError: the number of chunks or the root differs, or there is no such codec.
        """
        codec(digest.codec)
        update = cls(digest.codec, digest.values, digest.chunk_values, tuple(chunks))
        if len(chunks) != len(chunk_sizes(digest.values, digest.chunk_values)) or update.root != digest.root:
            raise FormatError("the update's chunks do not have the root that its claim states")
        return update

    @cached_property
    def tree(self) -> merkle.Tree:
        return merkle.Tree(merkle.leaf_hash(chunk) for chunk in self.chunks)

    @property
    def root(self) -> str:
        """Hex Merkle root over the encoded chunks."""
        return self.tree.root.hex()

    def proof(self, index: int) -> list[bytes]:
        """The inclusion proof of chunk `index`, 32 bytes a step. Raises: ValueError: there is no such chunk."""
        return self.tree.inclusion_proof(index)

    @property
    def digest(self) -> UpdateDigest:
        """What a claim says of this update."""
        return UpdateDigest(root=self.root, values=self.values, chunk_values=self.chunk_values, codec=self.codec)

    def decode_chunk(self, index: int) -> torch.Tensor:
        """Chunk `index` as flat fp32. Raises: FormatError: it does not decode."""
        sizes = chunk_sizes(self.values, self.chunk_values)
        return codec(self.codec).decode(self.chunks[index], sizes[index])

    def decode(self) -> torch.Tensor:
        """The whole update as every member reads it: flat fp32 [N]. Raises: FormatError: it does not decode."""
        return torch.cat([self.decode_chunk(index) for index in range(len(self.chunks))])

    def residual(self, vector: torch.Tensor) -> torch.Tensor:
        """What encoding lost, `vector - decode()`: add it to the next update so that small changes are not lost for ever
        (error feedback, Seide et al. 2014)."""
        return torch.sub(vector, self.decode())


def verify_chunk(digest: UpdateDigest, index: int, data: bytes, proof: list[bytes]) -> torch.Tensor:
    """Check one received chunk against its sender's claim, and decode it.

    Returns:
        flat fp32, as many values as chunk `index` has.

    Raises:
        FormatError: no such chunk or codec, another size, or values that are not finite.
        VerificationError: the proof does not lead to the claim's root.
    """
    count = -(-digest.values // digest.chunk_values)
    if not 0 <= index < count:
        raise FormatError(f"expected a chunk index below {count}, got {index}")
    size = min(digest.chunk_values, digest.values - index * digest.chunk_values)
    coder = codec(digest.codec)
    if len(data) != coder.encoded_bytes(size):
        raise FormatError(f"chunk {index}: expected {coder.encoded_bytes(size)} bytes, got {len(data)}")
    merkle.verify_inclusion(merkle.leaf_hash(data), index, count, proof, bytes.fromhex(digest.root))
    return coder.decode(data, size)
