"""Schedule-free AdamW over rounds: against the paper's recursion, and what a newcomer's first steps count for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from lab.training_fixtures import Bench
from peer.training.codecs.codec import EncodedUpdate
from peer.training.outer import outer_step
from peer.training.schedule_free import ScheduleFreeAdamW
from peer.training.state import SharedState
from protocol.run_spec import InnerOptimizer

N = 300
FREE: dict[str, Any] = {"optimizer": "schedule-free-adamw"}


def gradient_at(y: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Of a bowl around 1, with noise."""
    return (y - 1.0) * torch.linspace(0.1, 2.0, N) + 0.3 * torch.randn(N, generator=draw)


class One:
    """A member, without a model."""

    def __init__(self, seed: int = 0, **inner: Any) -> None:
        self.inner = InnerOptimizer(**FREE, clip_norm=None, **inner)
        self.flat, self.gradient = torch.zeros(N), torch.zeros(N)
        self.optimizer = ScheduleFreeAdamW(self.inner, self.flat, self.gradient)
        self.draw = torch.Generator().manual_seed(seed)

    def work(self, base: torch.Tensor, round: int, steps: int, lr: float = 0.01) -> torch.Tensor:
        """The evaluated point that a round's steps lead to."""
        self.flat.copy_(base)
        self.optimizer.look_ahead()
        for _ in range(steps):
            self.gradient.copy_(gradient_at(self.flat, self.draw))
            self.optimizer.step(1.0, lr, round)
        x = self.flat.clone()
        self.optimizer.look_back(x, torch.clone)
        return x


def paper(rates: list[float], weight_decay: float, beta1: float = 0.9, beta2: float = 0.99) -> torch.Tensor:
    """Algorithm 1 of Defazio et al. 2024 with its three points, in float64; a step's weight is its rate squared."""
    draw = torch.Generator().manual_seed(0)
    x = z = torch.zeros(N, dtype=torch.float64)
    second, total = torch.zeros_like(z), 0.0
    for t, lr in enumerate(rates, 1):
        y = (1 - beta1) * z + beta1 * x
        g = gradient_at(y, draw).double()
        second = beta2 * second + (1 - beta2) * g * g
        z = z - lr * (g / ((second / (1 - beta2**t)).sqrt() + 1e-8) + weight_decay * y)
        total += lr**2
        x = (1 - lr**2 / total) * x + lr**2 / total * z
    return x


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_one_peer_s_rounds_are_the_training_of_the_paper(weight_decay: float) -> None:
    rates = [0.0025, 0.005, 0.0075, *[0.01] * 9]  # a warm-up
    steps = [5, 2, 9, *[5] * 9]
    one, x = One(weight_decay=weight_decay), torch.zeros(N)
    for round, (lr, count) in enumerate(zip(rates, steps, strict=True), 1):
        x = one.work(x, round, count, lr)
    expected = paper([lr for lr, count in zip(rates, steps, strict=True) for _ in range(count)], weight_decay)
    assert torch.allclose(x.double(), expected, atol=1e-5) and x.abs().max() > 0.2


def test_members_with_the_same_steps_come_to_the_same_point_and_their_mean_moves_as_one() -> None:
    members, x = [One(seed) for seed in range(3)], torch.zeros(N)
    for round in range(1, 9):
        points = [member.work(x, round, 5) for member in members]
        assert len({member.optimizer.numbers["weight"] for member in members}) == 1
        x = torch.stack(points).mean(0)
    assert not torch.equal(members[0].optimizer._vectors["offset"], members[1].optimizer._vectors["offset"])
    assert (x - 1).abs().mean() < 0.9, "and they learn"


def test_a_newcomer_s_steps_count_as_the_others_do() -> None:
    old, new, x = One(), One(seed=1), torch.zeros(N)
    for round in range(1, 100):
        x = old.work(x, round, 5)
    late, first = (member.work(x, round, 5) - x for member, round in ((new, 100), (One(seed=1), 1)))
    assert late.norm() < first.norm() / 20, "it does not begin a new average"
    old.work(x, 100, 5)
    assert float(new.optimizer.numbers["weight"]) == pytest.approx(float(old.optimizer.numbers["weight"]))


