"""Learning-rate schedules: their shapes, the same bits for everybody, and at which rate each round's work is done."""

from __future__ import annotations

import hashlib
import itertools
import math
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coordinator.run_config import RunConfig
from lab.training_fixtures import Bench
from peer.sync.averages import Average
from peer.training.codecs.codec import CHUNK_VALUES, average_codec
from peer.training.outer import outer_step
from peer.training.state import SharedState
from peer.training.work import LocalWork
from protocol.run_spec import RunSpec
from protocol.schedule import Schedule

GRID = 2**20
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
COSINE = {"kind": "cosine", "warmup_rounds": 2, "min_factor": 0.1}


@st.composite
def fitting(draw: st.DrawFn) -> tuple[Schedule, int]:
    """A schedule, and the rounds of a run that it fits."""
    kind = draw(st.sampled_from(["constant", "linear", "cosine", "wsd"]))
    warmup, falling, stable = (draw(st.integers(low, 60)) for low in (0, 1, 0))
    least = draw(st.floats(1e-9, 1.0)) if kind != "constant" else 0.1
    decay = falling if kind == "wsd" else 0
    made = Schedule(kind=kind, warmup_rounds=warmup, decay_rounds=decay, min_factor=least)
    return made, warmup + 1 + falling + stable


# ---- shapes ---------------------------------------------------------------------------------------------------------


@given(fitting())
def test_a_factor_is_above_zero_and_at_most_one_on_a_grid(case: tuple[Schedule, int]) -> None:
    schedule, rounds = case
    schedule.check(rounds)
    for round in range(1, rounds + 3):
        factor = schedule.factor(round, rounds)
        assert 0 < factor <= 1 and factor * GRID == int(factor * GRID) and factor == float(np.float32(factor))


@given(fitting())
def test_it_rises_to_one_falls_to_the_minimum_in_the_last_round_and_never_jumps(case: tuple[Schedule, int]) -> None:
    schedule, rounds = case
    factors = [schedule.factor(round, rounds) for round in range(1, rounds + 1)]
    warmup, falling = schedule.warmup_rounds, schedule.decay_rounds or rounds - schedule.warmup_rounds - 1
    rising, rest = [*factors[:warmup], 1.0], factors[warmup:]
    assert rest[0] == 1.0, "the first round after the warm-up is at the full rate"
    assert rising == sorted(set(rising)) and rest == sorted(rest, reverse=True)
    least = schedule.min_factor if schedule.decays else 1.0
    assert factors[-1] == max(round(least * GRID), 1) / GRID == schedule.factor(rounds + 1, rounds)
    steepest = math.pi / 2 if schedule.kind == "cosine" else 1.0
    steps = [abs(a - b) for a, b in itertools.pairwise([0.0, *rising])]
    assert max(steps) <= 1 / (warmup + 1) + 2 / GRID
    steps = [a - b for a, b in itertools.pairwise(rest)]
    assert max(steps, default=0) <= steepest * (1 - least) / falling + 2 / GRID
    if schedule.kind == "wsd":
        assert set(rest[: len(rest) - falling]) == {1.0}


def test_it_stays_at_one_without_an_end() -> None:
    assert Schedule().factor(10**9, 0) == 1.0
    assert [Schedule(warmup_rounds=3).factor(round, 0) for round in range(1, 6)] == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("warmup", [0, 7])
def test_after_the_warm_up_it_is_what_the_schedulers_of_transformers_say(warmup: int) -> None:
    from transformers import get_cosine_with_min_lr_schedule_with_warmup, get_wsd_schedule

    rounds, falling = 60, 20
    cosine = Schedule(kind="cosine", warmup_rounds=warmup, min_factor=0.2)
    wsd = Schedule(kind="wsd", warmup_rounds=warmup, decay_rounds=falling, min_factor=0.2)
    linear = Schedule(kind="linear", warmup_rounds=warmup, min_factor=0.2)
    made = {
        cosine: lambda o: get_cosine_with_min_lr_schedule_with_warmup(o, warmup, rounds - 1, min_lr_rate=0.2),
        wsd: lambda o: get_wsd_schedule(
            o, warmup, falling, num_stable_steps=rounds - 1 - warmup - falling, min_lr_ratio=0.2, decay_type="linear"
        ),
        linear: lambda o: get_wsd_schedule(
            o, warmup, rounds - 1 - warmup, num_stable_steps=0, min_lr_ratio=0.2, decay_type="linear"
        ),
    }
    for schedule, make in made.items():
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        theirs = make(optimizer)
        for round in range(1, rounds + 1):
            if round > warmup:
                assert schedule.factor(round, rounds) == pytest.approx(theirs.get_last_lr()[0], abs=1e-6)
            optimizer.step()
            theirs.step()


