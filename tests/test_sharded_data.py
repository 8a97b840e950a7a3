"""Prepared data as a member has them: shards, draws, and a cache that fetches what is needed next."""

from __future__ import annotations

import collections
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from peer.link.shard_cache import ShardCache
from peer.training.dataset.draws import ERA, LOT, Draws, Sample
from peer.training.dataset.shard import Shard
from peer.training.dataset.sharded import ShardedSequences
from protocol.data_manifest import MAX_MANIFEST_BYTES, DataManifest, ShardEntry, SourceEntry
from protocol.data_spec import PinnedDataSet, SourceRules
from protocol.errors import FormatError, InputError, NetworkError, VerificationError

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
        path.write_bytes(self.files[entry.digest])


# ---- the manifest and a shard ----------------------------------------------------------------------------------------


def test_a_manifest_is_read_as_it_was_written() -> None:
    manifest = Prepared(a=[3, 4], b=[5]).manifest
    assert DataManifest.from_bytes(manifest.to_bytes()) == manifest


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"v":1', b'"v":2'),
        (b'"sequence_length":8', b'"sequence_length":0'),
        (b'"name":"b"', b'"name":"a"'),
        (b'"sources":[', b'"sources":[[],'),
        (b'"held_out":[', b'"held_out":[1,'),
        (b'"tokenizer":"', b'"tokenizer":"x'),
        (b",3,", b",3.5,"),
        (b",3,", b",true,"),
        (b"{", b'{"more":1,'),
    ],
)
def test_what_is_no_manifest_is_refused(before: bytes, after: bytes) -> None:
    data = Prepared(a=[3, 4], b=[5]).manifest.to_bytes()
    assert before in data
    with pytest.raises(FormatError):
        DataManifest.from_bytes(data.replace(before, after, 1))


def test_a_shard_keeps_its_sequences_and_what_is_not_learned() -> None:
    made = shard_of(7, 3)
    made.learned[[1, 6]] = False
    read = Shard.from_bytes(made.to_bytes(), LENGTH, VOCABULARY)
    for name in ("tokens", "ends", "learned", "documents"):
        assert np.array_equal(getattr(read, name), getattr(made, name))
    assert read.loss_tokens.tolist() == [2, 2, 3] and read.to_bytes() == made.to_bytes()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda shard: shard.ends.__setitem__(0, 1), "2 to 8 tokens"),
        (lambda shard: shard.ends.__setitem__(-1, 11), "fill"),
        (lambda shard: shard.ends.__setitem__(0, 9), "tokens"),
        (lambda shard: shard.tokens.__setitem__(3, 1000), "token 1000"),
        (lambda shard: shard.documents.__setitem__(0, 1), "documents"),
        (lambda shard: shard.learned.__setitem__(slice(4, 8), False), "nothing to learn"),
    ],
)
def test_a_shard_with_wrong_bounds_is_refused(change: Callable[[Shard], object], why: str) -> None:
    made = shard_of(7, 3)
    change(made)
    with pytest.raises(FormatError, match=why):
        Shard.from_bytes(made.to_bytes(), LENGTH, VOCABULARY)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_shard_or_a_format_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        Shard.from_bytes(data, LENGTH, VOCABULARY)


# ---- draws -----------------------------------------------------------------------------------------------------------


