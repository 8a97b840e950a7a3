"""Learning-rate schedules: what a rate is multiplied by in a round. Members, coordinator and whoever replays ask here.

    constant    1
    linear      falls in a straight line, from 1 in the first round after the warm-up to `min_factor` in the run's last
    cosine      falls so by half a cosine wave (Loshchilov and Hutter 2017, section 3)
    wsd         warm-up, stable, decay (Hu et al. 2024, section 4): 1, and a straight line in the last `decay_rounds`

Before that, round r of a warm-up of W rounds has r / (W + 1), so that the round after it is the first at the full rate.

It depends on the number of the round alone: that stands in the state which a newcomer takes over. How many tokens were
agreed so far does not. An agreement has the weights of its own round, and who fetches a state has none of the earlier
ones; so a schedule by tokens would be hearsay. As a run ends after `run.rounds` and not after so many tokens, rounds
are also what a decay can end with.

The factor is the same on every machine. It is found with whole numbers and fractions, which Python computes exactly,
and rounded once to a multiple of 2**-20, ties to even. That is a number that float32 and float64 hold as it is, so the
rate, `lr * factor`, is one IEEE product of two float64. No cosine of a C library is asked: they differ in bits.

    >>> schedule = Schedule(kind="cosine", warmup_rounds=1, min_factor=0.25)
    >>> [schedule.factor(round, rounds=6) for round in range(1, 7)]
    [0.5, 1.0, 0.8901653289794922, 0.625, 0.3598346710205078, 0.25]
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from protocol.section import Section

_GRID = 1 << 20  # parts of 1, of which a factor is so many
_ONE = 1 << 64
_PI = 57952155664616982739  # pi * 2**64, rounded
_LEAST = 0.1  # of `min_factor`, where nothing is said


class Rates(NamedTuple):
    """The learning rates of one round."""

    inner: float | None  # None: method gradient has no inner optimizer
    outer: float

    def __str__(self) -> str:
        outer = f"{self.outer:.3g}"
        return outer if self.inner is None else f"{self.inner:.3g}, outer {outer}"


class Schedule(Section):
    """How a learning rate changes from round to round."""

    kind: Literal["constant", "linear", "cosine", "wsd"] = "constant"
    warmup_rounds: int = Field(default=0, ge=0, le=10**9)  # the rate grows for so many rounds, in a straight line
    decay_rounds: int = Field(default=0, ge=0, le=10**9)  # wsd: the rate falls in so many, the run's last
    min_factor: float = Field(default=_LEAST, gt=0, le=1)  # linear, cosine, wsd: of the rate, in the run's last round

    @model_validator(mode="after")
    def _of_this_kind(self) -> Schedule:
        if (self.kind == "wsd") != (self.decay_rounds > 0):
            raise ValueError("kind wsd needs decay_rounds, and no other kind has them")
        if self.kind == "constant" and self.min_factor != _LEAST:
            raise ValueError("min_factor goes with kind linear, cosine or wsd: a constant rate does not fall")
        return self

    @property
    def decays(self) -> bool:
        """Whether it ends at another rate, and so needs an end."""
        return self.kind != "constant"

    def check(self, rounds: int) -> None:
        """Whether it fits a run of so many rounds; 0: one without an end.

        Raises:
            ValueError: it does not.
        """
        if self.decays and not rounds:
            raise ValueError(
                f"kind {self.kind} falls until the run's last round, and run.rounds = 0 is a run without one; set "
                "run.rounds, or take kind constant"
            )
        falling = self.decay_rounds or int(self.decays)
        if rounds and self.warmup_rounds + 1 + falling > rounds:
            raise ValueError(
                f"{self.warmup_rounds} rounds of warm-up, one at the full rate and {falling} in which it falls are "
                f"more than the run's {rounds}"
            )

    def factor(self, round: int, rounds: int) -> float:
        """What the rate is multiplied by in a round, in (0, 1], a multiple of 2**-20.

        Args:
            round: counted from 1.
            rounds: of the run, which `check` has found long enough; 0: no end.
        """
        return max(_nearest(self._exact(round, rounds) * _GRID), 1) / _GRID

    def _exact(self, round: int, rounds: int) -> Fraction:
        if round <= self.warmup_rounds:
            return Fraction(max(round, 1), self.warmup_rounds + 1)
        if not self.decays:
            return Fraction(1)
        of = self.decay_rounds or rounds - self.warmup_rounds - 1
        done = min(max(round - (rounds - of), 0), of)
        left = _half_cosine(done, of) if self.kind == "cosine" else Fraction(of - done, of)
        least = Fraction(self.min_factor)
        return least + (1 - least) * left


def _half_cosine(done: int, of: int) -> Fraction:
    """(1 + cos(pi * done / of)) / 2 by Taylor's series, off by less than 2**-56: far less than what rounding leaves."""
    angle = _PI * done // of
    square = angle * angle // _ONE
    cosine, term, n = _ONE, _ONE, 0
    while term:
        n += 2
        term = term * square // _ONE // (n * (n - 1))
        cosine += term if n % 4 == 0 else -term
    return Fraction(_ONE + cosine, 2 * _ONE)


def _nearest(value: Fraction) -> int:
    """The nearest whole number, ties to even."""
    return round(value)
