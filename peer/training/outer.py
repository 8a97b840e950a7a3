"""The outer step: from the agreed base and the averaged update to the next agreed state, the same bits everywhere.

Every peer computes it for itself after a round's average, and an audit can compute it again. So it may use
only operations that IEEE 754 defines to the bit: products, sums, quotients and square roots of vectors, element by
element, each rounded on its own (no fused multiply-add, no division by a scalar, which a kernel may turn into a product
with the reciprocal, no power function or cosine of a library), and one sum over all values for clipping, whose order is
fixed:

    the squares, in float64, of each 2**20 values (the last lot filled up with zeros) are folded in halves
    (x[: n/2] + x[n/2 :]) until one is left; these are added from first to last.

The learning rate is that of the round (`RunSpec.rates`): it depends on its number alone, and is exact.

Where a round averages a fragment of the values (`sync.fragments`), the others stay as they are. So do the tensors in
`model.untrained` always: what an update has for them counts as zero.

diloco: the update is base - local; SGD (torch.optim.SGD's momentum and Nesterov, dampening 0).
gradient: the update is the mean gradient; clipped to `clip_norm`, then AdamW (Loshchilov and Hutter 2019, alg. 2).
At genesis `outer` is empty, which stands for zeros.

    >>> from protocol.run_spec import OuterOptimizer
    >>> base = SharedState(0, (("w", (2,)),), torch.tensor([1.0, 2.0]))
    >>> step(OuterOptimizer(), "diloco", base, torch.tensor([0.5, 0.5])).parameters  # made of the update's memory
    tensor([0.5000, 1.5000])
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch

from peer.training.state import SharedState
from peer.training.vectors import check_vector, fp32
from protocol.errors import FormatError, RoundAborted
from protocol.run_spec import OuterOptimizer, RunSpec

_LOT = 1 << 20  # values at a time: temporaries stay in the cache; part of the definition of the norm
_EPS = 1e-8  # AdamW


def outer_step(spec: RunSpec, base: SharedState, update: torch.Tensor) -> SharedState:
    """The state after round `base.round + 1`.

    Args:
        update: flat fp32 [N], the averaged update, or of the round's fragment; overwritten: the memory of a
            whole one becomes the new state's, at the worst moment of a round one copy of the parameters less.

    Raises:
        FormatError: the update is not flat fp32 of that many values, or not finite.
        RoundAborted: the step led to values that are not finite.
    """
    round = base.round + 1
    fragment = spec.sync.fragment(round, base.parameters.numel())
    still = untrained_in(spec.model.untrained, base, fragment)
    return step(spec.outer, spec.sync.method, base, update, fragment, spec.rates(round).outer, still)


def untrained_in(names: Collection[str], base: SharedState, fragment: slice) -> list[slice]:
    """Where in a fragment these tensors lie; a name with a dot at the end is all that begins so."""
    first, last, _ = fragment.indices(base.parameters.numel())
    found, start, beginnings = [], 0, tuple(name for name in names if name.endswith("."))
    for name, shape in base.names_shapes if names else ():
        stop = start + math.prod(shape)
        if (name in names or name.startswith(beginnings)) and start < last and stop > first:
            found.append(slice(max(start, first) - first, min(stop, last) - first))
        start = stop
    return found


def step(
    outer: OuterOptimizer,
    method: Literal["diloco", "gradient"],
    base: SharedState,
    update: torch.Tensor,
    fragment: slice = slice(None),
    lr: float | None = None,
    still: Sequence[slice] = (),
) -> SharedState:
    """`outer_step` with the parts of the spec that it needs.

    Args:
        lr: of this round; `outer.lr` where none is given.
        still: what of the fragment stays as it is.
    """
    rule = _sgd if method == "diloco" else _adamw
    old = _Old(base.parameters[fragment], tuple(vector[fragment] for vector in base.outer), base.outer_steps)
    check_vector(update, old.parameters.numel(), "the averaged update")
    for stretch in still:
        update[stretch] = 0.0
    parameters, vectors, steps = rule(outer, outer.lr if lr is None else lr, old, update)
    for stretch in still:
        parameters[stretch] = old.parameters[stretch]  # no weight decay either
    if parameters.numel() < base.parameters.numel():
        remembered = base.outer or tuple(torch.zeros_like(base.parameters) for _ in vectors)
        vectors = tuple(_with(all, fragment, part) for all, part in zip(remembered, vectors, strict=True))
        parameters = _with(base.parameters, fragment, parameters)
    try:
        known = base.leaves_outside(fragment, len(vectors))
        return SharedState(base.round + 1, base.names_shapes, parameters, vectors, steps, known)
    except FormatError as error:
        raise RoundAborted(
            f"round {base.round + 1}: the outer step diverged: {error.message}", "lower the learning rates of the run"
        ) from error


class _Old(NamedTuple):
    """What of the base is stepped on."""

    parameters: torch.Tensor
    outer: tuple[torch.Tensor, ...]
    outer_steps: int


_Result = tuple[torch.Tensor, tuple[torch.Tensor, ...], int]


def _with(all: torch.Tensor, fragment: slice, part: torch.Tensor) -> torch.Tensor:
    """A copy in which the fragment is another."""
    result = all.clone()
    result[fragment] = part
    return result


def _sgd(outer: OuterOptimizer, rate: float, base: _Old, update: torch.Tensor) -> _Result:
    lr, momentum = fp32(rate), fp32(outer.momentum)
    parameters = update  # each lot is read before it is written
    if outer.momentum == 0:
        for lot in _lots(update.numel()):
            torch.sub(base.parameters[lot], torch.mul(update[lot], lr), out=parameters[lot])
        return parameters, (), base.outer_steps
    (old,) = _remembered(base, 1)
    velocity = torch.empty_like(old)
    for lot in _lots(update.numel()):
        torch.add(torch.mul(old[lot], momentum), update[lot], out=velocity[lot])
        direction = velocity[lot]
        if outer.nesterov:
            direction = torch.add(update[lot], torch.mul(velocity[lot], momentum))
        torch.sub(base.parameters[lot], torch.mul(direction, lr), out=parameters[lot])
    return parameters, (velocity,), base.outer_steps


def _adamw(outer: OuterOptimizer, lr: float, base: _Old, update: torch.Tensor) -> _Result:
    steps = base.outer_steps + 1
    beta1, beta2 = outer.betas
    rate = fp32(lr / (1.0 - _power(beta1, steps)))
    correction = fp32(1.0 / math.sqrt(1.0 - _power(beta2, steps)))
    keep, eps = fp32(1.0 - lr * outer.weight_decay), fp32(_EPS)
    b1, b2, rest1, rest2 = fp32(beta1), fp32(beta2), fp32(1.0 - beta1), fp32(1.0 - beta2)
    scale = fp32(_clip_scale(update, outer.clip_norm))
    old_first, old_second = _remembered(base, 2)
    first, second, parameters = torch.empty_like(update), torch.empty_like(update), update
    for lot in _lots(update.numel()):
        gradient = torch.mul(update[lot], scale)
        torch.add(torch.mul(old_first[lot], b1), torch.mul(gradient, rest1), out=first[lot])
        torch.add(torch.mul(old_second[lot], b2), torch.mul(torch.mul(gradient, gradient), rest2), out=second[lot])
        spread = torch.add(torch.mul(_sqrt(second[lot]), correction), eps)
        direction = torch.mul(torch.div(first[lot], spread), rate)
        torch.sub(torch.mul(base.parameters[lot], keep), direction, out=parameters[lot])
    return parameters, (first, second), steps


def _sqrt(values: torch.Tensor) -> torch.Tensor:
    """numpy's: torch.sqrt may go through MKL, which is off by a unit in the last place for one fp32 value in six."""
    return torch.from_numpy(np.sqrt(values.numpy()))


