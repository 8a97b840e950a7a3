"""The passes of one peer on several devices at once: all cards of a home, under one identity, by one p2pd.

Each device holds the whole model. What `LocalWork` asks for at a time is cut into passes that the devices take from one
queue, each in its own size and precision, so a faster one does more. Then their gradients are added to the first one's,
in the devices' order; it alone has an optimizer, and its parameters go to the others before they work on. Which device
took which sequence changes the update by rounding, as the size of a pass does; draws and claims know nothing of it.

A device that fails is taken out, and what it has not handed over is done again by the others. If the first fails, the
next takes its place, and the work goes back to the last optimizer step, or in method gradient to the round's beginning.

    >>> shares(8, [3.0, 1.0])
    [6, 2]
    >>> shares(3, [None, None])
    [2, 1]
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from peer.training.data import TrainingData
from peer.training.device import Stopwatch
from peer.training.micro_batch import PASS_MOST_S
from peer.training.model import TrainableModel
from peer.training.passes import Failed, NoRoomError, Passed, Passes
from peer.training.precision import Precision, coarsest
from peer.training.side_by_side import Told, cpus, in_threads
from protocol.errors import PotluckError
from protocol.run_spec import RunSpec

logger = logging.getLogger(__name__)

_BROKEN = (RuntimeError, MemoryError, NoRoomError)  # what a device that fails raises; CUDA's errors are RuntimeErrors
_MEMORY = 0.7  # of the moving average of a device's speed


def passes_on(
    models: Sequence[TrainableModel], sequences: TrainingData, spec: RunSpec, wanted: str, sizes: Path | None
) -> Passes | AllCards:
    """The passes on one device, or on several. Arguments and errors as `Passes` and `AllCards` have them."""
    if len(models) == 1:
        return Passes(models[0], sequences, spec, wanted, sizes)
    return AllCards(models, sequences, spec, wanted, sizes)


def shares(count: int, speeds: Sequence[float | None]) -> list[int]:
    """So many sequences divided by speed; who has none yet is taken for one of average speed."""
    known = [speed for speed in speeds if speed]
    average = sum(known) / len(known) if known else 1.0
    parts = [speed or average for speed in speeds]
    ends = [round(count * sum(parts[: i + 1]) / sum(parts) + 1e-9) for i in range(len(parts))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


class AllCards:
    """As `Passes`, on several devices.

    Args:
        models: the same model on each device, the first of them the one that is stepped. One whose first pass fails is
            taken out.
        sequences, spec, wanted, sizes: as for `Passes`.

    Raises:
        InputError: as `Passes` does, when no device is left.
    """

    def __init__(
        self,
        models: Sequence[TrainableModel],
        sequences: TrainingData,
        spec: RunSpec,
        wanted: str = "fp32",
        sizes: Path | None = None,
    ) -> None:
        self._sequences = sequences
        self._cards: list[_Card] = []
        self._out: list[tuple[str, str]] = []
        self._told: Told | None = None
        self._last_error: Exception | None = None
        for model in models:
            make = partial(Passes, model, sequences, spec, wanted, sizes)
            try:
                self._cards.append(_Card(model, *in_threads([make], [model.device], cpus(models))))
            except _BROKEN as error:
                self._say(str(model.device), error)
        self._check_any()

    @property
    def model(self) -> TrainableModel:
        """On the first device, where gradients end up and parameters come from."""
        return self._cards[0].model

    @property
    def most(self) -> int:
        """How many sequences a pass on the first device takes, at most."""
        return self._cards[0].passes.most

    @property
    def precision(self) -> Precision:
        """The lowest of theirs."""
        return coarsest(card.passes.precision for card in self._cards)

    @property
    def scale(self) -> float:
        """What the first device's gradient since the last `clear` is multiplied by."""
        return self._cards[0].passes.scale

    def clear(self) -> None:
        """Set the gradient to zero; the others' are, between two attempts."""
        self._cards[0].passes.clear()

    def tell_when_out(self, told: Told) -> None:
        """Say of each device that is taken out, and of those that were, which and why."""
        self._told = told
        for name, why in self._out:
            told(name, why)

    def interrupt_when(self, is_asked: Callable[[], bool]) -> None:
        """As `Passes.interrupt_when`."""
        for card in self._cards:
            card.passes.interrupt_when(is_asked)

    def next_size(self, left: int | None) -> int:
        """How many sequences to give to the next attempt: what all do in the time of the longest full pass.

        Args:
            left: until the optimizer steps: it is divided evenly, so that no single sequence remains; None: no end.
        """
        speeds = [card.speed for card in self._cards]
        size = sum(card.passes.most for card in self._cards)
        if all(speeds):
            longest_s = max(card.passes.most / (card.speed or 1.0) for card in self._cards)
            size = sum(max(1, round(min(longest_s, PASS_MOST_S) * (speed or 0.0))) for speed in speeds)
        return size if left is None else math.ceil(left / max(1, round(left / size)))

    def attempt(self, rows: Sequence[Any]) -> Passed | Failed:
        """Add the gradient of the summed loss of these sequences, times `scale`, to the first device's.

        When the first device has failed, `model` is another, with the same parameters, and the gradient is spoilt.

        Raises:
            InputError, RuntimeError: the last device has failed.
        """
        self._sequences.counts(rows)  # what is not here yet is fetched in this thread, once, and fails here
        untouched = self.model.gradient_N._version
        self._hand_out_parameters()
        left, losses = list(rows), list[torch.Tensor]()
        while left:
            queue = _Queue(left, self._cards)
            models = [card.model for card in self._cards]
            tasks = [partial(card.work_through, queue) for card in self._cards]
            in_threads(tasks, [model.device for model in models], cpus(models))
            first = self._cards[0]
            if queue.is_interrupted or first.error is not None or first.is_spoilt:
                spoilt = first.is_spoilt or first.model.gradient_N._version != untouched
                return self._break_off(spoilt, queue.is_interrupted)
            left = queue.left + self._gather(losses)
        return Passed(torch.stack(losses).sum())

    def _hand_out_parameters(self) -> None:
        first = self.model
        for card in self._cards[1:]:
            try:
                if card.stands_at != first.written:
                    card.model.follow(first)
                    card.stands_at = first.written
            except _BROKEN as error:
                self._take_out(card, error)

    def _gather(self, losses: list[torch.Tensor]) -> list[Any]:
        """Add what all have done to the first device's gradient; the sequences that are to be done again."""
        first, again = self._cards[0], list[Any]()
        for card in list(self._cards):
            done, loss = card.taken, card.loss
            card.taken, card.loss = [], None
            if card.error is not None:
                self._take_out(card, card.error)
                again += done
                continue
            if loss is None:
                continue
            try:
                part_N = card.model.gradient_N.to(first.model.device)
                loss = loss.to(first.model.device)
            except _BROKEN as error:
                self._take_out(card, error)
                again += done
                continue
            if card is not first:
                first.model.gradient_N.add_(part_N, alpha=first.passes.scale / card.passes.scale)
                card.passes.clear()
            losses.append(loss)
        return again

    def _break_off(self, spoilt: bool, is_interrupted: bool) -> Failed:
        """All of this attempt is done again."""
        first = self._cards[0]
        for card in list(self._cards):
            card.taken, card.loss, card.is_spoilt = [], None, False
            try:
                if card.error is not None:
                    raise card.error
                if card is not first:
                    card.passes.clear()
            except _BROKEN as error:
                self._take_out(card, error)
        if first is not self._cards[0]:
            for card in self._cards:
                card.stands_at = -1
            return Failed(spoilt=True, is_interrupted=is_interrupted)
        return Failed(spoilt, is_interrupted)

    def _take_out(self, card: _Card, error: Exception) -> None:
        """Raises: the error, if no other device is left."""
        self._cards = [other for other in self._cards if other is not card]
        self._say(card.name, error)
        self._check_any()

    def _say(self, name: str, error: Exception) -> None:
        why = (error.message if isinstance(error, PotluckError) else str(error)).partition("\n")[0][:200]
        self._last_error = error
        self._out.append((name, why))
        logger.warning("%s is taken out: %s", name, why)
        if self._told is not None:
            self._told(name, why)

    def _check_any(self) -> None:
        if not self._cards and self._last_error is not None:
            raise self._last_error