# ---- the same bits --------------------------------------------------------------------------------------------------


def decimal_factor(schedule: Schedule, round: int, rounds: int) -> float:
    """The same, written down once more with decimal numbers of 60 digits."""
    with localcontext() as context:
        context.prec = 60
        warmup, least = schedule.warmup_rounds, Decimal(schedule.min_factor)
        falling = schedule.decay_rounds or rounds - warmup - 1
        done = Decimal(max(round - rounds + falling, 0)) / falling
        if round <= warmup:
            value = Decimal(round) / (warmup + 1)
        elif schedule.kind == "constant":
            value = Decimal(1)
        else:
            left = (1 + cosine(PI * done)) / 2 if schedule.kind == "cosine" else 1 - done
            value = least + (1 - least) * left
        return max(int((value * GRID).to_integral_value(ROUND_HALF_EVEN)), 1) / GRID


def cosine(x: Decimal) -> Decimal:
    """Of the recipes of Python's decimal module: half the angle until it is small, then double it again."""
    small = x / 2**20
    value, term = Decimal(1), Decimal(1)
    for n in range(2, 20, 2):
        term *= -small * small / (n * (n - 1))
        value += term
    for _ in range(20):
        value = 2 * value * value - 1
    return value


@given(fitting())
def test_an_independent_computation_gives_the_same_bits(case: tuple[Schedule, int]) -> None:
    schedule, rounds = case
    for round in range(1, rounds + 1):
        assert schedule.factor(round, rounds) == decimal_factor(schedule, round, rounds)


@pytest.mark.parametrize("round", [1, 11, 12, 77_777, 500_000_000, 999_999_999, 10**9])
def test_it_is_as_exact_in_the_longest_run(round: int) -> None:
    schedule = Schedule(kind="cosine", warmup_rounds=10, min_factor=1e-4)
    assert schedule.factor(round, 10**9) == decimal_factor(schedule, round, 10**9)


@pytest.mark.parametrize(
    ("schedule", "digest"),
    [
        ({"kind": "constant", "warmup_rounds": 9}, "f3541bf2e993be922ed8d110aa726341263e02f2c1f98a9e76c994474527cac0"),
        (
            {"kind": "linear", "warmup_rounds": 9, "min_factor": 0.05},
            "240541e125e756a2783244c24c87eda861aee5c9ba9a8a859daa23cf4511494d",
        ),
        (
            {"kind": "cosine", "warmup_rounds": 9, "min_factor": 0.05},
            "c869e32a728c025c9df53076a2c3b8a2ac1f80c9840a13d64d37a82d2f891a3f",
        ),
        (
            {"kind": "wsd", "warmup_rounds": 9, "min_factor": 0.05, "decay_rounds": 300},
            "dabfc079f6fb2ec2bf324bdddc4768906d6915b5e4098fe1503555e1ca8fd15d",
        ),
    ],
)
def test_stored_schedules_are_what_they_were(schedule: dict[str, Any], digest: str) -> None:
    made = Schedule(**schedule)
    factors = np.array([made.factor(round, 1000) for round in range(1, 1001)], dtype="<f8")
    assert hashlib.sha256(factors.tobytes()).hexdigest() == digest


# ---- members, and who computes it again -----------------------------------------------------------------------------


def scheduled(**sections: Any) -> RunSpec:
    value = {
        "run": {"name": "tiny", "rounds": 8},
        "model": {"path": "x", "license": "MIT"},
        "data": {"path": "x", "license": "MIT"},
        "sync": {"round_tokens": 9, "wire": "fp32"},
    }
    for name, section in sections.items():
        value[name] = value.get(name, {}) | section
    pins: dict[str, Any] = {"model_digest": "0" * 64, "model_name": "m", "parameters": 500, "trainable": 500}
    return RunConfig.model_validate(value).pin(**pins, data_digest="0" * 64, data_size_bytes=1)


