"""The records that nobody trains on: by the hash of what they say, so that copies of one fall on one side everywhere.

Each chunk keeps those with the lowest places, as many as may be evaluated; of all chunks' the lowest make the held-out
shard. Of copies one is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from peer.training.dataset.shard import Shard
from peer.training.records import Record


class KeptPlace(NamedTuple):
    """Where a record that is kept out falls, and how long it is."""

    value: int  # below 2**64
    tokens: int


def lowest(places: Sequence[KeptPlace], tokens: int) -> list[int]:
    """Which records have the lowest places, in that order: as many as have so many tokens, and no copies."""
    kept: list[int] = []
    size, before = 0, -1
    for number in sorted(range(len(places)), key=lambda number: (places[number].value, number)):
        if size >= tokens:
            break
        if places[number].value != before:
            kept.append(number)
            size += places[number].tokens
        before = places[number].value
    return kept


class KeptOut:
    """Those of one chunk.

    Args:
        tokens: that may be evaluated, in all.
    """

    def __init__(self, tokens: int) -> None:
        self._most = tokens
        self._size = 0
        self._places: list[KeptPlace] = []
        self.held: list[Record] = []

    def add(self, place: int, record: Record) -> None:
        self._places.append(KeptPlace(place, len(record.tokens)))
        self.held.append(record)
        self._size += len(record.tokens)
        if self._size > 2 * self._most and len(self.held) > 1:
            self._prune()

    def records(self) -> tuple[list[KeptPlace], list[Record]]:
        """Those with the lowest places, in that order."""
        self._prune()
        return self._places, self.held

    def _prune(self) -> None:
        kept = lowest(self._places, self._most)
        self._places = [self._places[number] for number in kept]
        self.held = [self.held[number] for number in kept]
        self._size = sum(place.tokens for place in self._places)


def lay(records: Sequence[Record], length: int, packing: bool, dtype: type) -> tuple[Shard | None, int]:
    """Records as sequences of at most `length` tokens; and how many with nothing to learn are left out.

    Args:
        packing: records follow each other; else each begins a sequence.
    """
    if not records:
        return None, 0
    tokens = np.concatenate([record.tokens for record in records])
    learned = np.concatenate([record.loss_mask for record in records])
    ends = np.cumsum([len(record.tokens) for record in records])
    begins = np.concatenate([[0], ends[:-1]])
    starts = np.arange(0, len(tokens), length) if packing else _cut(begins, ends, length)
    sizes = np.diff(starts, append=len(tokens))
    is_document = np.zeros(len(tokens), dtype=bool)
    is_document[begins] = True
    counts = np.concatenate([[0], np.cumsum(learned & ~is_document)])  # the first of a document, in a run that
    kept = counts[starts + sizes] > counts[starts + 1]  # keeps them apart, is not predicted; that of a sequence never
    if not kept.any():
        return None, len(starts)
    is_document[starts[1:][kept[1:] & ~kept[:-1]]] = True  # what stood before is not there
    is_document[starts[kept][0]] = True
    mask = np.repeat(kept, sizes)
    shard = Shard(
        tokens[mask].astype(dtype),
        np.cumsum(sizes[kept]).astype(np.uint32),
        learned[mask],
        np.flatnonzero(is_document[mask]).astype(np.uint32),
    )
    return shard, int((~kept & (sizes > 1)).sum())


def _cut(begins: np.ndarray, ends: np.ndarray, length: int) -> np.ndarray:
    """Where sequences start when each record begins one."""
    return np.concatenate([np.arange(begin, end, length) for begin, end in zip(begins, ends, strict=True)])


def first_of(shard: Shard, sequences: int) -> Shard:
    """The shard's first sequences."""
    if len(shard) <= sequences:
        return shard
    end = int(shard.ends[sequences - 1])
    documents = shard.documents[shard.documents < end]
    return Shard(shard.tokens[:end], shard.ends[:sequences], shard.learned[:end], documents)


def as_shard(records: Iterable[Record], dtype: type) -> Shard:
    """Whole records, a sequence each, however long: as a chunk keeps them."""
    some = list(records)
    ends = np.cumsum([len(record.tokens) for record in some]).astype(np.uint32)
    return Shard(
        np.concatenate([record.tokens for record in some]).astype(dtype),
        ends,
        np.concatenate([record.loss_mask for record in some]),
        np.concatenate([[0], ends[:-1]]).astype(np.uint32),
    )
