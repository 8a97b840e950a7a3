"""Checkpoints of few rounds, whose agreements stand in `rounds/` and are not what they should be."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from protocol import checkpoint
from tests.kit.builders import Run, build_run
from tests.kit.hostile.cases import ANYONE, Cases, Make

CASES = Cases()


def sparse(run: Run) -> Path:
    """Make five rounds instead, with two checkpoints and the agreements in `rounds/`; returns the last checkpoint."""
    shutil.rmtree(run.checkpoints)
    run.__dict__.update(build_run(run.folder, rounds=5, every=5).__dict__)
    for number in run.agreements:
        put_round(run, number)
    return run.step(5)


def put_round(run: Run, number: int) -> Path:
    path = run.checkpoints / checkpoint.ROUNDS / checkpoint.round_name(number)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(run.agreements[number].to_bytes())
    return path


def with_rounds(change: Callable[[Run, Path], Any]) -> Make:
    """Most rounds have no checkpoint; `change` gets the run and its `rounds/`."""

    def make(run: Run, step: Path) -> Path:
        last = sparse(run)
        change(run, run.checkpoints / checkpoint.ROUNDS)
        return last

    return make


def cut_round(run: Run, rounds: Path) -> None:
    path = rounds / checkpoint.round_name(2)
    path.write_bytes(path.read_bytes()[:100])


def swap_rounds(run: Run, rounds: Path) -> None:
    for number, other in ((2, 3), (3, 2)):
        (rounds / checkpoint.round_name(number)).write_bytes(run.agreements[other].to_bytes())


def link_round(run: Run, rounds: Path) -> None:
    shutil.move(rounds / checkpoint.round_name(2), run.folder / "round.json")
    (rounds / checkpoint.round_name(2)).symlink_to(run.folder / "round.json")


def link_rounds(run: Run, rounds: Path) -> None:
    shutil.move(rounds, run.folder / "rounds")
    rounds.symlink_to(run.folder / "rounds")


def swap_published(run: Run, rounds: Path) -> None:
    (rounds / checkpoint.round_name(5)).write_bytes(run.agreements[4].to_bytes())


CASES.add("rounds/ left out", ANYONE)(with_rounds(lambda run, rounds: shutil.rmtree(rounds)))
CASES.add("the agreement of the newest round between checkpoints left out", ANYONE)(
    with_rounds(lambda run, rounds: (rounds / checkpoint.round_name(4)).unlink())
)
CASES.add("the agreement of a round in the middle left out", ANYONE)(
    with_rounds(lambda run, rounds: (rounds / checkpoint.round_name(3)).unlink())
)
CASES.add("the agreement of a round cut short", ANYONE)(with_rounds(cut_round))
CASES.add("the agreements of two rounds swapped", ANYONE)(with_rounds(swap_rounds))
CASES.add("the agreement of a round replaced by a link to its copy", ANYONE)(with_rounds(link_round))
CASES.add("rounds/ replaced by a link to its copy", ANYONE)(with_rounds(link_rounds))
CASES.add("another round's agreement where a checkpoint's own belongs", ANYONE)(with_rounds(swap_published))
