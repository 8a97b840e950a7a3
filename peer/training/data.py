"""A run's data as sequences of tokens, the same on every machine that has the same file and the same tokenizer.

`load_dataset` reads the one file that the run spec pins. Each record (text: each block of a sequence's length) goes to
the held-out split or to training by a hash, so that copies of a record fall on one side:

    text    SHA-256("potluck-held-out-v1\\n" | token ids, i32 little-endian)
    others  SHA-256("potluck-held-out-v2\\n" | text in `repeats.normal_form`; chats: as rendered); by rules 1 as text
    the first 8 bytes as a big-endian fraction of 1, below `held_out`: kept out
    of these, the `held_out_sequences` sequences with the lowest numbers (v1) are evaluated

By rules 2 (`data.rules`), which new runs have, a held-out sequence with text that is trained on, too, is left out
(`repeats`), unless all are. Runs that began by rules 1 keep their tokens and their split.

Sequences have one length. With packing, records follow each other, an end-of-sequence token after each, and only the
last sequence is padded; without, each record begins a sequence. Padding comes after the tokens, so a causal model never
sees it from a real token, and carries no loss; a batch is cut to its longest sequence. Legend: S sequences, T tokens in
each, B sequences in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from peer.training.data_file import check_file
from peer.training.draw import draw
from peer.training.notes import LONG, UNKNOWN, UNPREDICTED, Notes
from peer.training.records import Record, blocks, check_records, place_of_tokens, read_records, read_text
from peer.training.repeats import repeated
from protocol.data_spec import DataRules, PinnedDataSet
from protocol.errors import InputError
from protocol.run_spec import RunSpec

__all__ = ["Dataset", "Sequences", "draw", "load_dataset"]
NO_LOSS = -100  # torch.nn.functional.cross_entropy's ignore_index
_WIDTHS = 32  # tokens; a batch's width is a multiple, so that a device sees few different ones


class TrainingData(Protocol):
    """What a peer draws from. `rows` are whatever `draw` gave."""

    @property
    def longest(self) -> int:
        """T of the longest sequence that there may be."""

    @property
    def apart(self) -> bool:
        """Whether documents that share a sequence must not see each other."""

    def draw(self, seed: int, round: int, peer_id: str, first: int, count: int) -> list[Any]:
        """Draws `first` to `first + count - 1` of a peer for a round."""

    def example(self) -> Any:
        """Any row, to try a pass on."""

    def counts(self, rows: Sequence[Any]) -> tuple[int, int]:
        """(tokens that are predicted, tokens that are read) in these sequences; padding is in neither."""

    def batch(self, rows: Sequence[Any], device: str | torch.device = "cpu") -> tuple[torch.Tensor, ...]:
        """(tokens_BT, labels_BT), int64; labels are the tokens, or -100 where there is no loss (not shifted).

        Where documents of a sequence are kept apart positions_BT follow, int64 (`peer.training.packed`).
        """


@dataclass(frozen=True, eq=False)
class Sequences:
    """Token sequences of one length.

    Args:
        tokens_ST: int32.
        loss_ST: bool, True where the model has to predict the token.
        lengths: of each sequence, padding not counted.
        positions_ST: int64, where documents of a sequence are kept apart; else None.
    """

    tokens_ST: torch.Tensor
    loss_ST: torch.Tensor
    lengths: tuple[int, ...]
    positions_ST: torch.Tensor | None = None

    @property
    def apart(self) -> bool:
        return self.positions_ST is not None

    def __len__(self) -> int:
        return self.tokens_ST.shape[0]

    @cached_property
    def loss_tokens(self) -> tuple[int, ...]:
        """How many tokens of each sequence are predicted; the first of a sequence never is."""
        return tuple(self.loss_ST[:, 1:].sum(dim=1).tolist())

    @property
    def longest(self) -> int:
        return self.tokens_ST.shape[1]

    def draw(self, seed: int, round: int, peer_id: str, first: int, count: int) -> list[int]:
        return draw(seed, round, peer_id, first, count, len(self))

    def example(self) -> int:
        return 0

    def counts(self, rows: Sequence[int]) -> tuple[int, int]:
        return sum(self.loss_tokens[row] for row in rows), sum(self.lengths[row] for row in rows)

    def width(self, indices: Sequence[int]) -> int:
        """T of a batch of these sequences: padding that all of them have is left out."""
        return batch_width(max(self.lengths[row] for row in indices), self.longest)

    def batch(self, indices: Sequence[int], device: str | torch.device = "cpu") -> tuple[torch.Tensor, ...]:
        rows, width = torch.tensor(indices, dtype=torch.int64), self.width(indices)
        positions_BT = None if self.positions_ST is None else self.positions_ST[rows, :width]
        return batch_on(self.tokens_ST[rows, :width], self.loss_ST[rows, :width], positions_BT, device)


def batch_width(longest: int, most: int) -> int:
    """T of a batch whose longest sequence has so many tokens."""
    return min(-(-longest // _WIDTHS) * _WIDTHS, most)


def batch_on(
    tokens_BT: torch.Tensor, loss_BT: torch.Tensor, positions_BT: torch.Tensor | None, device: str | torch.device
) -> tuple[torch.Tensor, ...]:
    """(tokens_BT, labels_BT), and positions_BT if there are, as `TrainingData.batch` gives them, on the device."""
    tokens_BT = tokens_BT.to(torch.int64)
    batch = [tokens_BT, tokens_BT.masked_fill(~loss_BT, NO_LOSS), *([] if positions_BT is None else [positions_BT])]
    if torch.device(device).type != "cuda":
        return tuple(part.to(device) for part in batch)
    # from other memory torch would wait until the device has done all that it was asked for
    return tuple(part.pin_memory().to(device, non_blocking=True) for part in batch)


class Dataset:
    """What peers train on, and what they never see.

    Args:
        held_out: the split, or what makes it when it is first asked for: a peer never does.
        notes: what there is to tell of the file.
    """

    def __init__(
        self, train: TrainingData, held_out: Sequences | Callable[[], Sequences], notes: Notes | None = None
    ) -> None:
        self.train, self._held_out, self._notes = train, held_out, notes or Notes()

    @cached_property
    def held_out(self) -> Sequences:
        return self._held_out if isinstance(self._held_out, Sequences) else self._held_out()

    def notes(self) -> list[str]:
        """What a host should know of its data, a sentence each."""
        assert self.held_out is not None  # what is repeated is counted with it
        return self._notes.sentences()


def check_data(data: DataRules, data_path: Path) -> None:
    """Look at a run's data as far as that can be done without its tokenizer: before a model is fetched, say.

    Raises:
        InputError: no file of the run's kind, or a bad record; its line is named.
    """
    check_file(data_path)
    check_records(data, data_path)


def load_dataset(spec: RunSpec, tokenizer: Any, data_path: Path) -> Dataset:
    """Read, tokenize and split the run's data.

    Args:
        tokenizer: a fast transformers tokenizer, as it lies in the genesis folder.
        data_path: the file whose digest the run spec pins; the caller has compared it.

    Raises:
        InputError: unreadable, a bad record (its line is named), or too little data.
    """
    if isinstance(spec.data, PinnedDataSet):
        raise ValueError("prepared data are opened by `peer.training.dataset.sharded`")
    return build_dataset(spec.data, tokenizer, data_path)


def build_dataset(data: DataRules, tokenizer: Any, data_path: Path) -> Dataset:
    """`load_dataset` with the one part of the spec that it needs."""
    check_file(data_path)
    length, notes = data.sequence_length, Notes()
    tokenizer.backend_tokenizer.no_truncation()  # what a tokenizer.json may have been saved with
    tokenizer.backend_tokenizer.no_padding()
    if data.kind == "text":
        records: Iterable[Record] = blocks(read_text(data, tokenizer, data_path, notes), length)
        packing = False  # a block already fills a sequence
    else:
        records, packing = read_records(data, tokenizer, data_path, notes), data.packing
    split = _split(records, data.held_out, data.rules)
    if not packing:
        notes.count(LONG, sum(len(record.tokens) > length for side in split for record in side))
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown not in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        notes.count(UNKNOWN, sum(int((record.tokens == unknown).sum()) for side in split for record in side))
    train, kept_out = (_sequences(side, length, packing, notes) for side in split)
    if not len(train) or not len(kept_out):
        count = sum(map(len, split))
        raise InputError(
            f"{data_path}: too little data: {count} different records or blocks of {length} tokens",
            "give more data, or a smaller data.sequence_length",
        )
    return Dataset(train, lambda: _held_out(data, kept_out, train, tokenizer, notes), notes)


def _held_out(data: DataRules, kept_out: Sequences, train: Sequences, tokenizer: Any, notes: Notes) -> Sequences:
    """The sequences to evaluate, of those that were kept out."""
    order = sorted(range(len(kept_out)), key=lambda i: (place_of_tokens(kept_out.tokens_ST[i].numpy()), i))
    if data.rules > 1:
        order = order[: 2 * data.held_out_sequences]  # there are others in the place of those that are left out
        known = repeated(_take(kept_out, order), train, tokenizer)
        told = f"{known.sum()} of {len(order)} held-out sequences hold text that is trained on, too"
        if known.all():
            notes.say(f"{told}: the held-out loss says little about text that is new")
        elif known.any():
            notes.say(f"{told}, and are left out")
            order = [row for row, is_known in zip(order, known, strict=True) if not is_known]
    return _take(kept_out, sorted(order[: data.held_out_sequences]))


def _split(records: Iterable[Record], share: float, rules: int) -> tuple[list[Record], list[Record]]:
    """(train, held out); a small file keeps out the record with the lowest place, by rules 1 without its copies."""
    train: list[Record] = []
    held_out: list[Record] = []
    places: list[int] = []
    for record in records:
        place = place_of_tokens(record.tokens) if record.place is None else record.place
        if place < share * 2**64:
            held_out.append(record)
        else:
            places.append(place)
            train.append(record)
    if held_out or len(train) < 2:
        return train, held_out
    lowest = min(places)
    if rules == 1:
        return train, [train.pop(places.index(lowest))]
    return (
        [record for record, place in zip(train, places, strict=True) if place != lowest],
        [record for record, place in zip(train, places, strict=True) if place == lowest],
    )


def _sequences(records: list[Record], length: int, packing: bool, notes: Notes) -> Sequences:
    """Lay records into rows of `length`; rows in which nothing is predicted are left out."""
    if packing and records:
        stream = Record(np.concatenate([r.tokens for r in records]), np.concatenate([r.loss_mask for r in records]))
        records = [stream]
    pieces = [
        (record.tokens[start : start + length], record.loss_mask[start : start + length])
        for record in records
        for start in range(0, len(record.tokens), length)
    ]
    cut = len(pieces)
    pieces = [(tokens, loss) for tokens, loss in pieces if loss[1:].any()]
    notes.count(UNPREDICTED, cut - len(pieces))
    tokens_ST = np.zeros((len(pieces), length), dtype=np.int32)
    loss_ST = np.zeros((len(pieces), length), dtype=bool)
    for row, (tokens, loss) in enumerate(pieces):
        tokens_ST[row, : len(tokens)] = tokens
        loss_ST[row, : len(loss)] = loss
    lengths = tuple(len(tokens) for tokens, _ in pieces)
    return Sequences(torch.from_numpy(tokens_ST), torch.from_numpy(loss_ST), lengths)


def _take(sequences: Sequences, rows: list[int]) -> Sequences:
    lengths = tuple(sequences.lengths[row] for row in rows)
    return Sequences(sequences.tokens_ST[rows].clone(), sequences.loss_ST[rows].clone(), lengths)
