"""What the others do not have yet stays in a peer's model: nothing of it is lost or counted twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lab.training_fixtures import Bench
from peer.training.codecs.codec import EncodedUpdate
from peer.training.outer import outer_step
from peer.training.state import SharedState
from peer.training.update import keeps_own
from peer.training.work import LocalWork
from protocol.errors import FormatError


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
    states: list[SharedState] = []
    for overlapped in (False, True):
        bench = Bench(tmp_path, glass_dir, plays, sync={"overlap": overlapped, "wire": "fp32"})
        work, state, sent = bench.work(), bench.genesis, None
        for _ in range(3):
            work.rebase(state, sent)
            steps(work, 1 if overlapped and state.round else 3)
            update = work.finish()
            assert (update.tokens, update.batches) == (12 * 31, 12)
            if overlapped:
                work.carry_on()
                steps(work, 2)
            sent = EncodedUpdate.encode(update.vector, "fp32")
            state = outer_step(bench.spec, state, update.vector)
        states.append(state)
    moved = (states[0].parameters - bench.genesis.parameters).norm()
    assert (states[0].parameters - states[1].parameters).norm() < 1e-4 * moved


def test_the_agreed_state_is_taken_over_and_what_was_done_meanwhile_stays_on_top(
    tmp_path: Path, glass_dir: Path, plays: Path
) -> None:
    bench = Bench(tmp_path, glass_dir, plays, sync={"overlap": True})
    work = bench.work()
    steps(work, 2)
    mine = work.finish().vector
    left_at = work.model.read()
    work.carry_on()
    steps(work, 2)
    meanwhile = work.model.read() - left_at
    agreed = outer_step(bench.spec, bench.genesis, (mine + torch.full_like(mine, 1e-3)) / 2)
    work.rebase(agreed, EncodedUpdate.encode(mine, "fp32"))
    assert torch.allclose(work.model.read(), agreed.parameters + meanwhile, atol=1e-6)
    assert meanwhile.abs().max() > 1e-5
    update = work.finish()
    assert torch.allclose(update.vector, -meanwhile, atol=1e-6)
    assert (work.round, update.batches) == (2, 8)


@pytest.mark.parametrize("sync", [{"wire": "int4"}, {"wire": "topk"}, {"wire": "int2", "fragments": 3}], ids=str)
@pytest.mark.parametrize("overlap", [False, True])
def test_all_that_was_worked_is_in_the_agreed_state_or_still_here(
    tmp_path: Path, glass_dir: Path, plays: Path, sync: dict[str, Any], overlap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two members; the other's updates are known. Alone, the model would have moved by as much."""
    for module in ("peer.training.state", "protocol.state"):  # many chunks, as a large model has
        monkeypatch.setattr(f"{module}.STATE_CHUNK_BYTES", 4096)
    bench = Bench(tmp_path, glass_dir, plays, sync=sync | {"overlap": overlap})
    work, state, sent = bench.work(), bench.genesis, None
    worked = torch.zeros_like(state.parameters)
    counted = torch.zeros_like(state.parameters)
    for round in range(1, 8):
        work.rebase(state, sent)
        before = work.model.read()
        assert torch.allclose(before, state.parameters + worked - counted, atol=1e-5)
        steps(work, 1)
        encoded = EncodedUpdate.encode(work.finish().vector, bench.spec.sync.wire)
        if overlap:
            work.carry_on()
            steps(work, 1)
        worked += work.model.read() - before
        fragment = bench.spec.sync.fragment(round, len(worked))
        assert encoded.values == len(state.parameters[fragment])
        others = torch.full((encoded.values,), 1e-3)
        if round != 4:  # that one is made without this member
            counted[fragment] -= encoded.decode()
            sent, averaged = encoded, (encoded.decode() + others) / 2
        else:
            sent, averaged = None, others
        state = outer_step(bench.spec, state, averaged)
    left = (worked - counted).norm()
    assert 1e-4 * worked.norm() < left < worked.norm(), "something is kept, and something has been counted"


def test_a_round_begins_at_its_base_exactly_where_nothing_is_ever_kept(
    tmp_path: Path, glass_dir: Path, plays: Path
) -> None:
    bench = Bench(tmp_path, glass_dir, plays, sync={"wire": "int8"})
    work = bench.work()
    work.begin(bench.genesis)
    steps(work, 2)
    update = work.finish()
    state = outer_step(bench.spec, bench.genesis, update.vector / 3)
    work.rebase(state, EncodedUpdate.encode(update.vector, "int8"))
    assert not keeps_own(bench.spec) and work.round == 2 and torch.equal(work.model.read(), state.parameters)


def test_an_outer_step_on_a_fragment_leaves_the_rest_and_remembers_its_momentum(
    tmp_path: Path, glass_dir: Path, plays: Path
) -> None:
    sync, outer = {"fragments": 3}, {"momentum": 0.5}
    bench = Bench(tmp_path, glass_dir, plays, sync=sync, outer=outer)
    whole = Bench(tmp_path / "whole", glass_dir, plays, outer=outer)
    state, wanted = bench.genesis, bench.genesis
    size = len(state.parameters)
    for round in range(1, 7):
        fragment = bench.spec.sync.fragment(round, size)
        update = torch.randn(
            bench.spec.sync.fragment_values(round, size), generator=torch.Generator().manual_seed(round)
        )
        alone = SharedState(
            0,
            (("part", (len(update),)),),
            wanted.parameters[fragment].clone(),
            tuple(v[fragment].clone() for v in wanted.outer),
        )
        stepped = outer_step(whole.spec, alone, update.clone())
        after = outer_step(bench.spec, state, update.clone())
        parameters = state.parameters.clone()
        parameters[fragment] = stepped.parameters
        assert torch.equal(after.parameters, parameters)
        assert torch.equal(after.outer[0][fragment], stepped.outer[0])
        state = wanted = after
    with pytest.raises(FormatError):
        outer_step(bench.spec, state, torch.zeros(size))


def test_work_for_a_round_that_has_gone_by_is_dropped(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    bench = Bench(tmp_path, glass_dir, plays, sync={"overlap": True})
    work = carried_on(bench)
    first = outer_step(bench.spec, bench.genesis, torch.full_like(bench.genesis.parameters, 1e-3))
    second = outer_step(bench.spec, first, torch.full_like(first.parameters, 1e-3))
    work.rebase(second, None)
    assert (work.round, work.tokens) == (3, 0)
    assert torch.equal(work.model.read(), second.parameters)


def test_there_is_no_update_before_its_base_is_agreed(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    work = carried_on(Bench(tmp_path, glass_dir, plays, sync={"overlap": True}))
    with pytest.raises(RuntimeError):
        work.finish()


def test_a_gradient_cannot_be_carried_on_with(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    bench = Bench(tmp_path, glass_dir, plays, sync={"method": "gradient"})
    with pytest.raises(RuntimeError):
        bench.work().carry_on()
    with pytest.raises(ValueError, match="overlap needs method diloco"):
        Bench(tmp_path, glass_dir, plays, sync={"method": "gradient", "overlap": True})
    with pytest.raises(ValueError, match="fragments need method diloco"):
        Bench(tmp_path, glass_dir, plays, sync={"method": "gradient", "fragments": 2})
