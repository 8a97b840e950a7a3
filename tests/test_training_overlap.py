"""Work that goes on while its round is agreed: nothing of it is lost, and alone it is the same training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_fixtures import Bench

from peer.training.outer import outer_step
from peer.training.state import SharedState
from peer.training.work import LocalWork


def steps(work: LocalWork, count: int) -> None:
    for _ in range(count):
        work.step()


def carried_on(bench: Bench) -> LocalWork:
    """Work that has handed over, and is a step ahead."""
    work = bench.work()
    steps(work, 1)
    work.finish()
    work.carry_on()
    steps(work, 1)
    return work


def test_overlapped_rounds_of_one_peer_are_the_same_training(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    bench = Bench(tmp_path, glass_dir, plays)
    states: list[SharedState] = []
    for overlapped in (False, True):
        work, state = bench.work(), bench.genesis
        for _ in range(3):
            (work.rebase if overlapped and state.round else work.begin)(state)
            steps(work, 1 if overlapped and state.round else 3)
            update = work.finish()
            assert (update.tokens, update.batches) == (12 * 31, 12)
            if overlapped:
                work.carry_on()
                steps(work, 2)
            state = outer_step(bench.spec, state, update.vector)
        states.append(state)
    moved = (states[0].parameters - bench.genesis.parameters).norm()
    assert (states[0].parameters - states[1].parameters).norm() < 1e-4 * moved


def test_the_agreed_state_is_taken_over_and_what_was_done_meanwhile_stays_on_top(
    tmp_path: Path, glass_dir: Path, plays: Path
) -> None:
    bench = Bench(tmp_path, glass_dir, plays)
    work = bench.work()
    steps(work, 2)
    mine = work.finish().vector
    left_at = work.model.read()
    work.carry_on()
    steps(work, 2)
    meanwhile = work.model.read() - left_at
    agreed = outer_step(bench.spec, bench.genesis, (mine + torch.full_like(mine, 1e-3)) / 2)
    work.rebase(agreed)
    assert torch.allclose(work.model.read(), agreed.parameters + meanwhile, atol=1e-6)
    assert meanwhile.abs().max() > 1e-5
    update = work.finish()
    assert torch.allclose(update.vector, -meanwhile, atol=1e-6)
    assert (work.round, update.batches) == (2, 8)


def test_what_was_done_for_a_round_that_has_gone_by_is_dropped(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    bench = Bench(tmp_path, glass_dir, plays)
    work = carried_on(bench)
    first = outer_step(bench.spec, bench.genesis, torch.full_like(bench.genesis.parameters, 1e-3))
    second = outer_step(bench.spec, first, torch.full_like(first.parameters, 1e-3))
    work.rebase(second)
    assert (work.round, work.tokens) == (3, 0)
    assert torch.equal(work.model.read(), second.parameters)


def test_there_is_no_update_before_its_base_is_agreed(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    work = carried_on(Bench(tmp_path, glass_dir, plays))
    with pytest.raises(RuntimeError):
        work.finish()


def test_a_gradient_cannot_be_carried_on_with(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    bench = Bench(tmp_path, glass_dir, plays, sync={"method": "gradient"})
    with pytest.raises(RuntimeError):
        bench.work().carry_on()
    with pytest.raises(ValueError, match="overlap needs method diloco"):
        Bench(tmp_path, glass_dir, plays, sync={"method": "gradient", "overlap": True})
