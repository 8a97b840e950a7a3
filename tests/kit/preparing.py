"""Small data sets and what became of them, for the tests of the host's preparation, which is done in this process."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from coordinator.dataset.chunk_files import DataFolder
from coordinator.dataset.plain_tokenizer import PlainTokenizer
from coordinator.dataset.prepare import Prepared, prepare
from coordinator.run_config import SourceConfig
from peer.training.dataset.shard import Shard
from protocol.data_manifest import ShardEntry
from protocol.data_spec import SequenceRules
from tests.kit.data_fixtures import CHAT, byte_tokenizer

LENGTH = 32


def plain(template: str | dict[str, str] | None = CHAT, **front: str) -> PlainTokenizer:
    """The byte-level tokenizer of the other tests."""
    return PlainTokenizer.of(byte_tokenizer(template, **front))


def source(name: str = "wood", **values: Any) -> SourceConfig:
    return SourceConfig.model_validate(
        {"name": name, "license": "MIT", "kind": "jsonl", "path": f"{name}.jsonl"} | values
    )


def rules(**values: Any) -> SequenceRules:
    return SequenceRules.model_validate({"sequence_length": LENGTH, "held_out": 0.1, "held_out_sequences": 50} | values)


def prepared(base: Path, *sources: SourceConfig, folder: str = "data", **options: Any) -> Prepared:
    """Prepare sources that lie in `base`, in small chunks and in this process if nothing else is said."""
    sequences = options.pop("sequences", None) or rules()
    tokenizer = options.pop("tokenizer", None) or plain()
    return prepare(
        sources, sequences, base, tokenizer, base / folder, **{"processes": 0, "chunk_bytes": 2000} | options
    )


def write_records(path: Path, texts: Iterable[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def shard(folder: Path, entry: ShardEntry, length: int = LENGTH, apart: bool = False) -> Shard:
    """As a member reads it."""
    return Shard.from_bytes(DataFolder(folder).shard(entry.digest).read_bytes(), length, 1 << 16, apart)


def sequences(folder: Path, entries: Iterable[ShardEntry], length: int = LENGTH) -> list[list[int]]:
    found = []
    for entry in entries:
        read = shard(folder, entry, length)
        found += [read.tokens[slice(*read.bounds(row))].tolist() for row in range(len(read))]
    return found


def documents(tokenizer: PlainTokenizer, folder: Path, entries: Iterable[ShardEntry]) -> list[str]:
    """The texts of packed shards, which the end-of-sequence token parts."""
    found: list[str] = []
    for entry in entries:
        text = tokenizer.backend_tokenizer.decode(shard(folder, entry).tokens.tolist(), skip_special_tokens=False)
        found += [document for document in text.split("</s>") if document]  # the last may have lost its end
    return found


def both_sides(tokenizer: PlainTokenizer, folder: Path, made: Prepared) -> tuple[list[str], list[str]]:
    """(trained on, held out), as texts."""
    entries = made.manifest.shards
    return documents(tokenizer, folder, entries), documents(tokenizer, folder, [made.manifest.held_out])
