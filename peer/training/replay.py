"""A claim's work done once more, from what its author revealed, and how far from it the claim is.

The work is the product's own (`LocalWork`), on the draws that anyone can compute. Another device, another micro-batch
or fewer threads only round it differently; work that was not done, or on other draws, is far away. What may be how far
apart says `protocol.audit`. Compared is what this claim's work has changed, never what was there before it: whoever
makes up the state that it began with spares no work by that; and moments beside which work would leave no trace pass
for none.

    update      how far it moved the parameters (or, with averaged gradients, the gradient)
    coded       the update itself, where something is left of it, from what its codec makes of both together
    moments     the mean of its gradients that AdamW remembers: m - beta1^steps m before
    squares     likewise v

    distances = replay(model, dataset, spec, revealed)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from peer.training.codecs.codec import EncodedUpdate, codec
from peer.training.data import Dataset
from peer.training.memory import MomentsKind
from peer.training.model import TrainableModel
from peer.training.own_state import OwnState
from peer.training.state import SharedState
from peer.training.update import Update, carries_left
from peer.training.work import LocalWork
from protocol.errors import FormatError, InputError, RoundAborted
from protocol.own_state import LEFT
from protocol.run_spec import RunSpec
from protocol.statements import Claim

NO_PASSES = 64  # in a row that came to nothing: this device cannot replay it
_NOTHING = 1e-12  # a length below which nothing was done
_DROWNED = 1e5  # moments so many times as long as what was added: fp32 holds too little of that to tell work by


class Before(NamedTuple):
    """What work stood on before it jumped to its base."""

    base: SharedState  # likewise
    update: EncodedUpdate  # of the work before; the base holds it


@dataclass(frozen=True, eq=False)
class Revealed:
    """What the author of a claim shows of it; checked against what the claim names.

    Args:
        by: peer id.
        base: the agreed state that the work is counted from; its outer vectors may be left out.
        start: the own state that it began with; None: nothing.
        end: the one that it led to.
        update: as it travelled.
        before: where it began before its base was agreed (`Jump`).
    """

    claim: Claim
    by: str
    base: SharedState
    start: OwnState | None
    end: OwnState
    update: EncodedUpdate
    before: Before | None = None


class BrokenOff(InputError):
    """A replay that is not to be waited for any longer."""


def replay(
    model: TrainableModel,
    dataset: Dataset,
    spec: RunSpec,
    revealed: Revealed,
    is_over: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Do the work of a claim and compare.

    Args:
        model: of the run; written to.
        is_over: asked before each pass; True: raise BrokenOff.

    Returns:
        relative L2 distances: `update`; `coded`, where something is left of it; `moments` and `squares`, where AdamW
        holds them in fp32; infinite where there is nothing that they could be relative to, or where the claim's numbers
        are not those of its work.

    Raises:
        FormatError: what was revealed is not of this run's kind.
        InputError: this device's memory is not enough; BrokenOff, one of them, as `is_over` says.
    """
    claim = revealed.claim
    assert claim.trajectory is not None, "it was checked: only such claims are revealed"
    work = LocalWork(
        model, dataset, spec, revealed.by, wanted=_precision(model, claim.trajectory.precision), moments=_kind(revealed)
    )
    try:
        _begin(work, revealed, is_over)
        _step_to(work, claim.batches, is_over)
        done = work.finish()
    except RoundAborted:
        return {"update": math.inf}
    assert done.own is not None, "the run is audited"
    if done.tokens != claim.tokens or dict(done.own.numbers) != dict(revealed.end.numbers):
        return {"update": math.inf}
    _check_carried(spec, revealed, done.own)
    found = _of_update(spec, revealed, done)
    if spec.sync.method == "diloco" and spec.inner.optimizer == "adamw" and "exp_avg" in revealed.end.vectors:
        for name, held, beta in zip(("moments", "squares"), ("exp_avg", "exp_avg_sq"), spec.inner.betas, strict=True):
            found[name] = _of_moment(held, beta, revealed, done.own)
    return found