class _Card:
    """One device, its model, and what it has done in this attempt."""

    def __init__(self, model: TrainableModel, passes: Passes) -> None:
        self.model, self.passes, self.name = model, passes, str(model.device)
        self.stands_at = -1  # the first model's `written` when its parameters were taken over
        self.speed: float | None = None  # sequences a second
        self.taken: list[Any] = []  # sequences whose gradient is in this model's
        self.loss: torch.Tensor | None = None  # summed over them
        self.is_spoilt = False  # the gradient holds half a pass, on top of what earlier attempts have left there
        self.error: Exception | None = None
        self._is_warm = False

    def work_through(self, queue: _Queue) -> None:
        """Take passes until there are none; in a thread of its own."""
        rows: list[Any] = []
        try:
            while rows := queue.take(self):
                self._pass(rows, queue)
        except _BROKEN as error:
            self.error = error
            queue.give_back(rows)
            if queue.first is self:
                queue.stop()

    def _pass(self, rows: list[Any], queue: _Queue) -> None:
        clock = Stopwatch(self.model.device, True)
        passed = self.passes.attempt(rows)
        seconds = clock.seconds()
        if isinstance(passed, Passed):
            self.loss = passed.loss if self.loss is None else self.loss + passed.loss
            self.taken += rows
            self._learn_speed(len(rows) / max(seconds, 1e-6))
            return
        if passed.is_interrupted or (passed.spoilt and queue.first is self):
            self.is_spoilt = passed.spoilt
            queue.stop(is_interrupted=passed.is_interrupted)
        elif passed.spoilt:
            self.passes.clear()
            queue.give_back(self.taken)
            self.taken, self.loss = [], None
        queue.give_back(rows)

    def _learn_speed(self, now: float) -> None:
        if self._is_warm:
            self.speed = now if self.speed is None else _MEMORY * self.speed + (1 - _MEMORY) * now
        self._is_warm = True  # a first pass makes what is made once


class _Queue:
    """The sequences of an attempt; each device takes its share in passes, and who is done takes of what is left."""

    def __init__(self, rows: Sequence[Any], cards: Sequence[_Card]) -> None:
        self.left = list(rows)
        self.first = cards[0]
        self.is_stopped = self.is_interrupted = False
        self._lock, self._count = threading.Lock(), len(cards)
        parts = shares(len(rows), [card.speed for card in cards])
        self._share = {id(card): part for card, part in zip(cards, parts, strict=True)}

    def take(self, card: _Card) -> list[Any]:
        """What to do next; nothing: that was all."""
        with self._lock:
            own = self._share[id(card)]
            size = 0 if self.is_stopped else min(card.passes.most, own or math.ceil(len(self.left) / self._count))
            rows, self.left = self.left[:size], self.left[size:]
            self._share[id(card)] = max(own - size, 0)
        return rows

    def give_back(self, rows: Sequence[Any]) -> None:
        """These are to be done again, by whoever comes first."""
        with self._lock:
            self.left += rows

    def stop(self, *, is_interrupted: bool = False) -> None:
        """Give out no more."""
        self.is_stopped = True
        self.is_interrupted = self.is_interrupted or is_interrupted
