"""A member's cache of shards: bounded, verified, filled from several sources, on a disk that may be full."""

from __future__ import annotations

import collections
import logging
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from lab.mirror import Mirror
from peer.link import shard_cache
from peer.link.shard_cache import ShardCache, from_mirror
from peer.training.dataset.draws import LOT, Draws, Sample
from peer.training.dataset.sharded import ShardedSequences
from protocol.data_manifest import ShardEntry
from protocol.errors import InputError, NetworkError, RoundAborted, VerificationError
from tests.kit.shards import LENGTH, PEER, VOCABULARY, Prepared


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


def test_a_damaged_shard_is_fetched_again_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_cache, "LOOK_S", 1e6)  # nothing but a word wakes who fetches
    prepared = Prepared(a=[5])
    (entry,) = prepared.manifest.shards
    path = tmp_path / f"{entry.digest}.safetensors"
    path.write_bytes(bytes(entry.size_bytes))
    with cache_of(tmp_path, prepared.give) as cache:
        threading.Event().wait(0.3)  # who fetches has nothing to do: else this shows nothing
        assert cache.read(entry, wait_s=30) == prepared.files[entry.digest] == path.read_bytes()


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


def test_a_cache_stays_within_its_limit_when_more_is_wanted_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepared = Prepared(a=[20] * 30)
    entries = prepared.manifest.shards
    size = entries[0].size_bytes
    given: collections.Counter[str] = collections.Counter()

    def gives(entry: ShardEntry, path: Path) -> None:
        given[entry.digest] += 1
        prepared.give(entry, path)
        assert sum(item.stat().st_size for item in tmp_path.iterdir()) <= 5 * size

    with cache_of(tmp_path, gives, most_bytes=5 * size) as cache:
        cache.want(entries[:12])
        for entry in entries[:12]:
            cache.read(entry, wait_s=30)
    assert set(given.values()) == {1}, "what is fetched ahead pushes out nothing that is wanted"
    assert sum("--data-cache" in line.message for line in caplog.records) == 1


def test_a_shard_larger_than_the_cache_may_be_is_refused_with_the_number_to_give(tmp_path: Path) -> None:
    prepared = Prepared(a=[20])
    (entry,) = prepared.manifest.shards
    with (
        cache_of(tmp_path, prepared.give, most_bytes=entry.size_bytes - 1) as cache,
        pytest.raises(InputError) as told,
    ):
        cache.read(entry, wait_s=30)
    assert told.value.hint == "give it more: --data-cache 0.2"


def test_on_a_disk_that_is_nearly_full_the_cache_makes_do_with_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = Prepared(a=[20] * 10)
    entries = prepared.manifest.shards
    size = entries[0].size_bytes
    usage = shutil.disk_usage(tmp_path)

    def nearly_full(folder: Path) -> object:
        here = sum(item.stat().st_size for item in tmp_path.iterdir())
        return usage._replace(free=shard_cache.SPARE_BYTES + 3 * size - here)

    monkeypatch.setattr(shutil, "disk_usage", nearly_full)
    with cache_of(tmp_path, prepared.give) as cache:
        for entry in entries:
            assert cache.read(entry, wait_s=30) == prepared.files[entry.digest]
            assert len(list(tmp_path.iterdir())) <= 3


def test_a_disk_that_becomes_full_meanwhile_costs_other_shards_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = Prepared(a=[20] * 3)
    entries = prepared.manifest.shards
    usage = [shutil.disk_usage(tmp_path)._replace(free=1 << 40)]
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage[0])

    def gives(entry: ShardEntry, path: Path) -> None:
        if entry == entries[2] and usage[0].free:
            usage[0] = usage[0]._replace(free=0)
            raise InputError("the disk is full")
        prepared.give(entry, path)

    with cache_of(tmp_path, gives) as cache:
        for entry in entries:
            assert cache.read(entry, wait_s=30) == prepared.files[entry.digest]
    assert [path.stem for path in tmp_path.iterdir()] == [entries[2].digest]


def test_after_a_restart_a_shard_that_is_here_serves_as_the_example(tmp_path: Path) -> None:
    prepared = Prepared(a=[5, 6], b=[7])
    entry = prepared.manifest.sources[1].shards[0]
    with cache_of(tmp_path) as cache:  # no source: what is not here cannot be had
        prepared.give(entry, tmp_path / f"{entry.digest}.safetensors")
        data = ShardedSequences(prepared.manifest, prepared.spec(1.0, 1.0), 5, cache, VOCABULARY)
        assert data.example() == Sample(1, 0, 0)
        assert data.counts([data.example()]) == (3, 4)


def test_whoever_waits_for_a_shard_leaves_when_its_owner_does(tmp_path: Path) -> None:
    def dead(entry: ShardEntry, path: Path) -> None:
        raise NetworkError("no route")

    stop = threading.Event()
    cache = ShardCache(tmp_path, [dead], 1 << 30, is_stopped=stop.is_set)
    with cache, pytest.raises(RoundAborted, match="stopped by its owner"):
        threading.Timer(0.2, stop.set).start()
        cache.read(Prepared(a=[5]).manifest.shards[0], wait_s=60)


# ---- a mirror --------------------------------------------------------------------------------------------------------


@pytest.fixture
def mirrored(tmp_path: Path) -> Iterator[tuple[Prepared, Mirror]]:
    prepared = Prepared(a=[9000, 9001])
    folder = tmp_path / "mirror"
    folder.mkdir()
    for digest, data in prepared.files.items():
        (folder / f"{digest}.safetensors").write_bytes(data)
    with Mirror(folder, bytes_per_s=1e9) as mirror:
        yield prepared, mirror


def test_a_mirror_that_lies_is_named_and_another_source_is_taken(
    mirrored: tuple[Prepared, Mirror], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepared, mirror = mirrored
    mirror.damaged |= {path.name for path in mirror.folder.iterdir()}
    entry = prepared.manifest.shards[0]
    with cache_of(tmp_path / "cache", from_mirror(mirror.url), prepared.give) as cache:
        assert cache.read(entry, wait_s=30) == prepared.files[entry.digest]
    (line,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert line.startswith(f"a part of the data could not be fetched from {mirror.url}: {entry.digest}")


def test_a_mirror_that_sends_too_slowly_is_left_for_another(
    mirrored: tuple[Prepared, Mirror], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_cache, "CALL_S", 0.2)
    monkeypatch.setattr(shard_cache, "SLOWEST", 1e9)
    prepared, mirror = mirrored
    mirror.bytes_per_s = 40_000.0  # a piece in 0.4 s: no wait for the network is long
    entry = prepared.manifest.shards[0]
    with cache_of(tmp_path / "cache", from_mirror(mirror.url), prepared.give) as cache:
        assert cache.read(entry, wait_s=30) == prepared.files[entry.digest]
    assert 0 < sum(mirror.sent.values()) < 2 * entry.size_bytes


def test_a_mirror_that_failed_is_asked_first_again_after_a_while(
    mirrored: tuple[Prepared, Mirror], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_cache, "REST_S", 0.5)
    prepared, mirror = mirrored
    first, second = prepared.manifest.shards
    mirror.die()
    with cache_of(tmp_path / "cache", from_mirror(mirror.url), prepared.give) as cache:
        cache.read(first, wait_s=30)
        mirror.live()
        time.sleep(0.6)
        cache.read(second, wait_s=30)
    assert list(mirror.asked) == [f"{second.digest}.safetensors"]
