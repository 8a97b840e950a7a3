"""Prepares a run's sources: chunks on all cores into shards, and the manifest that names them. Its digest is the root.

    prepared = prepare(config.data_sources, config.sequences, base, tokenizer, folder / "data", processes=4)
    print(prepared.root)

What a chunk comes to depends on its bytes, the tokenizer and the rules, and its place in the manifest on its file: so
the root is the same for any number of processes. A chunk that is done is not done again, whatever ended the last try.
"""

from __future__ import annotations

import datetime
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from coordinator.dataset import columns
from coordinator.dataset.chunk_files import ChunkJob, DataFolder, DoneChunk
from coordinator.dataset.chunks import CHUNK_BYTES, Chunk, chunks_of
from coordinator.dataset.findings import DataReport
from coordinator.dataset.kept_out import KeptPlace, first_of, lay, lowest
from coordinator.dataset.plain_tokenizer import PlainTokenizer
from coordinator.dataset.sources import SourceFile, files_of
from coordinator.dataset.tokenize import check_tokenizer
from coordinator.dataset.workers import ChunkWorkers
from coordinator.file_lock import held
from coordinator.run_config import SourceConfig
from peer.training.dataset.shard import Shard, token_type
from peer.training.records import Record
from protocol import canonical
from protocol.data_manifest import DataManifest, ShardEntry, SourceEntry
from protocol.data_spec import SequenceRules
from protocol.disk import disk_error, write_file
from protocol.errors import InputError, PotluckError

_PRUNED_AT = 100_000  # records that are kept out, by their places, before the highest are forgotten


@dataclass(frozen=True)
class Progress:
    """How far it is."""

    done_bytes: int  # of the sources
    size_bytes: int
    old_bytes: int  # of those done: by an earlier try
    tokens: int
    new_tokens: int  # of this try
    bad: int


@dataclass(frozen=True)
class Prepared:
    """What came of it."""

    manifest: DataManifest
    root: str  # SHA-256 of the manifest
    sequences: SequenceRules  # with the day that chat templates are told
    report: DataReport
    progress: Progress


def prepare(
    sources: Sequence[SourceConfig],
    sequences: SequenceRules,
    base: Path,
    tokenizer: PlainTokenizer,
    folder: Path,
    *,
    processes: int,
    chunk_bytes: int = CHUNK_BYTES,
    tell: Callable[[str], None] = lambda line: None,
    show: Callable[[Progress], None] = lambda progress: None,
) -> Prepared:
    """Prepare what is not prepared yet.

    Args:
        base: the folder of run.toml.
        folder: where it goes, of this run alone.
        processes: how many at a time; 0: in this process.
        tell: hears what is worth a line.
        show: hears how far it is.

    Raises:
        InputError: the sources, the tokenizer or the folder cannot be used, a run in it has begun with other data, or
            the disk is full.
        NetworkError: a source cannot be reached.
    """
    here = DataFolder(folder)
    with _locked(here):
        here.clear_up()
        rules = dated(sources, sequences, here)
        job = ChunkJob(tuple(sources), rules, tokenizer, here)
        return _Preparation(job, sources, base, chunk_bytes, tell, show).run(processes)