def test_each_sequence_is_drawn_equally_often_and_the_mix_is_that_of_the_weights() -> None:
    prepared = Prepared(a=[30, 10, 60], b=[50])
    draws = Draws(prepared.manifest, [3.0, 1.0], seed=5)
    found: collections.Counter[Sample] = collections.Counter()
    count, rounds = 4 * LOT, 60 * ERA
    for round in range(0, rounds, ERA // 2):
        for peer in range(20):
            found.update(draws.draw(round, f"peer{peer}", 0, count))
    total = found.total()
    of_a = sum(times for sample, times in found.items() if sample.source == 0)
    assert of_a / total == pytest.approx(0.75, abs=0.01)
    for source, (shares, part) in enumerate([((0.3, 0.1, 0.6), of_a), ((1.0,), total - of_a)]):
        for shard, share in enumerate(shares):
            times = [times for item, times in found.items() if item[:2] == (source, shard)]
            assert sum(times) / part == pytest.approx(share, abs=0.03)
            sequences = prepared.manifest.sources[source].shards[shard].sequences
            assert len(times) == sequences and max(times) < 1.3 * sum(times) / sequences


def test_64_draws_and_16_rounds_need_one_shard_of_each_source() -> None:
    manifest = Prepared(a=[5] * 40, b=[5] * 40).manifest
    draws = Draws(manifest, [1.0, 1.0], seed=0)
    for lot in range(3):
        drawn = {item[:2] for round in range(ERA) for item in draws.draw(round, PEER, lot * LOT, LOT)}
        assert sorted(source for source, _ in drawn) == [0, 1]
        named = draws.shards(ERA - 1, PEER, lot * LOT)
        assert {manifest.sources[source].shards[shard] for source, shard in drawn} == set(named)
    assert draws.shards(0, PEER, 0) != draws.shards(0, PEER, LOT) != draws.shards(ERA, PEER, LOT)
    assert draws.shards(0, PEER, 0) != draws.shards(0, "another", 0)


def test_draws_do_not_hang_on_how_they_are_asked_for() -> None:
    draws = Draws(Prepared(a=[5] * 40).manifest, [1.0], seed=0)
    whole = draws.draw(3, PEER, 0, 200)
    assert [one for first in range(200) for one in draws.draw(3, PEER, first, 1)] == whole


@settings(max_examples=30)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=5))
def test_any_weights_leave_each_source_its_share(weights: list[float]) -> None:
    sources = {f"s{index}": [4] for index in range(len(weights))}
    drawn = Draws(Prepared(**sources).manifest, weights, seed=1).draw(1, PEER, 0, 2000)
    for index, weight in enumerate(weights):
        share = sum(item.source == index for item in drawn) / len(drawn)
        assert share == pytest.approx(weight / sum(weights), abs=0.06)


def test_a_manifest_of_other_sources_and_a_shard_of_other_sequences_are_refused() -> None:
    prepared = Prepared(a=[5], b=[5])
    spec = prepared.spec(1.0, 1.0)

    class Here:
        def read(self, entry: ShardEntry) -> bytes:
            return prepared.files[entry.digest]

        def want(self, entries: object) -> None: ...

    for wrong in ({"sources": spec.sources[:1]}, {"sources": spec.sources[::-1]}, {"sequence_length": LENGTH + 1}):
        with pytest.raises(FormatError, match="than the run spec pins"):
            ShardedSequences(prepared.manifest, spec.model_copy(update=wrong), 0, Here(), VOCABULARY)
    a, b = prepared.manifest.sources
    says_more = SourceEntry("a", (a.shards[0]._replace(sequences=9),))
    data = ShardedSequences(replace(prepared.manifest, sources=(says_more, b)), spec, 0, Here(), VOCABULARY)
    with pytest.raises(FormatError, match="it has 5 sequences, by the manifest 9"):
        data.batch([Sample(0, 0, 0)])


def test_a_manifest_is_not_read_beyond_its_bound() -> None:
    spec = Prepared(a=[5]).spec(1.0)
    with pytest.raises(ValidationError, match="size_bytes"):
        PinnedDataSet.model_validate(spec.model_dump() | {"size_bytes": MAX_MANIFEST_BYTES + 1})


# ---- the cache -------------------------------------------------------------------------------------------------------


@contextmanager
def cache_of(folder: Path, *sources: object, most_bytes: int = 1 << 30) -> Iterator[ShardCache]:
    with ShardCache(folder, list(sources), most_bytes, failures.append) as cache:  # type: ignore[arg-type]
        yield cache
    assert not failures


failures: list[object] = []


def test_sequences_come_from_shards_that_were_fetched(tmp_path: Path) -> None:
    prepared = Prepared(a=[30, 10, 60], b=[50])
    with cache_of(tmp_path, prepared.give) as cache:
        data = ShardedSequences(prepared.manifest, prepared.spec(1.0, 1.0), 5, cache, VOCABULARY)
        rows = data.draw(5, 1, PEER, 0, 6)
        tokens_BT, labels_BT = data.batch(rows)
        starts = {(0, 0): 0, (0, 1): 30, (0, 2): 40, (1, 0): 100}
        assert tokens_BT[:, 0].tolist() == [starts[row[:2]] + row.row for row in rows]
        assert tokens_BT.shape == (6, LENGTH) and (labels_BT[:, 4:] == -100).all()
        assert data.counts(rows) == (18, 24)
        assert data.counts([data.example()]) == (3, 4)


