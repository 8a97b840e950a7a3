"""What of a chunk lies on disk, in `FOLDER/data`: written whole or not at all, so that a kill leaves nothing half done.

    shards/DIGEST.safetensors      sequences to train on; a chunk has one, rarely none or several
    kept-out/KEY.safetensors       the records that it keeps out, whole
    chunks/KEY.json                says that it is done, and what was found: {"v": 1, "shards": [["cd34…", …], …],
                                   "kept_out": [["00a1…", 412], …], "lines": 9120, "bad": [], …}

KEY stands for the chunk's bytes and all that makes tokens of them. What it does not name is not read.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coordinator.dataset.chunks import Chunk
from coordinator.dataset.findings import ChunkFindings
from coordinator.dataset.kept_out import KeptOut, KeptPlace, as_shard, lay
from coordinator.dataset.plain_tokenizer import PlainTokenizer
from coordinator.dataset.sources import check_unchanged
from coordinator.dataset.tokenize import records_of
from peer.training.dataset.shard import Shard, token_type
from peer.training.notes import LONG, UNKNOWN, UNPREDICTED
from peer.training.records import Record, place_of_tokens
from protocol import canonical
from protocol.data_manifest import MAX_SHARD_BYTES, ShardEntry
from protocol.data_spec import PinnedDataSet, SequenceRules, SourceRules
from protocol.disk import sync, write_file
from protocol.run_spec import RunSpec

RULES = 3  # another number when the same bytes give other tokens
SHARD_TOKENS = 8 << 20  # a shard ends with the record that reaches so many


class DataFolder:
    """Paths in a run's `data` folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = path / "manifest.json"
        self.bad_records = path / "bad-records.jsonl"
        self.settings = path / "preparation.json"

    def clear_up(self) -> None:
        """Remove what a kill left half written; nothing names it."""
        for path in self.path.glob("*/*.new*"):
            path.unlink(missing_ok=True)

    def begun(self) -> str | None:
        """The root of the data that a run in the folder above has begun with, if one has.

        Raises:
            PotluckError: its run spec cannot be read.
        """
        try:
            spec = RunSpec.from_bytes((self.path.parent / "run.json").read_bytes())
        except OSError:
            return None
        return spec.data.digest if isinstance(spec.data, PinnedDataSet) else ""

    def clear_out(self, shards: set[str], keys: set[str]) -> None:
        """Remove what earlier preparations have left.

        Args:
            shards: the digests of those that stay.
            keys: of the chunks that do.
        """
        for path in self.path.glob("shards/*.safetensors"):
            if path.stem not in shards:
                path.unlink(missing_ok=True)
        for path in (*self.path.glob("chunks/*.json"), *self.path.glob("kept-out/*.safetensors")):
            if path.stem not in keys:
                path.unlink(missing_ok=True)

    def shard(self, digest: str) -> Path:
        return self.path / "shards" / f"{digest}.safetensors"

    def kept_out(self, key: str) -> Path:
        return self.path / "kept-out" / f"{key}.safetensors"

    def chunk(self, key: str) -> Path:
        return self.path / "chunks" / f"{key}.json"


@dataclass(frozen=True)
class DoneChunk:
    """A chunk that is prepared."""

    shards: list[ShardEntry]
    kept_out: list[KeptPlace]
    found: ChunkFindings

    def to_bytes(self) -> bytes:
        kept_out = [[f"{place.value:016x}", place.tokens] for place in self.kept_out]
        value = {"v": 1, "shards": [list(entry) for entry in self.shards], "kept_out": kept_out}
        return json.dumps(value | self.found.to_json()).encode()

    @classmethod
    def read(cls, folder: DataFolder, key: str) -> DoneChunk | None:
        """A chunk that was prepared before, with all its files; None: it was not, or something of it is gone."""
        try:
            value = json.loads(folder.chunk(key).read_bytes())
            shards = [ShardEntry(*entry) for entry in value["shards"]]
            kept_out = [KeptPlace(int(place, 16), tokens) for place, tokens in value["kept_out"]]
            there = all(folder.shard(entry.digest).stat().st_size == entry.size_bytes for entry in shards)
            there = there and (not kept_out or folder.kept_out(key).is_file())
            return cls(shards, kept_out, ChunkFindings.from_json(value)) if there else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


