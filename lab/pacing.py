"""Pacing: a peer that trains at a given speed, so that eight fit on two cores and speeds can be compared.

A process that starts with `POTLUCK_TOKENS_PER_S` in its environment sleeps after each micro-batch until as much time
has passed as a card of that speed would have needed; what it computes is what it would compute anyway. One with
`POTLUCK_BEGIN_WHEN` does its first micro-batch when a file is there, so that all of a community are in round 1; one
with `POTLUCK_COME_WHEN` loads all that it needs, and goes among the members when that file is there. One with
`POTLUCK_FIRST_STEP` makes that file when its first micro-batch is done; one with `POTLUCK_STEPS` writes there, for
each, its round, when it began and ended, and with how many threads. `warm_start` puts them in.

    >>> environment(500)
    {'POTLUCK_TOKENS_PER_S': '500'}
    >>> beginning(Path("/tmp/begin"))
    {'POTLUCK_BEGIN_WHEN': '/tmp/begin'}
    >>> coming(Path("/tmp/come"))
    {'POTLUCK_COME_WHEN': '/tmp/come'}
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

TOKENS_PER_S = "POTLUCK_TOKENS_PER_S"
BEGIN_WHEN = "POTLUCK_BEGIN_WHEN"
COME_WHEN = "POTLUCK_COME_WHEN"
FIRST_STEP = "POTLUCK_FIRST_STEP"
STEPS = "POTLUCK_STEPS"
LOOK_S = 0.05


def environment(tokens_per_s: float) -> dict[str, str]:
    """What a peer of this speed must have in its environment."""
    return {TOKENS_PER_S: f"{tokens_per_s:g}"}


def beginning(file: Path) -> dict[str, str]:
    """What a peer that works only once this file is there must have in its environment."""
    return {BEGIN_WHEN: str(file)}


def coming(file: Path) -> dict[str, str]:
    """What a peer that comes only once this file is there must have in its environment."""
    return {COME_WHEN: str(file)}


def first_step(file: Path) -> dict[str, str]:
    """What a peer that makes this file after its first micro-batch must have in its environment."""
    return {FIRST_STEP: str(file)}


def steps(file: Path) -> dict[str, str]:
    """What a peer that keeps a log of its micro-batches must have in its environment."""
    return {STEPS: str(file)}


def install(environment: dict[str, str]) -> None:
    """In a process that is about to be `potluck join`: pace it as its environment says; without that, do nothing."""
    if TOKENS_PER_S in environment:
        _pace(float(environment[TOKENS_PER_S]))
    if BEGIN_WHEN in environment:
        from peer.training.work import LocalWork

        _hold(LocalWork, "step", Path(environment[BEGIN_WHEN]))
    if COME_WHEN in environment:
        from peer.net.swarm import Swarm

        _hold(Swarm, "__enter__", Path(environment[COME_WHEN]))
    if FIRST_STEP in environment:
        _note(Path(environment[FIRST_STEP]))
    if STEPS in environment:
        _log(Path(environment[STEPS]))


def _pace(tokens_per_s: float) -> None:
    from peer.training.work import LocalWork

    step = LocalWork.step

    def paced(self: LocalWork, *args: Any, **options: Any) -> Any:
        started = time.monotonic()
        result = step(self, *args, **options)
        time.sleep(max(0.0, started + result.tokens / tokens_per_s - time.monotonic()))
        return result

    LocalWork.step = paced  # type: ignore[method-assign]


def _hold(owner: type, name: str, file: Path) -> None:
    """Have a method wait for a file."""
    method = getattr(owner, name)

    def held(self: Any, *args: Any, **options: Any) -> Any:
        while not file.exists():
            time.sleep(LOOK_S)
        return method(self, *args, **options)

    setattr(owner, name, held)


def _note(file: Path) -> None:
    from peer.training.work import LocalWork

    step = LocalWork.step

    def noted(self: LocalWork, *args: Any, **options: Any) -> Any:
        result = step(self, *args, **options)
        if not file.exists():
            file.touch()
        return result

    LocalWork.step = noted  # type: ignore[method-assign]


def _log(file: Path) -> None:
    import torch

    from peer.training.work import LocalWork

    step = LocalWork.step
    log = file.open("a", buffering=1)

    def logged(self: LocalWork, *args: Any, **options: Any) -> Any:
        round, started = self.round, time.time()
        try:
            return step(self, *args, **options)
        finally:  # interrupted or not
            log.write(f"{round} {started:.3f} {time.time():.3f} {torch.get_num_threads()}\n")

    LocalWork.step = logged  # type: ignore[method-assign]
