"""Which runs `scripts/bench wan` makes, in which order, and how long they take. Pure.

Arms take turns within each line, and lines and methods within each seed, so that what else the machine does falls on
all.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scripts.wan.arms import DILOCO, HIVEMIND, PRESETS
from scripts.wan.scale import PEERS, REAL_BATCH, VARIANTS, Scale

START_S = 60.0  # until all peers of an arm stand ready, and to evaluate afterwards
WIRE_BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1.02}  # of a value; what is not here: at most LOW_BYTES
LOW_BYTES = 0.6


@dataclass(frozen=True)
class Course:
    """One run of one arm.

    Args:
        kind: "lora" or "full".
        steps: local steps of each of four equal peers that the token budget is worth.
        limit_s: when it ends in any case.
    """

    arm: str
    kind: str
    line: str
    variant: str
    seed: int
    lr: float
    scale: Scale
    steps: int
    limit_s: float

    @property
    def budget(self) -> int:
        """Tokens of all peers together."""
        return self.steps * PEERS * self.scale.tokens_per_step

    def speed(self, number: int) -> float:
        """Tokens/s of this peer's card."""
        return self.scale.tokens_per_s * VARIANTS[self.variant][number]

    @property
    def expected_s(self) -> float:
        """About how long it takes, for the display."""
        work_s = self.steps * self.scale.step_s
        if self.arm in HIVEMIND:  # gradients and state, one after the other, while the next gradient is computed
            epoch_s = HIVEMIND[self.arm] / REAL_BATCH / PEERS * self.scale.step_s
            needed = work_s / epoch_s * max(epoch_s, 2 * self.scale.exchange_s(self.line, 2))
        elif self.arm in DILOCO:
            rounds = -(-self.steps // DILOCO[self.arm])
            needed = rounds * (DILOCO[self.arm] * self.scale.step_s + self.scale.exchange_s(self.line, 2))
        else:
            preset = PRESETS[self.arm][self.kind]
            wire = WIRE_BYTES.get(preset["sync"].get("wire", "int8"), LOW_BYTES)
            needed = work_s + self.steps / preset["round_steps"] * self.scale.exchange_s(self.line, wire)
        return START_S + min(needed, self.limit_s)

    def __str__(self) -> str:
        return f"{self.kind}, {self.line}, {self.variant}, seed {self.seed}: {self.arm}"


def courses(
    arms: Sequence[str],
    kinds: Sequence[str],
    lines: Sequence[str],
    variants: Sequence[str],
    seeds: Sequence[int],
    *,
    rates: Mapping[str, Mapping[str, float]],
    scales: Mapping[str, Scale],
    steps: int,
    patience: float,
) -> list[Course]:
    """All runs in the lab; only the first line has variants beside "plain". `rates`: kind -> arm -> learning rate."""
    racing = [arm for arm in arms if arm != "ideal"]
    found = []
    for seed, variant, line, kind, arm in itertools.product(seeds, variants, lines, kinds, racing):
        if variant != "plain" and line != lines[0]:
            continue
        limit_s = patience * steps * scales[kind].step_s
        found.append(Course(arm, kind, line, variant, seed, rates[kind][arm], scales[kind], steps, limit_s))
    return found
