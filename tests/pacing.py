"""Pacing: a peer that trains at a given speed, so that eight fit on two cores and speeds can be compared.

A process that starts with `POTLUCK_TOKENS_PER_S` in its environment sleeps after each micro-batch until as much time has
passed as a card of that speed would have needed; what it computes is what it would compute anyway. `warm_start` puts it in.

    >>> environment(500)
    {'POTLUCK_TOKENS_PER_S': '500'}
"""

from __future__ import annotations

import time
from typing import Any

TOKENS_PER_S = "POTLUCK_TOKENS_PER_S"


def environment(tokens_per_s: float) -> dict[str, str]:
    """What a peer of this speed must have in its environment."""
    return {TOKENS_PER_S: f"{tokens_per_s:g}"}


def install(environment: dict[str, str]) -> None:
    """In a process that is about to be `potluck join`: pace it as its environment says; without that, do nothing."""
    if TOKENS_PER_S not in environment:
        return
    from peer.training.work import LocalWork

    tokens_per_s, step = float(environment[TOKENS_PER_S]), LocalWork.step

    def paced(self: LocalWork, *args: Any, **options: Any) -> Any:
        started = time.monotonic()
        result = step(self, *args, **options)
        time.sleep(max(0.0, started + result.tokens / tokens_per_s - time.monotonic()))
        return result

    LocalWork.step = paced  # type: ignore[method-assign]