@dataclass(frozen=True)
class ChunkJob:
    """What a process needs to prepare any chunk."""

    sources: tuple[SourceRules, ...]
    sequences: SequenceRules
    tokenizer: PlainTokenizer
    folder: DataFolder

    def key(self, chunk: Chunk) -> str:
        """By what the chunk's tokens depend on, with the file's stamp in place of its bytes."""
        source, day = self.sources[chunk.source], self.sequences.template_date
        return canonical.digest(
            {
                "rules": RULES,
                "chunk": [chunk.file.location, chunk.file.size_bytes, chunk.file.stamp, chunk.start, chunk.end],
                "source": [source.kind, source.text_field if source.kind == "jsonl" else None],
                "sequences": self.sequences.model_dump(mode="json", exclude={"mirrors", "template_date"}),
                "day": day if source.kind == "chat" else None,
                "tokenizer": [self.tokenizer.digest, self.tokenizer.special_tokens_map, self.tokenizer.chat_template],
            }
        )[:32]

    def do(self, chunk: Chunk) -> None:
        """Prepare a chunk; it is done when its file in `chunks` is there.

        Raises:
            InputError: its file cannot be read or has changed, the tokenizer lacks something, or the disk is full.
            NetworkError: its file cannot be reached.
        """
        found, key, rules = ChunkFindings(), self.key(chunk), self.sequences
        kept_out = KeptOut(rules.held_out_sequences * rules.sequence_length)
        waiting: list[Record] = []
        entries: list[ShardEntry] = []
        size = 0
        source = self.sources[chunk.source]
        for record in records_of(chunk, source, rules, self.tokenizer, found):
            if source.kind != "text" and not rules.packing:
                found.notes.count(LONG, len(record.tokens) > rules.sequence_length)
            place = place_of_tokens(record.tokens) if record.place is None else record.place
            if place < rules.held_out * 2**64:
                if record.loss_mask[1:].any():
                    kept_out.add(place, record)
                self._note_unknown([record], found)
                continue
            waiting.append(record)
            size += len(record.tokens)
            if size >= SHARD_TOKENS:
                entries += self._write(waiting, source, found)
                waiting, size = [], 0
        entries += self._write(waiting, source, found)
        places, records = kept_out.records()
        if records:
            write_file(self.folder.kept_out(key), as_shard(records, self._dtype).to_bytes())
        check_unchanged(chunk.file)
        write_file(self.folder.chunk(key), DoneChunk(entries, places, found).to_bytes())

    @property
    def _dtype(self) -> type:
        found: type = token_type(self.tokenizer.vocabulary)
        return found

    def _note_unknown(self, records: list[Record], found: ChunkFindings) -> None:
        unknown = self.tokenizer.unk_token_id
        if unknown is not None and unknown not in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            tokens = np.concatenate([record.tokens for record in records]) if records else np.zeros(0, np.int32)
            found.notes.count(UNKNOWN, int((tokens == unknown).sum()))

    def _write(self, records: list[Record], source: SourceRules, found: ChunkFindings) -> list[ShardEntry]:
        self._note_unknown(records, found)
        packing = self.sequences.packing and source.kind != "text"  # a block of text fills a sequence
        shard, left_out = lay(records, self.sequences.sequence_length, packing, self._dtype)
        found.notes.count(UNPREDICTED, left_out)
        return [] if shard is None else [self.write_shard(shard)]

    def write_shard(self, shard: Shard) -> ShardEntry:
        """Raises: InputError: the disk is full."""
        data = shard.to_bytes()
        assert len(data) <= MAX_SHARD_BYTES, "a chunk's tokens come to no more"
        entry = shard.entry(data, self.sequences.documents_apart)
        path = self.folder.shard(entry.digest)
        own = path.with_name(f"{entry.digest}.new{os.getpid()}")  # another process may have the very same sequences
        write_file(own, data)
        os.replace(own, path)
        sync(path.parent)
        return entry