def drawn(seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(500, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("method", ["diloco", "gradient"])
def test_members_and_who_replays_the_averages_come_to_one_state_in_each_round(method: str) -> None:
    outer = {"lr": 0.7, "momentum": 0.9, "weight_decay": 0.01, "schedule": COSINE}
    spec = scheduled(sync={"method": method}, outer=outer)
    unscheduled = scheduled(sync={"method": method}, outer=outer | {"schedule": {}})
    again = RunSpec.from_bytes(spec.to_bytes())  # of who was not there
    genesis = SharedState(0, (("w", (500,)),), drawn(0))
    member, other, audit = genesis, genesis, genesis
    for number in range(1, 9):
        update = drawn(number, 0.01)
        plain = outer_step(unscheduled, member, update.clone())
        average = Average("fp32", 500, tuple(average_codec("fp32").encode(part) for part in update.split(CHUNK_VALUES)))
        member, other = outer_step(spec, member, update.clone()), outer_step(spec, other, update.clone())
        audit = average.applied_to(again, audit)
        assert member.digest == other.digest == audit.digest
        assert (member.digest == plain.digest) == (number == 3), "at the full rate in the third round alone"


def test_the_outer_rate_is_one_product_rounded_to_fp32() -> None:
    spec = scheduled(outer={"lr": 0.7, "schedule": COSINE})
    state = SharedState(0, (("w", (500,)),), drawn(0))
    for number in range(1, 9):
        update = drawn(number, 0.01)
        rate = np.float32(0.7 * decimal_factor(spec.outer.schedule, number, 8))
        expected = state.parameters.numpy() - update.numpy() * rate
        state = outer_step(spec, state, update)
        assert np.array_equal(state.parameters.numpy().view(np.int32), expected.view(np.int32))


def test_a_scheduled_gradient_step_is_torch_s_adamw_at_that_rate() -> None:
    outer = {"lr": 0.01, "weight_decay": 0.1, "clip_norm": None, "schedule": COSINE}
    spec = scheduled(sync={"method": "gradient"}, outer=outer)
    state = SharedState(0, (("w", (500,)),), drawn(0))
    reference = torch.nn.Parameter(drawn(0).double())
    optimizer = torch.optim.AdamW([reference], betas=spec.outer.betas, weight_decay=0.1)
    for number in range(1, 9):
        optimizer.param_groups[0]["lr"] = spec.rates(number).outer
        reference.grad = drawn(number).double()
        optimizer.step()
        state = outer_step(spec, state, drawn(number))
    assert torch.allclose(state.parameters.double(), reference.data, rtol=1e-5, atol=2e-6)


# ---- the work of a peer ---------------------------------------------------------------------------------------------

SIGNS = {"lr": 1e-3, "betas": (0.0, 0.0), "clip_norm": None}  # so AdamW moves each value by the rate, up or down


def moved(work: LocalWork) -> float:
    """How far one step goes."""
    before = work.model.read()
    work.step()
    return (work.model.read() - before).abs().max().item()


def test_each_round_s_work_is_at_its_own_rate_also_before_its_base_is_agreed(
    tmp_path: Path, glass_dir: Path, plays: Path
) -> None:
    schedule = {"kind": "linear", "warmup_rounds": 2, "min_factor": 0.25}
    bench = Bench(
        tmp_path, glass_dir, plays, run={"rounds": 6}, sync={"overlap": True}, inner=SIGNS | {"schedule": schedule}
    )
    expected = [1e-3 * factor for factor in (1 / 3, 2 / 3, 1.0, 0.75, 0.5, 0.25)]
    work, state = bench.work(), bench.genesis
    for number in range(1, 7):
        assert work.round == number and work.rates.inner == pytest.approx(expected[number - 1], rel=1e-5)
        assert moved(work) == pytest.approx(expected[number - 1], rel=0.01)
        update = work.finish()
        if number < 6:
            work.carry_on()
            assert moved(work) == pytest.approx(expected[number], rel=0.01)
        state = outer_step(bench.spec, state, update.vector.clone())
        work.rebase(state, None)


@pytest.mark.parametrize("optimizer", ["adamw", "schedule-free-adamw"])
def test_who_starts_again_in_mid_run_goes_on_at_the_right_rate(
    optimizer: str, tmp_path: Path, glass_dir: Path, plays: Path
) -> None:
    schedule = {"warmup_rounds": 4} | ({"kind": "cosine"} if optimizer == "adamw" else {})
    inner = {"optimizer": optimizer, "schedule": schedule}
    bench = Bench(tmp_path, glass_dir, plays, run={"rounds": 9}, inner=inner)
    work, state = bench.work(), bench.genesis
    for _ in range(3):
        work.begin(state)
        moved(work), moved(work)
        state = outer_step(bench.spec, state, work.finish().vector)
    work.save_optimizer(tmp_path / "memory.safetensors")
    back = bench.work()
    assert back.load_optimizer(tmp_path / "memory.safetensors")
    for one in (work, back):
        one.begin(state)
        moved(one), moved(one)
        assert one.rates.inner == pytest.approx(1e-3 * 4 / 5, rel=1e-5)
    assert torch.equal(back.finish().vector, work.finish().vector)
