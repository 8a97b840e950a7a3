"""Schedule-free AdamW (Defazio et al. 2024, "The Road Less Scheduled", algorithm 1): averages steps instead of a decay.

It has three points: z, which is stepped; x, the average of all z so far, which is evaluated; and between them y, at
which gradients are taken:

    y = (1 - b) z + b x        z' = z - lr * direction at y        x' = (1 - c) x + c z'        b: `betas[0]`

What the members agree on, and what is published, is x: an update is base - x. y stands in the model while it works, and
remembered is the offset d = z - x, from which with u = d - lr * direction follows all else:

    x' = x + c u        d' = (1 - c) u

So what moves x moves z and y with it: the next agreed base, a fragment of it, what a lossy codec left out. One peer's
rounds are the same training as one long one; of several, the mean of x and the mean of z step as one peer's would at
the mean direction. Offsets stay on each machine, as moments do, and take their place.

c is the share of the newest step in the average. It must be about the same for all members, or a newcomer, to whom its
first step is the whole average, would undo the others' averaging. So it follows from the number of the round: in a
member's first round the earlier ones count as this one does, and rounds that it missed as those that it was in. Steps
count by the square of their rate, so those of a warm-up count for less (section 4 of the paper).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch

from peer.training import eight_bit
from peer.training.inner_optimizer import InnerAdamW, LocalOptimizer
from peer.training.memory import MomentsKind
from protocol.run_spec import InnerOptimizer, RunSpec

_LOT = 1 << 22  # values at a time, so that temporaries are small
_EPS = 1e-8


class ScheduleFreeAdamW(LocalOptimizer):
    """Arguments as `LocalOptimizer`; it takes as much memory as AdamW."""

    def __init__(self, inner: InnerOptimizer, flat_N: torch.Tensor, gradient_N: torch.Tensor) -> None:
        vectors = {name: torch.zeros_like(flat_N) for name in ("offset", "exp_avg_sq")}
        super().__init__(inner, flat_N, gradient_N, vectors)
        self._steps, self._weight = 0, 0.0  # of all steps in the average
        self._round = 0  # the last one that was stepped in; 0: none yet
        self._first_steps = 0  # in the first one, which goes on; 0: it is over

    @property
    def numbers(self) -> dict[str, str]:
        return {"steps": str(self._steps), "weight": repr(self._weight), "last_round": str(self._round)}

    def _take_numbers(self, numbers: Mapping[str, str]) -> None:
        self._steps, self._weight = int(numbers["steps"]), float(numbers["weight"])
        self._round, self._first_steps = int(numbers["last_round"]), 0

    @torch.no_grad()
    def _take_vectors(self, vectors: Mapping[str, torch.Tensor]) -> None:
        self._shift(-1.0)  # x stays where it is
        super()._take_vectors(vectors)
        self._shift(1.0)

    @torch.no_grad()
    def look_ahead(self) -> None:
        self._shift(1.0)

    def _shift(self, times: float) -> None:
        """The parameters, by the way from x to y."""
        self._flat_N.add_(self._vectors["offset"], alpha=times * (1.0 - self._inner.betas[0]))

    def look_back(self, vector: torch.Tensor, read: Callable[[torch.Tensor], torch.Tensor]) -> None:
        vector.sub_(read(self._vectors["offset"]), alpha=1.0 - self._inner.betas[0])

    def _step(self, lr: float, round: int) -> None:
        share = self._share(lr * lr, round)
        beta1, beta2 = self._inner.betas
        self._steps += 1
        correction = 1.0 / math.sqrt(1.0 - beta2**self._steps)
        for lot in _lots(self._flat_N.numel()):
            y, direction = self._flat_N[lot], self._gradient_N[lot]
            offset, exp_avg_sq = self._vectors["offset"][lot], self._vectors["exp_avg_sq"][lot]
            exp_avg_sq.mul_(beta2).addcmul_(direction, direction, value=1.0 - beta2)
            direction.div_(exp_avg_sq.sqrt().mul_(correction).add_(_EPS))
            direction.add_(y, alpha=self._inner.weight_decay)
            y.sub_(offset, alpha=1.0 - beta1)  # x
            offset.sub_(direction, alpha=lr)  # u
            y.add_(offset, alpha=share + (1.0 - beta1) * (1.0 - share))
            offset.mul_(1.0 - share)

    def _share(self, weight: float, round: int) -> float:
        """Of a step with this weight in the average, to which it is added."""
        if self._round == 0 or (self._round == round and self._first_steps):
            self._first_steps += 1
            self._weight = weight * self._first_steps * round
        else:
            if round > self._round + 1:
                self._weight *= (round - 1) / self._round
            self._first_steps = 0
            self._weight += weight
        self._round = round
        return weight / self._weight


def make_optimizer(
    spec: RunSpec, flat_N: torch.Tensor, gradient_N: torch.Tensor, moments: MomentsKind = "fp32"
) -> LocalOptimizer | None:
    """The one that the run spec names; None: method gradient, whose optimizer is that of the shared state.

    Args:
        moments: how this member wants to hold them.

    Raises:
        InputError: not in this run, or not without bitsandbytes.
    """
    eight_bit.check_choice(spec, moments)
    if spec.sync.method != "diloco":
        return None
    if spec.inner.optimizer == "schedule-free-adamw":
        return ScheduleFreeAdamW(spec.inner, flat_N, gradient_N)
    kind = InnerAdamW if moments == "fp32" else eight_bit.EightBitAdamW
    return kind(spec.inner, flat_N, gradient_N)


def _lots(count: int) -> Iterator[slice]:
    for start in range(0, count, _LOT):
        yield slice(start, min(start + _LOT, count))
