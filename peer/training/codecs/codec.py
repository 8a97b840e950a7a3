"""How an update travels: by one of six codecs, cut into chunks that a claim binds by a Merkle root.

    fp32, fp16   `peer.training.codecs.dense`, which also says what a codec is
    int8, int4   `peer.training.codecs.block`
    int2         `peer.training.codecs.two_bit`
    topk         `peer.training.codecs.sparse`; its averages, which have more places, by a codec of their own

    >>> data = codec("int8").encode(torch.tensor([0.0, -1.0, 0.5]))
    >>> len(data) == codec("int8").encoded_bytes(3) == 4 + 3
    True
    >>> codec("int8").decode(data, 3)
    tensor([ 0.0000, -1.0000,  0.5039])

An update is cut into chunks of `chunk_values` values, each encoded by itself, so that whoever reduces some chunks can
check them against the claim of their sender and needs no others:

    >>> update = EncodedUpdate.encode(torch.ones(5), "fp16", chunk_values=2)
    >>> [len(chunk) for chunk in update.chunks], len(update.root)
    ([4, 4, 2], 64)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from peer.training.codecs.block import Int4, Int8
from peer.training.codecs.dense import Codec, Fp16, Fp32
from peer.training.codecs.sparse import TopK, TopKAverage
from peer.training.codecs.two_bit import Int2
from protocol import merkle
from protocol.errors import FormatError
from protocol.statements import UpdateDigest

CHUNK_VALUES = 65536  # 256 KiB of fp32

_CODECS: dict[str, Codec] = {c.name: c for c in (Fp32(), Fp16(), Int8(), Int4(), Int2(), TopK())}
_OF_AVERAGES: dict[str, Codec] = {"topk": TopKAverage()}  # those that are written in another way than updates


def codec(name: str) -> Codec:
    """The codec of that name.

    Raises:
        FormatError: there is none.
    """
    try:
        return _CODECS[name]
    except KeyError:
        raise FormatError(f"expected one of the codecs {', '.join(_CODECS)}, got {name[:32]!r}") from None


def average_codec(name: str) -> Codec:
    """How an average travels in a run whose updates travel by the codec of that name.

    Raises:
        FormatError: there is none.
    """
    return _OF_AVERAGES.get(name) or codec(name)


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
        """What encoding lost, `vector - decode()`.

        Added to the next update, so that small changes are not lost for ever (error feedback, Seide et al. 2014).

        Args:
            vector: what was encoded, flat fp32 [N]; overwritten, and returned.
        """
        for index, piece in enumerate(vector.split(self.chunk_values)):
            piece.sub_(self.decode_chunk(index))
        return vector


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
