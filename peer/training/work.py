"""The local work of a round, from the agreed base to an update. One loop, two methods.

    gradient   each step adds the gradient of its tokens' summed loss at the base; the update is their mean
    diloco     local steps, each on `inner.batch` sequences, at the rate of the round that they are for; the update is
               base - local, and local is the point that is evaluated (`schedule_free`)

The trainer calls `rebase` (at first `begin`) with the agreed state, `step` until the round ends, and `finish` for the
update, which the swarm keeps over aborted attempts. `begin` starts over from a new base; what the optimizer remembers
stays on this machine for the whole run (Douillard et al. 2023, section 3), over restarts too (`save_optimizer`).

What the members do not have yet stays in this peer's own model. `rebase` puts it on top of the next agreed state:

    values that this round's fragment leaves out (`sync.fragments`: one stretch of so many, in turns, as Streaming
        DiLoCo, Douillard et al. 2025, does with layers)
    what a lossy codec left out (error feedback, Seide et al. 2014, but trained on from where it leads)
    what was done since `carry_on`, which after `finish` begins the next round's work before its base is agreed
    all of the last round's work, when that round was made without it

so `base - local` is always all that this peer has done and the others do not have, and needs no memory of its own.
Where there is never any of it (whole updates by a codec that loses next to nothing, no overlap) a round begins at its
base exactly.

How many sequences a pass takes and in which precision is each card's own matter (`passes`): the update depends on it by
rounding only. A pass that ran out of memory or overflowed may have left half of itself in the gradient. The work then
goes back to where the gradient was zero, at the last optimizer step or the round's beginning, and the same sequences
are drawn again: none is lost or counted twice, and no copy of the gradient has to be kept.

Steps do not wait for the device, but while a size is being searched, in fp16 and on several devices (`cards`): losses
stay tensors, and token counts are known from the data.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from peer.training.cards import passes_on
from peer.training.codecs.codec import EncodedUpdate
from peer.training.data import Dataset
from peer.training.inner_optimizer import load_or_put_aside, save_or_warn
from peer.training.interruption import Interrupted
from peer.training.memory import MomentsKind
from peer.training.model import TrainableModel
from peer.training.own_state import OwnState
from peer.training.passes import Failed
from peer.training.schedule_free import make_optimizer
from peer.training.state import SharedState
from peer.training.update import StepResult, Update, keeps_own
from peer.training.vectors import is_finite
from protocol.errors import FormatError, RoundAborted
from protocol.run_spec import RunSpec
from protocol.schedule import Rates

logger = logging.getLogger(__name__)


class _Count(NamedTuple):
    sequences: int = 0
    tokens: int = 0  # predicted
    read: int = 0  # tokens read by the model: masked ones too, padding not

    def plus(self, other: _Count) -> _Count:
        return _Count(*(mine + more for mine, more in zip(self, other, strict=True)))


class LocalWork:
    """One peer's work, round after round.

    Args:
        model: trained in place; or the same model on several devices, see `cards`.
        dataset: of the run.
        spec: of the run.
        peer_id: whose draws these are.
        wanted, moments: the precision that the owner asks for, one of `precision.WANTED`; and `eight_bit`'s choice.
        sizes: a small file: search for the micro-batch that fits this card, and remember it there. None:
            `inner.micro_batch`, less only where memory runs out.

    Raises:
        InputError: no such precision, or no such moments in this run.
    """

    def __init__(
        self,
        model: TrainableModel | Sequence[TrainableModel],
        dataset: Dataset,
        spec: RunSpec,
        peer_id: str,
        *,
        wanted: str = "fp32",
        sizes: Path | None = None,
        moments: MomentsKind = "fp32",
    ) -> None:
        models = [model] if isinstance(model, TrainableModel) else model
        self.model, self.dataset, self.spec, self.peer_id = models[0], dataset, spec, peer_id
        self.round = 0  # that the work is for; 0 before the first begin
        self._base: SharedState | None = None
        self._pending = _Count()
        self._ahead = False  # the work is for the round after the one that `_base` is the base of; see `carry_on`
        self._moments: MomentsKind = moments
        self._optimizer = make_optimizer(spec, self.model.flat_N, self.model.gradient_N, moments)
        self.passes = passes_on(models, dataset.train, spec, wanted, sizes)
        self._follow_passes()
        self._restart()

    @property
    def tokens(self) -> int:
        """Trained on in this round."""
        return self._done.tokens + self._pending.tokens

    @property
    def sequences(self) -> int:
        """Drawn in this round. A step that runs out of memory may take back what earlier ones have counted."""
        return self._done.sequences + self._pending.sequences

    @property
    def rates(self) -> Rates:
        """The learning rates of the round that the work is for."""
        return self.spec.rates(self.round)

    @property
    def base(self) -> str:
        """Digest of the state that the work, or with `carry_on` the work before, started from; empty: none."""
        return self._base.digest if self._base is not None else ""

    def stands_on(self, state: str) -> bool:
        """Whether work that was begun from the state of this digest is in hand."""
        return self.is_under_way and not self._ahead and self.base == state

    @property
    def is_under_way(self) -> bool:
        """Whether there is work to go on with: what may be replayed ends with its update."""
        return bool(self.tokens) and not (self._is_finished and self.spec.audit.share)

    @property
    def is_carried_on(self) -> bool:
        """Whether this is the work for the next round, after what `finish` gave; see `carry_on`."""
        return self._ahead

    # ---- a round -----------------------------------------------------------------------------------------------------

    def begin(self, base: SharedState, left: torch.Tensor | None = None) -> None:
        """Start the round after `base`, with its parameters.

        Args:
            left: flat fp32 [N]: what this peer has done and the others do not have, `base - local`; None: nothing.

        Raises:
            FormatError: the base has other tensors than the model.
        """
        if base.names_shapes != self.model.names_shapes:
            raise FormatError("the base state has other tensors than the model")
        self._base, self.round, self._ahead = base, base.round + 1, False
        self.model.write(base.parameters if left is None else base.parameters - left)
        if self._optimizer is not None:
            self._optimizer.look_ahead()
            self.model.hold_still()
        self._restart()

    def go_on_from(self, base: SharedState, own: OwnState | None) -> None:
        """Start the round after `base` as this peer stood when `own` was made; None: as if it had done nothing yet.

        Raises:
            FormatError: the base, or the own state, is of another model, or of moments that are held otherwise.
        """
        if self._optimizer is not None:
            self._optimizer.reset()
            if own is not None:
                self._optimizer.take(own.numbers, own.remembered)
        self.begin(base, own.left if own is not None and keeps_own(self.spec) else None)

    def carry_on(self) -> None:
        """Work on for the next round while the members average what `finish` gave; method diloco.

        Until `rebase` or `begin` there is no update of it.
        """
        if not self._diloco or self._base is None:
            raise RuntimeError("only local steps can be carried on with, after begin")
        self._ahead = True
        self.round += 1
        self._restart()

    def rebase(self, base: SharedState, sent: EncodedUpdate | None) -> None:
        """Go on from the state that the last round led to, with what the members do not have yet on top of it.

        When another round has gone by meanwhile, or nothing is ever kept, it is as `begin`.

        Args:
            base: of the same run's next round.
            sent: what the others had of this peer's work when they made it; None: nothing.

        Raises:
            FormatError: the base has other tensors than the model.
        """
        old = self._base
        if old is None or not keeps_own(self.spec) or base.round != old.round + 1:
            self.begin(base)
            return
        if base.names_shapes != self.model.names_shapes:
            raise FormatError("the base state has other tensors than the model")
        self._base = base
        for part in base.differs_from(old):
            self.model.add(base.parameters[part] - old.parameters[part], part)
        if sent is not None:
            self._take_back(sent, self.spec.sync.fragment(base.round, len(base.parameters)))
        if not self._ahead:
            self.round = base.round + 1
            self._restart()
        self._ahead, self._jump = False, self.sequences

    def _take_back(self, sent: EncodedUpdate, fragment: slice) -> None:
        """It is in the base now: once is enough."""
        start = fragment.start
        for index in range(len(sent.chunks)):
            piece = sent.decode_chunk(index)
            self.model.add(piece, slice(start, start + len(piece)))
            start += len(piece)

    def step(self, most: int | None = None) -> StepResult:
        """Train on one micro-batch.

        Args:
            most: sequences.

        Raises:
            InputError: there is not even memory for one sequence.
            Interrupted: as `Passes.interrupt_when` says; its sequences are drawn again.
        """
        if self._base is None:
            raise RuntimeError("begin was not called")
        while isinstance(passed := self.passes.attempt(rows := self._next_rows(most)), Failed):
            self._follow_passes()
            if passed.spoilt:
                self._forget_pending()
                self._jump = min(self._jump, self.sequences)
            if passed.is_interrupted:
                raise Interrupted
        count = _Count(len(rows), *self.dataset.train.counts(rows))
        self._pending = self._pending.plus(count)
        if self._diloco and self._pending.sequences >= self.spec.inner.batch:
            self._optimizer_step()
        return StepResult(count.tokens, count.sequences, passed.loss / count.tokens)

    def finish(self) -> Update:
        """The update of the work done since `begin`; more steps and another `finish` may follow.

        Raises:
            RoundAborted: the local work diverged (values that are not finite); the next `begin` starts afresh.
        """
        if self._base is None or self._ahead or self.tokens == 0:
            raise RuntimeError("no step was done since begin")
        if self._optimizer is not None:
            if self._pending.tokens:
                self._optimizer_step()
            fragment = self.spec.sync.fragment(self.round, len(self._base.parameters))
            vector = self.model.read(fragment)
            self._optimizer.look_back(vector, lambda held_N: self.model.read(fragment, held_N))
            torch.sub(self._base.parameters[fragment], vector, out=vector)
        else:
            vector = self.model.read(of=self.model.gradient_N).mul_(1.0 / (self.tokens * self.passes.scale))
        if not is_finite(vector):
            if self._optimizer is not None:
                self._optimizer.reset()  # its memory is spoilt too
            self._base = None  # and so is the model
            raise RoundAborted(
                f"round {self.round}: the local work diverged: values that are not finite",
                "lower inner.lr, or check the data",
            )
        self._is_finished = True
        total, own = self._done.plus(self._pending), self._own() if self.spec.audit.share else None
        flops = self.model.flops(total.read)
        return Update(vector, total.tokens, 0, total.sequences, flops, own, self.passes.precision, self._jump)

    def _own(self) -> OwnState:
        """What this peer carries into its next round, as far as it is here."""
        if self._optimizer is None:
            return OwnState({}, {})
        own = self._optimizer.remembered()
        if not keeps_own(self.spec) or self.spec.sync.fragments == 1:
            return own
        assert self._base is not None, "finish has looked"
        local = self.model.read()
        self._optimizer.look_back(local, lambda held_N: self.model.read(of=held_N))
        return own.with_left(torch.sub(self._base.parameters, local, out=local))

    @property
    def _diloco(self) -> bool:
        return self.spec.sync.method == "diloco"

    def _restart(self) -> None:
        self._is_finished, self._jump = False, 0
        self._done = _Count()  # what has been stepped; `_pending` is what stands in the gradient
        self._forget_pending()

    def _forget_pending(self) -> None:
        """Start from a gradient of zero: what has been counted in it is drawn again, or has been stepped."""
        self._pending = _Count()
        self.passes.clear()

    def _next_rows(self, most: int | None) -> list[Any]:
        """Which sequences the next pass takes."""
        left = [] if most is None else [most]
        if self._diloco:
            left.append(self.spec.inner.batch - self._pending.sequences)
        size = self.passes.next_size(min(left, default=None))
        return self.dataset.train.draw(self.spec.run.seed, self.round, self.peer_id, self.sequences, size)

    def _follow_passes(self) -> None:
        """Where the first of several devices has failed, go on with the next: all but the moments is there."""
        if self.passes.model is self.model:
            return
        self.model, before = self.passes.model, self._optimizer
        self._optimizer = make_optimizer(self.spec, self.model.flat_N, self.model.gradient_N, self._moments)
        if before is not None and self._optimizer is not None:
            self._optimizer.take_over(before)

    def _optimizer_step(self) -> None:
        """One step on the mean gradient of the pending tokens, at the rate of the round that they are for."""
        lr = self.rates.inner
        assert self._optimizer is not None and lr is not None
        self._optimizer.step(self._pending.tokens * self.passes.scale, lr, self.round)
        self.model.hold_still()
        self._done = self._done.plus(self._pending)
        self._forget_pending()

    # ---- over a restart ----------------------------------------------------------------------------------------------

    def save_optimizer(self, path: Path) -> bool:
        """Put the optimizer's memory on disk, for `load_optimizer` after a restart; whether it is there now.

        It takes what `LocalOptimizer.save` says, best while the members average: no step is done then. Any thread may
        call it while no other is in `step`, `finish` or `begin`. A full disk is a warning. Method gradient has none.
        """
        return self._optimizer is not None and save_or_warn(self._optimizer, path, self.spec.digest, self.round)

    def load_optimizer(self, path: Path) -> bool:
        """Take over what `save_optimizer` wrote in this run; whether that was done.

        Moments of some rounds ago are still of use. A damaged or foreign file is put aside with a warning.
        """
        return self._optimizer is not None and load_or_put_aside(self._optimizer, path, self.spec.digest)