class _Preparation:
    def __init__(
        self,
        job: ChunkJob,
        sources: Sequence[SourceConfig],
        base: Path,
        chunk_bytes: int,
        tell: Callable[[str], None],
        show: Callable[[Progress], None],
    ) -> None:
        self._job, self._sources, self._chunk_bytes = job, sources, chunk_bytes
        self._tell, self._show = tell, show
        for source in sources:
            _check(source, job)
        self._files = [files_of(source, base, tell) for source in sources]
        for files in self._files:
            for file in files:
                columns.check_installed(file)
        size = sum(file.size_bytes for files in self._files for file in files)
        self._progress = Progress(0, size, 0, 0, 0, 0)
        self._report = DataReport()
        self._shards: list[list[ShardEntry]] = [[] for _ in sources]
        self._keys: set[str] = set()  # of all chunks
        self._kept_out: list[tuple[KeptPlace, str, int]] = []  # with the chunk's key, and which of its records

    def run(self, processes: int) -> Prepared:
        self._show(self._progress)
        with ChunkWorkers(processes, self._job) as workers:
            for number in range(len(self._sources)):
                self._prepare_source(number, workers)
        job = self._job
        manifest = DataManifest(
            job.sequences.sequence_length,
            job.tokenizer.digest,
            tuple(
                SourceEntry(source.name, tuple(entries))
                for source, entries in zip(self._sources, self._shards, strict=True)
            ),
            job.write_shard(self._held_out()),
        )
        data = manifest.to_bytes()
        DataManifest.from_bytes(data)  # members must be able to read it
        root, begun = canonical.sha256_hex(data), job.folder.begun()
        if begun not in (None, root):
            raise InputError(
                f"{job.folder.path.parent}: the run there has begun with other data",
                "give another run.name, or another folder with --folder; or change run.toml and the sources back",
            )
        write_file(job.folder.bad_records, self._report.bad_to_bytes())
        write_file(job.folder.manifest, data)
        if begun is None:  # what a host serves stays as it is
            job.folder.clear_out({entry.digest for entry in (*manifest.shards, manifest.held_out)}, self._keys)
        return Prepared(manifest, root, job.sequences, self._report, self._progress)

    def _prepare_source(self, number: int, workers: ChunkWorkers) -> None:
        source = self._sources[number]
        self._report.begin(source.name)
        waiting: deque[tuple[Chunk, Future[None] | None]] = deque()
        left_out: set[str] = set()
        file: list[str] = []  # whose chunks are heard of now

        def take() -> None:
            chunk, future = waiting.popleft()
            if file != [chunk.file.name]:
                file[:] = [chunk.file.name]
                self._report.begin_file()
            if chunk.file.name not in left_out and not self._hear(source, chunk, future, workers):
                left_out.add(chunk.file.name)

        for chunk in self._chunks(number):
            if chunk.file.name in left_out:
                continue
            is_done = DoneChunk.read(self._job.folder, self._job.key(chunk)) is not None
            waiting.append((chunk, None if is_done else workers.hand_in(chunk)))
            while len(waiting) >= workers.most_waiting:
                take()
        while waiting:
            take()
        self._check_source(source)

    def _chunks(self, number: int) -> Iterator[Chunk]:
        """The source's chunks; a file that has none is told."""
        source = self._sources[number]
        for file in self._files[number]:
            if not file.size_bytes:
                self._leave_out(source, file, f"{file.name}: the data file is empty", "give a file with data in it")
                continue
            try:
                yield from chunks_of(number, file, self._chunk_bytes)
            except InputError as error:  # of a table
                self._leave_out(source, file, error.message, error.hint)

    def _hear(self, source: SourceConfig, chunk: Chunk, future: Future[None] | None, workers: ChunkWorkers) -> bool:
        """Take a chunk into the manifest, when it is done; False: nothing of its file from here on."""
        key = self._job.key(chunk)
        self._keys.add(key)
        if future is not None:
            with _of_source(source):
                workers.take_back(future)
        done = DoneChunk.read(self._job.folder, key)
        if done is None:
            raise InputError(f"{self._job.folder.path}: files in it have gone", "start it again: it goes on from here")
        found = done.found
        if found.problem is not None:
            self._leave_out(source, chunk.file, *found.problem)
            return False
        bad = self._report.hear(chunk.file.name, found)
        if bad and source.on_bad == "stop":
            raise InputError(str(bad[0]), bad[0].hint or 'on_bad = "skip" leaves such records out, and tells of them')
        entries = self._shards[chunk.source]
        entries += done.shards
        summary = self._report.sources[-1]
        summary.sequences += sum(entry.sequences for entry in done.shards)
        summary.size_bytes += sum(entry.size_bytes for entry in done.shards)
        self._kept_out += [(place, key, row) for row, place in enumerate(done.kept_out)]
        if len(self._kept_out) > _PRUNED_AT:
            self._kept_out = self._lowest()
        now, size = self._progress, chunk.size_bytes
        self._progress = Progress(
            now.done_bytes + size,
            now.size_bytes,
            now.old_bytes + (size if future is None else 0),
            now.tokens + found.tokens,
            now.new_tokens + (found.tokens if future is not None else 0),
            now.bad + found.bad_count,
        )
        self._show(self._progress)
        return True

    def _leave_out(self, source: SourceConfig, file: SourceFile, message: str, hint: str) -> None:
        """Raises: InputError: if that ends the preparation."""
        told = f"{source.name}: {message}"
        if source.on_bad == "stop":
            raise InputError(told, hint)
        self._tell(f"{told}; the file is left out")
        self._report.leave_out(file.name, message)

    def _check_source(self, source: SourceConfig) -> None:
        """Raises: InputError: there is nothing in it to train on."""
        found, entries = self._report.sources[-1], self._shards[len(self._report.sources) - 1]
        if entries:
            return
        first = next((item for item in self._report.bad if item.source == source.name), None)
        if first is not None and not found.records:
            raise InputError(f"{source.name}: none of its {found.bad} records can be used; {first.reason}", first.hint)
        raise InputError(
            f"{source.name}: nothing in its {found.files} files to train on",
            "give more data, or a smaller sequences.held_out",
        )

    # ---- held out ----

    def _most(self) -> int:
        rules = self._job.sequences
        return rules.held_out_sequences * rules.sequence_length

    def _lowest(self) -> list[tuple[KeptPlace, str, int]]:
        return [self._kept_out[number] for number in lowest([item[0] for item in self._kept_out], self._most())]

    def _held_out(self) -> Shard:
        """Of what all chunks keep out the records with the lowest places, as sequences. Raises: InputError: none."""
        rules, job = self._job.sequences, self._job
        rows = self._lowest()
        found: dict[tuple[str, int], Record] = {}
        for key in {key for _, key, _ in rows}:
            kept = Shard.from_bytes(job.folder.kept_out(key).read_bytes(), 1 << 31, 1 << 32)
            for row in (row for _, other, row in rows if other == key):
                start, end = kept.bounds(row)
                found[key, row] = Record(kept.tokens[start:end].astype("int32"), kept.learned[start:end])
        records = [found[key, row] for _, key, row in rows]
        shard, _ = lay(records, rules.sequence_length, rules.packing, token_type(job.tokenizer.vocabulary))
        if shard is None:
            raise InputError(
                f"too little data: no record fell to the {rules.held_out:g} of them that are held out",
                "give more data, or a larger sequences.held_out",
            )
        return first_of(shard, rules.held_out_sequences)


