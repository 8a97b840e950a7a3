"""Prepared data as a member has them: shards, draws, and a cache that fetches what is needed next."""

from __future__ import annotations

import collections
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from peer.training.dataset.draws import ERA, LOT, Draws, Sample
from peer.training.dataset.shard import Shard
from peer.training.dataset.sharded import ShardedSequences
from protocol.data_manifest import MAX_MANIFEST_BYTES, DataManifest, ShardEntry, SourceEntry
from protocol.data_spec import PinnedDataSet
from protocol.errors import FormatError
from tests.kit.shards import LENGTH, PEER, VOCABULARY, Prepared, shard_of

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

        def has(self, entry: ShardEntry) -> bool:
            return True

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
