"""Which sequences of prepared data are whose: a pseudo-random function that anyone can compute, of few shards.

Draw number `counter` (0, 1, 2, …) of a peer in a round falls into a source, a shard of it, and a sequence of that:

    h = SHA-256("potluck-draw-v2\\n" | run seed, u64 | round, u64 | counter, u64 | peer id, ASCII)
    source      h[0:8] as a fraction of 1, against the sources' weights
    shard       SHA-256("potluck-shard-v2\\n" | run seed, u64 | round // 16, u64 | counter // 64, u64 | source, u64 |
                peer id)[0:16] modulo the source's sequences: the shard that holds the sequence of that number
    sequence    h[8:24] modulo the shard's sequences

with big-endian integers. So 64 draws in a row come from one shard of each source, and the same of 15 other rounds do.
A shard is drawn as often as it has sequences, and of these each as often as any other: each sequence of a source
equally often. What draws share a shard are not independent, though: those of one peer in 16 rounds come from the same
places of the data, so that neighbours in a source meet more often than by independent draws.

    >>> shards = (ShardEntry("", 1, 90, 1), ShardEntry("", 1, 10, 1))
    >>> manifest = DataManifest(512, "", (SourceEntry("a", shards),), None)
    >>> Draws(manifest, [1.0], seed=0).draw(1, "12D3KooWExample", first=0, count=3)
    [Sample(source=0, shard=0, row=63), Sample(source=0, shard=0, row=2), Sample(source=0, shard=0, row=17)]
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import struct
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from protocol.data_manifest import DataManifest, ShardEntry, SourceEntry

LOT = 64  # draws in a row that share their shards; part of the rule
ERA = 16  # rounds that do
_DRAW, _SHARD = b"potluck-draw-v2\n", b"potluck-shard-v2\n"


class Sample(NamedTuple):
    source: int
    shard: int  # of that source
    row: int


class Draws:
    """The draws of one run.

    Args:
        weights: of the manifest's sources, by the run spec.
    """

    def __init__(self, manifest: DataManifest, weights: Sequence[float], seed: int) -> None:
        self._sources, self._seed = manifest.sources, seed
        total = sum(map(Fraction, weights))
        self._bounds = [int(2**64 * part / total) for part in itertools.accumulate(map(Fraction, weights))]
        self._shard = lru_cache(maxsize=4096)(self._drawn_shard)

    def draw(self, round: int, peer_id: str, first: int, count: int) -> list[Sample]:
        """Draws `first` to `first + count - 1` of a peer for a round."""
        return [self._one(round, peer_id, counter) for counter in range(first, first + count)]

    def shards(self, round: int, peer_id: str, first: int) -> list[ShardEntry]:
        """Where draw `first`, and those that share its shards, may fall: a shard of each source, likeliest first."""
        widths = [end - start for start, end in itertools.pairwise([0, *self._bounds])]
        order = sorted(range(len(self._sources)), key=lambda source: -widths[source])
        at = round // ERA, first // LOT
        return [self._sources[source].shards[self._shard(*at, source, peer_id)] for source in order]

    def _one(self, round: int, peer_id: str, counter: int) -> Sample:
        name = peer_id.encode("ascii")
        drawn = hashlib.sha256(_DRAW + struct.pack(">QQQ", self._seed, round, counter) + name).digest()
        source = bisect.bisect_right(self._bounds, int.from_bytes(drawn[:8], "big"))
        shard = self._shard(round // ERA, counter // LOT, source, peer_id)
        sequences = self._sources[source].shards[shard].sequences
        return Sample(source, shard, int.from_bytes(drawn[8:24], "big") % sequences)

    def _drawn_shard(self, era: int, lot: int, source: int, peer_id: str) -> int:
        place = struct.pack(">QQQQ", self._seed, era, lot, source)
        drawn = hashlib.sha256(_SHARD + place + peer_id.encode("ascii")).digest()
        entry: SourceEntry = self._sources[source]
        return bisect.bisect_right(entry.ends, int.from_bytes(drawn[:16], "big") % entry.sequences)