def _check(source: SourceConfig, job: ChunkJob) -> None:
    with _of_source(source):
        check_tokenizer(source, job.sequences, job.tokenizer)


@contextmanager
def _of_source(source: SourceConfig) -> Iterator[None]:
    """In the block, errors name the source."""
    try:
        yield
    except PotluckError as error:
        raise type(error)(f"{source.name}: {error.message}", error.hint) from error


def dated(sources: Sequence[SourceConfig], sequences: SequenceRules, folder: DataFolder) -> SequenceRules:
    """With the day that chat templates are told: as given, else that of the first preparation in this folder."""
    if sequences.template_date is not None or all(source.kind != "chat" for source in sources):
        return sequences
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    if folder.settings.is_file():
        day = str(json.loads(folder.settings.read_bytes())["template_date"])
    else:
        write_file(folder.settings, canonical.dumps({"template_date": day}))
    return SequenceRules.model_validate(sequences.model_dump() | {"template_date": day})


@contextmanager
def _locked(folder: DataFolder) -> Iterator[None]:
    """Hold the folder; the system lets go of it when the process ends. Raises: InputError: another one holds it."""
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(folder.path, error) from error

    def taken(_: str) -> InputError:
        return InputError(f"{folder.path}: another process prepares data there", "wait for it, or stop it")

    with held(folder.path / "lock", taken):
        yield