def _remembered(base: _Old, count: int) -> list[torch.Tensor]:
    if not base.outer:
        return [torch.zeros(1).expand_as(base.parameters)] * count
    if len(base.outer) != count:
        raise FormatError(f"expected a base with {count} outer vectors, got {len(base.outer)}")
    return list(base.outer)


def _clip_scale(update: torch.Tensor, clip_norm: float | None) -> float:
    """What to multiply a gradient by so that its norm is at most `clip_norm`."""
    if clip_norm is None:
        return 1.0
    norm = global_norm(update)
    return clip_norm / norm if norm > clip_norm else 1.0


def global_norm(vector: torch.Tensor) -> float:
    """The Euclidean norm of a flat fp32 tensor, in float64, added in the order that the module's docstring fixes."""
    total = 0.0
    for lot in _lots(vector.numel()):
        squares = torch.zeros(_LOT, dtype=torch.float64)
        values = vector[lot].to(torch.float64)
        torch.mul(values, values, out=squares[: values.numel()])
        while squares.numel() > 1:
            half = squares.numel() // 2
            squares = torch.add(squares[:half], squares[half:])
        total += squares.item()
    return math.sqrt(total)


def _power(base: float, exponent: int) -> float:
    """base ** exponent by squaring: libm's pow differs between systems in the last bit."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


def _lots(count: int) -> Iterator[slice]:
    for start in range(0, count, _LOT):
        yield slice(start, min(start + _LOT, count))
