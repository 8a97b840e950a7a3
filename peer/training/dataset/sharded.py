"""Training sequences that lie in shards, as `peer.training.data.TrainingData`: read when a draw falls into them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch

from peer.training.data import Dataset, Sequences, batch_on, batch_width
from peer.training.dataset.draws import LOT, Draws, Sample
from peer.training.dataset.shard import Shard
from peer.training.packed import positions_of
from protocol.data_manifest import DataManifest, ShardEntry
from protocol.data_spec import PinnedDataSet
from protocol.errors import FormatError
from protocol.run_spec import RunSpec

IN_MEMORY = 8  # shards, of some MB each
AHEAD = 2  # lots that are fetched before they are drawn from


class Shards(Protocol):
    """Where shards come from."""

    def read(self, entry: ShardEntry) -> bytes:
        """A shard's bytes, checked against its digest; waits until they are here. Raises: NetworkError, InputError."""

    def has(self, entry: ShardEntry) -> bool:
        """Whether it can be read without fetching it."""

    def want(self, entries: Sequence[ShardEntry]) -> None:
        """These are needed next, the first of them first; those that were wanted before are not any more."""


class ShardedSequences:
    """The sequences of a manifest.

    Args:
        vocabulary: rows of the model's embeddings.

    Raises:
        FormatError: the manifest is not one of the run's sources.
    """

    def __init__(self, manifest: DataManifest, data: PinnedDataSet, seed: int, shards: Shards, vocabulary: int) -> None:
        manifest.check([source.name for source in data.sources], data.sequence_length)
        self._manifest, self._shards, self._vocabulary, self._seed = manifest, shards, vocabulary, seed
        self.apart = data.documents_apart
        self._draws = Draws(manifest, [source.weight for source in data.sources], seed)
        self._read: OrderedDict[str, Shard] = OrderedDict()  # the one that was used last at the end
        self._reading = threading.Lock()  # several cards ask for batches at once
        self._wanted: tuple[int, int] | None = None  # round and lot

    @property
    def longest(self) -> int:
        return self._manifest.sequence_length

    def draw(self, seed: int, round: int, peer_id: str, first: int, count: int) -> list[Sample]:
        """Draws `first` to `first + count - 1`; what is drawn next is fetched meanwhile.

        Args:
            seed: the run's, as at the beginning.
        """
        if seed != self._seed:
            raise ValueError("the run's seed does not change")
        at = round, first // LOT
        if at != self._wanted:
            self._wanted = at
            lots = [(round, first + LOT * ahead) for ahead in range(AHEAD + 1)] + [(round + 1, 0)]
            wanted = [entry for number, draw in lots for entry in self._draws.shards(number, peer_id, draw)]
            self._shards.want(list(dict.fromkeys(wanted)))
        return self._draws.draw(round, peer_id, first, count)

    def example(self) -> Sample:
        """A sequence of any shard that is here, else of the first."""
        newest = next(reversed(self._read), None)
        for number, source in enumerate(self._manifest.sources):
            for place, entry in enumerate(source.shards):
                if self._shards.has(entry) if newest is None else entry.digest == newest:
                    return Sample(number, place, 0)
        return Sample(0, 0, 0)

    def counts(self, rows: Sequence[Sample]) -> tuple[int, int]:
        predicted = read = 0
        for shard, row in self._rows(rows):
            start, end = shard.bounds(row)
            predicted += int(shard.learned[start + 1 : end].sum())
            read += end - start
        return predicted, read

    def batch(self, rows: Sequence[Sample], device: str | torch.device = "cpu") -> tuple[torch.Tensor, ...]:
        return batch_on(*_padded(list(self._rows(rows)), self.longest, self.apart), device)

    def _rows(self, rows: Sequence[Sample]) -> Iterator[tuple[Shard, int]]:
        for sample in rows:
            yield self._shard(self._manifest.sources[sample.source].shards[sample.shard]), sample.row

    def _shard(self, entry: ShardEntry) -> Shard:
        with self._reading:
            return self._shard_of(entry)

    def _shard_of(self, entry: ShardEntry) -> Shard:
        shard = self._read.pop(entry.digest, None)
        if shard is None:
            shard = Shard.from_bytes(self._shards.read(entry), self.longest, self._vocabulary, self.apart)
            if len(shard) != entry.sequences:
                raise FormatError(f"not a shard: it has {len(shard)} sequences, by the manifest {entry.sequences}")
        self._read[entry.digest] = shard
        if len(self._read) > IN_MEMORY:
            self._read.popitem(last=False)
        return shard


def _padded(
    rows: Sequence[tuple[Shard, int]], most: int, apart: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(tokens_BT, loss_BT, positions_BT): as wide as the longest needs; what is behind a sequence's end has no loss.

    Positions are those of a model's own, None, unless documents of a sequence are to be kept apart.
    """
    bounds = [shard.bounds(row) for shard, row in rows]
    width = batch_width(max(end - start for start, end in bounds), most)
    tokens_BT, loss_BT = np.zeros((len(rows), width), dtype=np.int64), np.zeros((len(rows), width), dtype=bool)
    for place, ((shard, _), (start, end)) in enumerate(zip(rows, bounds, strict=True)):
        tokens_BT[place, : end - start] = shard.tokens[start:end]
        loss_BT[place, : end - start] = shard.learned[start:end]
    starts = [shard.starts(row) for shard, row in rows] if apart else []
    if all(len(starts_D) == 1 for starts_D in starts):
        return torch.from_numpy(tokens_BT), torch.from_numpy(loss_BT), None
    positions = [
        positions_of(starts_D if end - start == width else np.append(starts_D, end - start), width)
        for starts_D, (start, end) in zip(starts, bounds, strict=True)
    ]
    return torch.from_numpy(tokens_BT), torch.from_numpy(loss_BT), torch.from_numpy(np.stack(positions))


def prepared_dataset(spec: RunSpec, manifest: DataManifest, shards: Shards, vocabulary: int) -> Dataset:
    """A run's prepared data. What is held out is read when it is first asked for: a member never does."""
    data = spec.data
    assert isinstance(data, PinnedDataSet)

    def held_out() -> Sequences:
        apart, length = data.documents_apart, data.sequence_length
        shard = Shard.from_bytes(shards.read(manifest.held_out), length, vocabulary, apart)
        tokens_ST, loss_ST, positions_ST = _padded([(shard, row) for row in range(len(shard))], length, apart)
        lengths = tuple(end - start for start, end in map(shard.bounds, range(len(shard))))
        return Sequences(tokens_ST.to(torch.int32), loss_ST, lengths, positions_ST)

    return Dataset(ShardedSequences(manifest, data, spec.run.seed, shards, vocabulary), held_out)
