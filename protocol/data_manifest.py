"""What a run's prepared data consist of: the manifest, whose digest the run spec pins.

The host prepares its sources once, into shards of some MB. A member fetches the manifest, and of the shards those that
its draws fall into (`peer.training.draw`); each is held against its digest here.

    {"v": 1, "sequence_length": 512, "tokenizer": "ab12…",
     "sources": [{"name": "wiki", "shards": [["cd34…", 1048576, 4096, 2080000], …]}, …],
     "held_out": ["ef56…", 70000, 256, 130000]}

A shard is its digest, its bytes, its sequences, and how many of their tokens are predicted: where documents are kept
apart, the first of each is not.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from protocol import canonical
from protocol.digests import Digest
from protocol.errors import FormatError

MAX_MANIFEST_BYTES = 64 << 20
MAX_SHARD_BYTES = 256 << 20
MAX_SOURCES = 64
_DIGEST: TypeAdapter[str] = TypeAdapter(Digest)
_ENTRY_BYTES = len(f'["{"0" * 64}",1,1,1],')  # of a shard in the manifest, at least


def most_shard_bytes(manifest_bytes: int) -> int:
    """What the shards of a manifest of that size come to at most.

    >>> most_shard_bytes(331) / MAX_SHARD_BYTES, most_shard_bytes(10_000) / MAX_SHARD_BYTES
    (4.0, 133.0)
    """
    return manifest_bytes // _ENTRY_BYTES * MAX_SHARD_BYTES


class ShardEntry(NamedTuple):
    digest: str  # SHA-256 of the file
    size_bytes: int
    sequences: int
    loss_tokens: int  # of them that are predicted


@dataclass(frozen=True)
class SourceEntry:
    """The shards of one source, in the order of its files."""

    name: str
    shards: tuple[ShardEntry, ...]

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """How many sequences there are up to the end of each shard."""
        return tuple(itertools.accumulate(shard.sequences for shard in self.shards))

    @property
    def sequences(self) -> int:
        return self.ends[-1] if self.shards else 0


@dataclass(frozen=True)
class DataManifest:
    """All shards of a run."""

    sequence_length: int  # tokens
    tokenizer: str  # SHA-256 of its tokenizer.json
    sources: tuple[SourceEntry, ...]
    held_out: ShardEntry

    @property
    def shards(self) -> list[ShardEntry]:
        return [shard for source in self.sources for shard in source.shards]

    def check(self, sources: Sequence[str], sequence_length: int) -> None:
        """Whether it is of a run with these sources. Raises: FormatError: it is not."""
        if [source.name for source in self.sources] != list(sources) or self.sequence_length != sequence_length:
            raise FormatError("the manifest of the data has other sources or sequences than the run spec pins")

    def to_bytes(self) -> bytes:
        sources = [{"name": item.name, "shards": [list(shard) for shard in item.shards]} for item in self.sources]
        return canonical.dumps(
            {
                "v": 1,
                "sequence_length": self.sequence_length,
                "tokenizer": self.tokenizer,
                "sources": sources,
                "held_out": list(self.held_out),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> DataManifest:
        """Read a manifest. Raises: FormatError: it is none."""
        value = canonical.loads(data, max_bytes=MAX_MANIFEST_BYTES)
        if not isinstance(value, dict) or value.keys() != {"v", "sequence_length", "tokenizer", "sources", "held_out"}:
            raise FormatError("not a manifest of a run's data")
        if value["v"] != 1:
            raise FormatError(f"a manifest of version {value['v']!r:.20}: update Potluck")
        sources = value["sources"]
        if not isinstance(sources, list) or not 0 < len(sources) <= MAX_SOURCES:
            raise FormatError(f"a manifest has 1 to {MAX_SOURCES} sources")
        made = cls(
            _whole(value["sequence_length"], 1 << 20, "sequence_length"),
            _digest(value["tokenizer"]),
            tuple(map(_source, sources)),
            _shard(value["held_out"]),
        )
        if len({source.name for source in made.sources}) < len(made.sources):
            raise FormatError("two sources of a manifest have one name")
        return made


def _source(value: Any) -> SourceEntry:
    if not isinstance(value, dict) or value.keys() != {"name", "shards"} or not isinstance(value["name"], str):
        raise FormatError("a source of a manifest has a name and shards")
    if not isinstance(value["shards"], list) or not value["shards"]:
        raise FormatError(f"source {value['name'][:60]!r} of a manifest has no shards")
    return SourceEntry(value["name"], tuple(map(_shard, value["shards"])))


def _shard(value: Any) -> ShardEntry:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 4:
        raise FormatError("a shard of a manifest is its digest, bytes, sequences and predicted tokens")
    digest, size, sequences, tokens = value
    return ShardEntry(
        _digest(digest),
        _whole(size, MAX_SHARD_BYTES, "bytes"),
        _whole(sequences, MAX_SHARD_BYTES, "sequences"),
        _whole(tokens, MAX_SHARD_BYTES, "predicted tokens"),
    )


def _digest(value: Any) -> str:
    try:
        return _DIGEST.validate_python(value, strict=True)
    except ValidationError as error:
        raise FormatError(f"not a SHA-256: {value!r:.80}") from error


def _whole(value: Any, most: int, what: str) -> int:
    if type(value) is not int or not 1 <= value <= most:
        raise FormatError(f"{what} of a manifest: expected 1 to {most}, got {value!r:.40}")
    return value