def _begin(work: LocalWork, revealed: Revealed, is_over: Callable[[], bool]) -> None:
    """Stand where the work began, and where it came to stand on its base on the way, go there."""
    own, before, claim = revealed.start, revealed.before, revealed.claim
    if before is None:
        work.go_on_from(revealed.base, own)
        return
    assert claim.trajectory is not None and claim.trajectory.start is not None, "it was checked"
    jump = claim.trajectory.start.jump
    if own is None or own.left is None or jump is None:
        raise FormatError("work that began ahead of its base, with nothing left of the work before")
    undone = own.left.clone()
    undone[work.spec.sync.fragment(claim.round - 1, len(undone))] += before.update.decode()
    work.go_on_from(before.base, own.with_left(undone))
    work.carry_on()
    _step_to(work, jump.after, is_over)
    work.rebase(revealed.base, before.update)


def _step_to(work: LocalWork, batches: int, is_over: Callable[[], bool]) -> None:
    idle = 0
    while work.sequences < batches:
        if is_over():
            raise BrokenOff(f"a replay was broken off after {work.sequences} of {batches} sequences")
        before = work.sequences
        work.step(batches - before)
        idle = 0 if work.sequences > before else idle + 1
        if idle > NO_PASSES:
            raise RoundAborted("the work cannot be done on this device")


def _precision(model: TrainableModel, claimed: str) -> str:
    """To replay in: the claim's; a CPU's fp16 is slow, and fp32 is as near."""
    return "fp32" if claimed == "fp16" and model.device.type == "cpu" else claimed


def _kind(revealed: Revealed) -> MomentsKind:
    return "8bit" if "exp_avg_8bit" in revealed.end.vectors else "fp32"


def _check_carried(spec: RunSpec, revealed: Revealed, done: OwnState) -> None:
    """Raises: FormatError: an own state without what is compared, or with more than such work leads to."""
    expected = sorted({*done.remembered, *((LEFT,) if carries_left(spec) else ())})
    for own in (revealed.start, revealed.end):
        if own is not None and sorted(own.vectors) != expected:
            raise FormatError(f"an own state of {', '.join(sorted(own.vectors))}; expected {', '.join(expected)}")


def _of_update(spec: RunSpec, revealed: Revealed, done: Update) -> dict[str, float]:
    """How far apart the work is that has moved something; and the update from what its codec makes of that work.

    An update and what is left of it are the work together. But for the second look, anything could be sent as an update
    and be made good by what is said to be left.
    """
    decoded, coder = revealed.update.decode(), codec(spec.sync.wire)
    start, end = (own.left if own is not None else None for own in (revealed.start, revealed.end))
    if end is None:
        return {"update": _distance(decoded, done.vector, coder.name)}
    is_gradient = spec.sync.method == "gradient"
    whole = done.vector
    if not is_gradient and spec.sync.fragments > 1:
        assert done.own is not None and done.own.left is not None, "work of fragments carries the whole"
        whole = done.own.left
    if is_gradient and start is not None:
        whole = whole.add(start, alpha=coder.feedback)
    part = spec.sync.fragment(revealed.claim.round, len(whole))
    claimed = end.clone()
    claimed[part] += decoded
    if start is not None:
        before = start * coder.feedback if is_gradient else start
        found = {"update": _distance(claimed - before, whole - before)}
    else:
        found = {"update": _distance(claimed, whole)}
    again = EncodedUpdate.encode(claimed[part].contiguous(), coder.name).decode()
    found["coded"] = 0.0 if torch.equal(decoded, again) else _distance(decoded, again)
    return found


def _of_moment(name: str, beta: float, revealed: Revealed, done: OwnState) -> float:
    claimed, replayed, start = revealed.end.vectors[name], done.vectors[name], revealed.start
    if start is None:
        return _distance(claimed, replayed)
    kept = start.vectors[name] * beta ** (int(done.numbers["steps"]) - int(start.numbers["steps"]))
    added = replayed - kept
    if _length(kept) > _DROWNED * _length(added):
        return math.inf
    return _distance(claimed - kept, added)


def _distance(claimed: torch.Tensor, replayed: torch.Tensor, coded: str | None = None) -> float:
    """Relative L2.

    Args:
        coded: the codec that has rounded what is claimed: its own error, which is at a right angle, is taken out.
    """
    if claimed.shape != replayed.shape:
        raise FormatError(f"expected {tuple(replayed.shape)} values, got {tuple(claimed.shape)}")
    length = _length(replayed)
    if length < _NOTHING:
        return math.inf
    found = _length(claimed - replayed) / length
    if coded is not None:
        rounded = _length(EncodedUpdate.encode(replayed, coded).decode() - replayed) / length
        found = math.sqrt(max(0.0, found * found - rounded * rounded))
    return found if math.isfinite(found) else math.inf


def _length(vector: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))
