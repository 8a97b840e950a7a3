"""One forward and backward pass at a time, as large and in the precision that this card does best.

`LocalWork` says which sequences; here it is decided how many at once (`micro_batch`) and in which precision
(`precision`). A pass that ran out of memory or overflowed in fp16 counts for nothing: the size or the loss scale goes
down, and the caller is told whether half of the pass stands in the gradient. Where not even one sequence fits, its
activations are recomputed rather than kept (`recompute`): that needs less memory, and a third more time.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from peer.training import micro_batch, precision
from peer.training.data import TrainingData
from peer.training.device import Stopwatch, device_name, is_out_of_memory, let_go_of_memory
from peer.training.interruption import Interrupted, interrupt_layers
from peer.training.memory import activation_bytes
from peer.training.micro_batch import MicroBatch
from peer.training.model import TrainableModel
from peer.training.precision import Card, LossScale, Precision
from peer.training.vectors import is_finite
from protocol.errors import InputError
from protocol.run_spec import RunSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Passed:
    """A pass that went well: `loss`, summed over the predicted tokens, on the device."""

    loss: torch.Tensor


@dataclass(frozen=True)
class Failed:
    """A pass that came to nothing; `spoilt`: the gradient holds a part of it, and has to be cleared."""

    spoilt: bool
    is_interrupted: bool = False


class NoRoomError(InputError):
    """There is not even memory for one sequence on this device."""


class Passes:
    """The passes of one peer on one device.

    Args:
        model: whose `gradient_N` they add to.
        sequences: to train on.
        spec: of the run.
        wanted: the precision that the owner asks for, one of `precision.WANTED`.
        sizes: the file of `micro_batch.remember_size`; None: no search, `inner.micro_batch` unless memory runs out.

    Raises:
        InputError: no such precision.
    """

    def __init__(
        self,
        model: TrainableModel,
        sequences: TrainingData,
        spec: RunSpec,
        wanted: str = "fp32",
        sizes: Path | None = None,
    ) -> None:
        self.model, self._sequences, self._spec = model, sequences, spec
        self._sizes = sizes
        self._scale = LossScale("fp32")
        if not self._has_room(1):
            self._recompute("one sequence would not fit into the memory that is free")
        self.precision = precision.choose(wanted, Card.of(model.device), self._measure)
        self._scale = LossScale(self.precision)
        self._size = self._micro_batch()
        self._interrupting: Callable[[], bool] | None = None

    def interrupt_when(self, is_asked: Callable[[], bool]) -> None:
        """From now on, end a pass in the middle when this says so."""
        if self._interrupting is None:
            interrupt_layers(self.model.model, lambda: self._interrupting is not None and self._interrupting())
        self._interrupting = is_asked

    @property
    def most(self) -> int:
        """How many sequences a pass takes, at most."""
        return self._size.size

    def next_size(self, left: int | None) -> int:
        """How many sequences to give to the next attempt.

        Args:
            left: until the optimizer steps; None: there is no end.
        """
        return self.most if left is None else min(self.most, left)

    def tell_when_out(self, told: Callable[[str, str], None]) -> None:
        """Nothing: a device that is alone fails with its error."""

    @property
    def scale(self) -> float:
        """What all gradients since the last `clear` are multiplied by."""
        return self._scale.value

    def clear(self) -> None:
        """Set the gradient to zero."""
        self.model.gradient_N.zero_()
        self._scale.grow()

    def attempt(self, rows: Sequence[Any]) -> Passed | Failed:
        """Add the gradient of the summed loss of these sequences, times `scale`.

        Raises:
            NoRoomError: there is not even memory for one sequence.
        """
        clock = Stopwatch(self.model.device, self._size.searching)
        untouched = self.model.gradient_N._version  # torch counts what is written to it, by way of its views too
        loss = None
        try:
            loss = self._pass(rows, self.precision)
            seconds = clock.seconds()
        except Interrupted:
            return Failed(self.model.gradient_N._version != untouched, is_interrupted=True)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if loss is None:
            self._back_off(len(rows))
            return Failed(spoilt=self.model.gradient_N._version != untouched)
        if self._scale.watched and not is_finite(self.model.gradient_N):
            self._overflowed(loss.item())
            return Failed(spoilt=True)
        self._scale.passed()
        # in full sequences: a batch of short ones is no sign of speed, and one with much padding is slow
        full = self._sequences.longest * len(rows) / self._sequences.counts(rows)[1]
        self._size.passed(len(rows), seconds * full)
        return Passed(loss)

    def _pass(self, rows: Sequence[Any], used: Precision) -> torch.Tensor:
        batch = self._sequences.batch(rows, self.model.device)
        with precision.autocast(self.model.device, used):
            loss = self.model.loss(*batch)
        (loss if self.scale == 1.0 else loss * self.scale).backward()
        return loss.detach()

    def _back_off(self, size: int) -> None:
        let_go_of_memory(self.model.device)
        if self._size.out_of_memory(size):
            logger.info("%d sequences at once do not fit; taking %d", size, self.most)
        elif self._recompute("one sequence does not fit"):
            if self._sizes is not None:
                micro_batch.remember_size(self._sizes, self._key, 1)
            self._size = self._micro_batch()
        else:
            raise NoRoomError(
                f"this device ({device_name(self.model.device)}) ran out of memory over one sequence of "
                f"{self._spec.data.sequence_length} tokens",
                "close other programs that use it, choose another --device, or join a smaller run",
            )

    def _recompute(self, why: str) -> bool:
        """Whether a pass needs less memory from now on."""
        done = self.model.recompute()
        if done:
            logger.info("%s; recomputing activations: passes need less memory and a third more time", why)
        return done

    def _has_room(self, size: int) -> bool:
        """Whether that many sequences may be tried: a system short of main memory kills rather than refuses."""
        needed = activation_bytes(self._spec, size, self.model.recomputing, self.model.shape)
        return self.model.device.type == "cuda" or needed < psutil.virtual_memory().available

    @property
    def _key(self) -> str:
        """What sizes are remembered for."""
        key = micro_batch.size_key(device_name(self.model.device), self.precision, self._spec.digest)
        return f"{key} | recomputing" if self.model.recomputing else key

    def _overflowed(self, loss: float) -> None:
        if not self._scale.overflowed(loss):
            logger.warning("fp16 cannot hold this model's values; going on in fp32")
            self.precision = "fp32"
            self._scale = LossScale(self.precision)

    def _measure(self, used: Precision) -> float:
        """Seconds of a pass over one sequence; infinite where this device cannot do it. A long one is tried once."""
        fastest = math.inf
        try:
            for _ in range(micro_batch.PASSES):
                clock = Stopwatch(self.model.device, True)
                self._pass([self._sequences.example()], used)
                fastest = min(fastest, clock.seconds())
                if fastest > micro_batch.PASS_MOST_S:
                    break
        except (RuntimeError, TypeError) as error:  # what torch says where it has no such kernels
            logger.info("%s does not do here: %s", used, str(error).partition("\n")[0][:200])
        self.model.gradient_N.zero_()
        return fastest

    def _micro_batch(self) -> MicroBatch:
        sizes, most = self._sizes, self._spec.inner.micro_batch
        if sizes is None:
            return MicroBatch(most, most)
        if not self.model.recomputing and micro_batch.read_size(sizes, f"{self._key} | recomputing") is not None:
            self._recompute("one sequence did not fit at the last start")

        def on_found(size: int) -> None:
            logger.info("micro-batch %d of at most %d, %s", size, most, self.precision)
            micro_batch.remember_size(sizes, self._key, size)

        return MicroBatch(most, micro_batch.read_size(sizes, self._key), has_room=self._has_room, on_found=on_found)
