"""Prepared data in memory, for the tests of what members make of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from peer.training.dataset.shard import Shard
from protocol.data_manifest import DataManifest, ShardEntry, SourceEntry
from protocol.data_spec import PinnedDataSet, SourceRules

LENGTH, VOCABULARY = 8, 1000
PEER = "12D3KooWExample"


def shard_of(first: int, sequences: int, length: int = 4) -> Shard:
    """Sequences of one token each, another one for each: `first`, `first` + 1, …"""
    tokens = np.repeat(np.arange(first, first + sequences, dtype=np.uint16), length)
    ends = np.arange(length, len(tokens) + 1, length, dtype=np.uint32)
    return Shard(tokens, ends, np.ones(len(tokens), dtype=bool), np.concatenate([[0], ends[:-1]]).astype(np.uint32))


class Prepared:
    """A host's data in memory: source name -> sizes of its shards."""

    def __init__(self, **sources: list[int]) -> None:
        self.files: dict[str, bytes] = {}
        first, made = 0, []
        for name, sizes in sources.items():
            entries = []
            for size in sizes:
                entries.append(self._add(shard_of(first, size)))
                first += size
            made.append(SourceEntry(name, tuple(entries)))
        self.manifest = DataManifest(LENGTH, "a" * 64, tuple(made), self._add(shard_of(first, 3)))

    def _add(self, shard: Shard) -> ShardEntry:
        data = shard.to_bytes()
        entry = shard.entry(data)
        self.files[entry.digest] = data
        return entry

    def spec(self, *weights: float) -> PinnedDataSet:
        sources = [
            SourceRules(name=source.name, license="MIT", weight=weight)
            for source, weight in zip(self.manifest.sources, weights, strict=True)
        ]
        data = self.manifest.to_bytes()
        digest = hashlib.sha256(data).hexdigest()
        return PinnedDataSet(sources=tuple(sources), digest=digest, size_bytes=len(data), sequence_length=LENGTH)

    def give(self, entry: ShardEntry, path: Path) -> None:
        part = path.with_name(path.name + ".part")
        part.write_bytes(self.files[entry.digest])
        part.replace(path)
