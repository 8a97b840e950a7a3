"""A shard: some thousand sequences of tokens in one safetensors file. Written by the host, read by who draws from it.

    tokens      uint16 or uint32 [N], all sequences one after the other, without padding
    ends        uint32 [S], where each sequence ends in `tokens`
    unlearned   uint8 [ceil(N / 8)]: a bit for each token (the highest first) that is not to be predicted; absent: none
    documents   uint32 [D], where each document begins in `tokens`, ascending; the first begins at 0

The first token of a sequence is never predicted. Legend: N tokens, S sequences, D documents, T tokens in a sequence.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from protocol.data_manifest import MAX_SHARD_BYTES, ShardEntry
from protocol.errors import FormatError

_DTYPES = {"tokens": (np.uint16, np.uint32), "ends": (np.uint32,), "unlearned": (np.uint8,), "documents": (np.uint32,)}


@dataclass(frozen=True, eq=False)
class Shard:
    """Sequences of tokens.

    Args:
        tokens: uint16 or uint32 [N].
        ends: uint32 [S].
        learned: bool [N], True where the token is to be predicted.
        documents: uint32 [D].
    """

    tokens: np.ndarray
    ends: np.ndarray
    learned: np.ndarray
    documents: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def bounds(self, row: int) -> tuple[int, int]:
        """Where a sequence begins and ends in `tokens`."""
        return (int(self.ends[row - 1]) if row else 0), int(self.ends[row])

    def starts(self, row: int) -> np.ndarray:
        """Where documents begin in a sequence, counted from its beginning, which is the first of them; int64 [D]."""
        start, end = self.bounds(row)
        first, last = np.searchsorted(self.documents, [start + 1, end])
        return np.concatenate([[0], np.unique(self.documents[first:last]).astype(np.int64) - start])

    @property
    def loss_tokens(self) -> np.ndarray:
        """How many tokens of each sequence are predicted, int64 [S]."""
        starts = np.concatenate([[0], self.ends[:-1]]).astype(np.int64)
        sums = np.add.reduceat(self.learned.astype(np.int64), starts)
        found: np.ndarray = sums - self.learned[starts]
        return found

    def to_bytes(self) -> bytes:
        """The file. The same bytes for the same sequences."""
        tensors: dict[str, np.ndarray] = {"tokens": self.tokens, "ends": self.ends, "documents": self.documents}
        if not self.learned.all():
            tensors["unlearned"] = np.packbits(~self.learned)
        return save(tensors)

    def kept_apart(self) -> Shard:
        """The same where documents do not see each other: the first token of each is not predicted."""
        learned = self.learned.copy()
        learned[self.documents] = False
        return replace(self, learned=learned)

    def entry(self, data: bytes, apart: bool = False) -> ShardEntry:
        """As a manifest has it.

        Args:
            data: what `to_bytes` gave.
            apart: documents do not see each other.
        """
        predicted = (self.kept_apart() if apart else self).loss_tokens
        return ShardEntry(hashlib.sha256(data).hexdigest(), len(data), len(self), int(predicted.sum()))

    @classmethod
    def from_bytes(cls, data: bytes, length: int, vocabulary: int, apart: bool = False) -> Shard:
        """Read a shard whose digest has been checked; what a careless host may have written is found all the same.

        Args:
            length: most tokens of a sequence.
            vocabulary: rows of the model's embeddings.
            apart: documents do not see each other: the first token of each is not predicted.

        Raises:
            FormatError: not a shard, a sequence that is empty or too long, or a token that the model has no row for.
        """
        if len(data) > MAX_SHARD_BYTES:
            raise FormatError(f"a shard has at most {MAX_SHARD_BYTES} bytes, got {len(data)}")
        try:
            tensors = load(data)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise FormatError(f"not a shard: {error}") from error
        for name, array in tensors.items():
            if name not in _DTYPES or array.dtype not in _DTYPES[name] or array.ndim != 1:
                raise FormatError(f"not a shard: {name[:40]!r} is {array.dtype} with {array.ndim} dimensions")
        if missing := _DTYPES.keys() - {"unlearned"} - tensors.keys():
            raise FormatError(f"not a shard: it lacks {', '.join(sorted(missing))}")
        return cls._checked(tensors, length, vocabulary, apart)

    @classmethod
    def _checked(cls, tensors: dict[str, np.ndarray], length: int, vocabulary: int, apart: bool) -> Shard:
        tokens, ends, documents = tensors["tokens"], tensors["ends"], tensors["documents"]
        sizes = np.diff(ends.astype(np.int64), prepend=0)
        if not len(ends) or sizes.min() < 2 or sizes.max() > length or ends[-1] != len(tokens):
            raise FormatError(f"not a shard: sequences are not of 2 to {length} tokens, or do not fill it")
        if tokens.max() >= vocabulary:
            raise FormatError(f"the data hold token {tokens.max()}, the model has {vocabulary} rows of embeddings")
        if not len(documents) or documents[0] or (np.diff(documents.astype(np.int64)) < 0).any():
            raise FormatError("not a shard: its documents do not ascend from 0")
        if documents[-1] >= len(tokens):
            raise FormatError("not a shard: a document begins behind its end")
        bits = tensors.get("unlearned")
        if bits is None:
            learned = np.ones(len(tokens), dtype=bool)
        elif len(bits) == -(-len(tokens) // 8):
            learned = ~np.unpackbits(bits, count=len(tokens)).astype(bool)
        else:
            raise FormatError("not a shard: it has not one bit for each token")
        made = cls(tokens, ends, learned, documents)
        made = made.kept_apart() if apart else made
        if not made.loss_tokens.all():
            raise FormatError("not a shard: a sequence holds nothing to learn")
        return made


def token_type(vocabulary: int) -> Any:
    """How a tokenizer's tokens are held: uint16 where that is enough."""
    return np.uint16 if vocabulary <= 1 << 16 else np.uint32