def test_newcomers_do_not_undo_the_others_averaging() -> None:
    def left(every: int) -> float:
        """How far from the bottom they end where a member is replaced every so many rounds."""
        members, x = [One(seed) for seed in range(3)], torch.zeros(N)
        for round in range(1, 121):
            if every and round % every == 0:
                members[round // every % 3] = One(1000 + round)
            x = torch.stack([member.work(x, round, 5, lr=0.05) for member in members]).mean(0)
        return (torch.linspace(0.1, 2.0, N) * (x - 1) ** 2).mean().item()

    assert left(10) < 1.5 * left(0), "four times as far where each begins an average of its own"


def test_rounds_that_a_member_missed_count_as_those_that_it_was_in() -> None:
    here, away = One(), One()
    for round in range(1, 21):
        here.work(torch.zeros(N), round, 4)
        if round <= 5 or round > 19:
            away.work(torch.zeros(N), round, 4)
    assert float(away.optimizer.numbers["weight"]) == pytest.approx(float(here.optimizer.numbers["weight"]))
    assert (away.optimizer.numbers["steps"], here.optimizer.numbers["steps"]) == ("24", "80")


# ---- in a peer's work -----------------------------------------------------------------------------------------------


def test_an_update_is_of_the_point_that_is_evaluated_not_of_where_gradients_are_taken(
    tmp_path: Path, glass_dir: Path, plays: Path
) -> None:
    bench = Bench(tmp_path, glass_dir, plays, inner=FREE)
    work = bench.work()
    for _ in range(4):
        work.step()
    update = work.finish().vector
    work.save_optimizer(tmp_path / "memory.safetensors")
    with safe_open(tmp_path / "memory.safetensors", framework="pt") as file:
        assert sorted(file.keys()) == ["exp_avg_sq", "offset"]
        offset = file.get_tensor("offset")
    y = work.model.read()
    assert torch.allclose(bench.genesis.parameters - update, y - 0.1 * offset, atol=1e-7)
    assert offset.abs().max() > 1e-4
    before = update.clone()
    work.step()
    assert not torch.equal(work.finish().vector, before), "more steps and another update may follow"


@pytest.mark.parametrize("sync", [{"overlap": True}, {"wire": "int8"}], ids=["overlap", "lossy"])
def test_what_the_others_do_not_have_yet_stays_on_top_and_is_not_lost(
    sync: dict[str, Any], tmp_path: Path, glass_dir: Path, plays: Path
) -> None:
    states: list[SharedState] = []
    for options in ({}, sync):
        bench = Bench(tmp_path, glass_dir, plays, inner=FREE, sync={"wire": "fp32"} | options)
        work, state, sent = bench.work(), bench.genesis, None
        overlap, wire = bench.spec.sync.overlap, bench.spec.sync.wire
        for _ in range(4):
            work.rebase(state, sent)
            for _ in range(1 if overlap and state.round else 3):
                work.step()
            sent = EncodedUpdate.encode(work.finish().vector, wire)
            if overlap:
                work.carry_on()
                work.step(), work.step()
            state = outer_step(bench.spec, state, sent.decode())
        states.append(state)
    moved = (states[0].parameters - bench.genesis.parameters).norm()
    most = 1e-3 if sync.get("overlap") else 0.05
    assert (states[0].parameters - states[1].parameters).norm() < most * moved


def test_memory_that_is_loaded_again_in_mid_round_leaves_the_evaluated_point_where_it_is(
    tmp_path: Path, glass_dir: Path, plays: Path
) -> None:
    bench, path = Bench(tmp_path, glass_dir, plays, inner=FREE), tmp_path / "memory.safetensors"
    work = bench.work()
    work.step(), work.step()
    work.save_optimizer(path)
    work.step()
    before = work.finish().vector
    assert work.load_optimizer(path)
    assert torch.allclose(work.finish().vector, before, atol=1e-7)


def test_the_loss_falls(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    bench = Bench(tmp_path, glass_dir, plays, inner=FREE | {"lr": 1e-2})
    work, state, losses = bench.work(), bench.genesis, []
    for _ in range(5):
        work.begin(state)
        losses.append(sum(work.step().loss.item() for _ in range(4)) / 4)
        state = outer_step(bench.spec, state, work.finish().vector)
    assert losses[-1] < losses[0] - 0.1
