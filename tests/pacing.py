"""Pacing: a peer that trains at a given speed, so that eight fit on two cores and speeds can be compared.

A process that starts with `POTLUCK_TOKENS_PER_S` in its environment sleeps after each micro-batch until as much time has
passed as a card of that speed would have needed; what it computes is what it would compute anyway. One with
`POTLUCK_BEGIN_WHEN` does its first micro-batch when a file is there, so that all of a community are in round 1.
`warm_start` puts both in.

    >>> environment(500)
    {'POTLUCK_TOKENS_PER_S': '500'}
    >>> beginning(Path("/tmp/begin"))
    {'POTLUCK_BEGIN_WHEN': '/tmp/begin'}
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

TOKENS_PER_S = "POTLUCK_TOKENS_PER_S"
BEGIN_WHEN = "POTLUCK_BEGIN_WHEN"
LOOK_S = 0.05


def environment(tokens_per_s: float) -> dict[str, str]:
    """What a peer of this speed must have in its environment."""
    return {TOKENS_PER_S: f"{tokens_per_s:g}"}


def beginning(file: Path) -> dict[str, str]:
    """What a peer that waits for this file must have in its environment."""
    return {BEGIN_WHEN: str(file)}


def install(environment: dict[str, str]) -> None:
    """In a process that is about to be `potluck join`: pace it as its environment says; without that, do nothing."""
    if TOKENS_PER_S not in environment and BEGIN_WHEN not in environment:
        return
    from peer.training.work import LocalWork

    tokens_per_s, step = float(environment.get(TOKENS_PER_S, "inf")), LocalWork.step
    gate = Path(environment.get(BEGIN_WHEN, "/"))

    def paced(self: LocalWork, *args: Any, **options: Any) -> Any:
        while not gate.exists():
            time.sleep(LOOK_S)
        started = time.monotonic()
        result = step(self, *args, **options)
        time.sleep(max(0.0, started + result.tokens / tokens_per_s - time.monotonic()))
        return result

    LocalWork.step = paced  # type: ignore[method-assign]