def test_what_is_needed_next_is_here_before_it_is_drawn_from(tmp_path: Path) -> None:
    prepared = Prepared(a=[5] * 40)
    with cache_of(tmp_path, prepared.give) as cache:
        data = ShardedSequences(prepared.manifest, prepared.spec(1.0), 0, cache, VOCABULARY)
        data.draw(0, 1, PEER, 0, 1)
        wanted = Draws(prepared.manifest, [1.0], 0).shards(1, PEER, LOT)
        for _ in range(200):
            if (tmp_path / f"{wanted[0].digest}.safetensors").exists():
                return
            threading.Event().wait(0.05)
        raise AssertionError("the next lot was not fetched")


def test_a_source_that_is_dead_or_lies_is_left_for_another(tmp_path: Path) -> None:
    prepared, asked = Prepared(a=[5] * 4), []

    def dead(entry: ShardEntry, path: Path) -> None:
        asked.append("dead")
        raise NetworkError("no route")

    def lies(entry: ShardEntry, path: Path) -> None:
        asked.append("lies")
        raise VerificationError("other bytes")

    with cache_of(tmp_path, dead, lies, prepared.give) as cache:
        for entry in prepared.manifest.shards:
            assert cache.read(entry, wait_s=30) == prepared.files[entry.digest]
    assert asked == ["dead", "lies"], "then the good one is asked first"


def test_a_damaged_shard_is_fetched_again(tmp_path: Path) -> None:
    prepared = Prepared(a=[5])
    (entry,) = prepared.manifest.shards
    path = tmp_path / f"{entry.digest}.safetensors"
    path.write_bytes(bytes(entry.size_bytes))
    with cache_of(tmp_path, prepared.give) as cache:
        assert cache.read(entry, wait_s=30) == prepared.files[entry.digest] == path.read_bytes()


def test_a_shard_that_is_found_damaged_only_while_it_is_read_is_asked_for_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = Prepared(a=[5])  # who fetches has looked meanwhile, and found it there
    (entry,) = prepared.manifest.shards
    (tmp_path / f"{entry.digest}.safetensors").write_bytes(bytes(entry.size_bytes))

    def slow(data: bytes) -> Any:
        time.sleep(0.3)
        return hashlib.sha256(data)

    monkeypatch.setattr("peer.link.shard_cache.hashlib", SimpleNamespace(sha256=slow))
    with cache_of(tmp_path, prepared.give) as cache:
        assert cache.read(entry, wait_s=5) == prepared.files[entry.digest]


@pytest.mark.parametrize("look", [1, 2, 3])
def test_the_cache_ends_when_it_is_closed_between_a_look_and_a_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    looked = threading.Event()

    class Slow(threading.Event):
        looks = 0

        def is_set(self) -> bool:
            found = super().is_set()
            if threading.current_thread().name == "shards":
                self.looks += 1
                if self.looks == look:
                    looked.set()
                    time.sleep(0.3)
            return found

    monkeypatch.setattr("peer.link.shard_cache.threading", SimpleNamespace(Event=Slow, Condition=threading.Condition))
    with cache_of(tmp_path, Prepared(a=[5]).give):
        looked.wait(0.5)
    assert not [part for part in threading.enumerate() if part.name == "shards"]


def test_the_cache_keeps_to_its_size_and_to_what_is_wanted(tmp_path: Path) -> None:
    prepared = Prepared(a=[20] * 30)
    entries = prepared.manifest.shards
    most = 5 * entries[0].size_bytes
    with cache_of(tmp_path, prepared.give, most_bytes=most) as cache:
        cache.want(entries[:2])
        for entry in entries:
            cache.read(entry, wait_s=30)
            assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= most + 3 * entry.size_bytes
        names = {path.stem for path in tmp_path.iterdir()}
        assert entries[-1].digest in names and {entry.digest for entry in entries[:2]} <= names


def test_where_nothing_can_be_had_one_is_told_in_time(tmp_path: Path) -> None:
    def dead(entry: ShardEntry, path: Path) -> None:
        raise NetworkError("no route")

    prepared = Prepared(a=[5])
    with cache_of(tmp_path, dead) as cache:
        with pytest.raises(NetworkError, match="no route"):
            cache.read(prepared.manifest.shards[0], wait_s=0.3)
        threading.Timer(0.3, cache.close).start()
        with pytest.raises(NetworkError, match="closed"):
            cache.read(prepared.manifest.shards[0], wait_s=60)


def test_a_full_disk_is_an_error_and_no_endless_fetching(tmp_path: Path) -> None:
    def full(entry: ShardEntry, path: Path) -> None:
        raise InputError("the disk is full")

    prepared = Prepared(a=[5])
    with cache_of(tmp_path, full) as cache, pytest.raises(InputError, match="full"):
        cache.read(prepared.manifest.shards[0], wait_s=30)
