"""The outer step and the weighted mean: against torch's own optimizers in float64, and to the bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from peer.training.aggregate import weighted_mean
from peer.training.outer import global_norm, step
from peer.training.state import SharedState
from protocol.errors import FormatError, RoundAborted
from protocol.run_spec import OuterOptimizer

COUNT = (1 << 20) + 12_345  # more than one lot


def vector(seed: int, count: int = COUNT, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)) * scale


def genesis(count: int = COUNT) -> SharedState:
    return SharedState(0, (("w", (count,)),), vector(0, count))


def run(outer: OuterOptimizer, method: str, count: int = COUNT, rounds: int = 5) -> SharedState:
    state = genesis(count)
    for number in range(rounds):
        state = step(outer, method, state, vector(100 + number, count, 0.01))  # type: ignore[arg-type]
    return state


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_diloco_is_sgd_with_momentum_on_the_update(momentum: float, nesterov: bool) -> None:
    outer = OuterOptimizer(lr=0.7, momentum=momentum, nesterov=nesterov)
    state = run(outer, "diloco")
    reference = torch.nn.Parameter(vector(0).double())
    optimizer = torch.optim.SGD([reference], lr=0.7, momentum=momentum, nesterov=nesterov)
    for number in range(5):
        reference.grad = vector(100 + number, scale=0.01).double()
        optimizer.step()
    assert torch.allclose(state.parameters.double(), reference.data, rtol=1e-6, atol=1e-6)
    assert state.round == 5 and len(state.outer) == (1 if momentum else 0) and state.outer_steps == 0


@pytest.mark.parametrize(("clip_norm", "weight_decay"), [(None, 0.0), (1.0, 0.1), (1e6, 0.0)])
def test_gradient_is_clipped_adamw(clip_norm: float | None, weight_decay: float) -> None:
    outer = OuterOptimizer(lr=0.01, betas=(0.9, 0.95), weight_decay=weight_decay, clip_norm=clip_norm)
    state = run(outer, "gradient")
    reference = torch.nn.Parameter(vector(0).double())
    optimizer = torch.optim.AdamW([reference], lr=0.01, betas=(0.9, 0.95), weight_decay=weight_decay, eps=1e-8)
    for number in range(5):
        reference.grad = vector(100 + number, scale=0.01).double()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_([reference], clip_norm)
        optimizer.step()
    assert torch.allclose(state.parameters.double(), reference.data, rtol=1e-5, atol=2e-6)
    assert len(state.outer) == 2 and state.outer_steps == 5


def test_plain_averaging_is_exactly_base_minus_update() -> None:
    base, update = genesis(1000), vector(1, 1000)
    assert torch.equal(step(OuterOptimizer(), "diloco", base, update.clone()).parameters, base.parameters - update)


@pytest.mark.parametrize("method", ["diloco", "gradient"])
def test_the_new_state_takes_the_updates_memory_and_leaves_the_base(method: str) -> None:
    base, update = genesis(1000), vector(1, 1000)
    before = base.digest
    state = step(OuterOptimizer(), method, base, update)  # type: ignore[arg-type]
    assert state.parameters.data_ptr() == update.data_ptr()
    assert SharedState(0, base.names_shapes, base.parameters).digest == before


def test_two_rounds_with_opposite_updates_and_no_momentum_keep_the_base_untouched() -> None:
    base = genesis(1000)
    before = base.parameters.clone()
    step(OuterOptimizer(momentum=0.9, nesterov=True), "diloco", base, vector(1, 1000))
    assert torch.equal(base.parameters, before)


@pytest.mark.parametrize("method", ["diloco", "gradient"])
def test_the_result_has_the_same_bits_for_one_two_and_four_threads(method: str) -> None:
    outer = OuterOptimizer(lr=0.3, momentum=0.9, nesterov=True, weight_decay=0.01, clip_norm=0.5)
    before = torch.get_num_threads()
    digests, norms, means = set(), set(), set()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            digests.add(run(outer, method, rounds=2).digest)
            norms.add(global_norm(vector(3)))
            mean = weighted_mean([vector(1), vector(2), vector(3)], [3, 5, 11])
            means.add(hash(mean.numpy().tobytes()))
    finally:
        torch.set_num_threads(before)
    assert len(digests) == len(norms) == len(means) == 1


@pytest.mark.parametrize(
    ("method", "digest"),
    [
        ("diloco", "698f3918db7e2d89f8330e69fcbd6d10ceec2167e39396c82a028c148ee7a5c5"),
        ("gradient", "29ff410ceb35c331b575a49f8de3fad1990dd3a29920051893fabd4f7283bc8e"),
    ],
)
def test_stored_updates_lead_to_the_stored_state(method: str, digest: str) -> None:
    outer = OuterOptimizer(lr=0.3, momentum=0.9, nesterov=True, weight_decay=0.01, clip_norm=0.5)
    numbers = [((i * 7919) % 1000 - 500) / 1000 for i in range(1000)]
    state = SharedState(0, (("w", (1000,)),), torch.tensor(numbers))
    for number in range(3):
        update = torch.tensor([((i * 104729 + number * 31) % 1000 - 500) / 7000 for i in range(1000)])
        state = step(outer, method, state, update)  # type: ignore[arg-type]
    assert state.digest == digest


@pytest.mark.parametrize("method", ["diloco", "gradient"])
def test_numpy_s_separately_rounded_operations_give_the_same_bits(method: str) -> None:
    outer = OuterOptimizer(lr=0.3, momentum=0.9, nesterov=True, weight_decay=0.01, clip_norm=None)
    base, update = genesis(5000), vector(1, 5000)
    state = step(outer, method, step(outer, method, base, update.clone()), update.clone())  # type: ignore[arg-type]
    f = np.float32
    p, u = base.parameters.numpy(), update.numpy()
    if method == "diloco":
        velocity = np.zeros_like(p)
        for _ in range(2):
            velocity = velocity * f(0.9) + u
            p = p - (u + velocity * f(0.9)) * f(0.3)
    else:
        first, second = np.zeros_like(p), np.zeros_like(p)
        for t in (1, 2):
            first = first * f(0.9) + u * f(1 - 0.9)
            second = second * f(0.99) + u * u * f(1 - 0.99)
            bias = 1 - (0.99 if t == 1 else 0.99 * 0.99)
            spread = np.sqrt(second) * f(1 / math.sqrt(bias)) + f(1e-8)
            rate = f(0.3 / (1 - (0.9 if t == 1 else 0.9 * 0.9)))
            p = p * f(1 - 0.3 * 0.01) - first / spread * rate
    assert np.array_equal(state.parameters.numpy().view(np.int32), p.view(np.int32))


def test_the_norm_is_right_for_any_length() -> None:
    for count in (1, 2, 3, 1000, COUNT):
        x = vector(9, count)
        assert math.isclose(global_norm(x), x.double().norm().item(), rel_tol=1e-12)


def test_clipping_makes_the_gradient_exactly_as_long_as_allowed() -> None:
    outer = OuterOptimizer(lr=1e-3, clip_norm=0.1, betas=(0.0, 0.0))
    state = step(outer, "gradient", genesis(1000), vector(1, 1000))
    assert math.isclose(global_norm(state.outer[0]), 0.1, rel_tol=1e-6)


def test_a_step_that_diverges_aborts_the_round() -> None:
    base = SharedState(3, (("w", (2,)),), torch.tensor([3e38, 0.0]))
    with pytest.raises(RoundAborted, match="round 4: the outer step diverged"):
        step(OuterOptimizer(), "diloco", base, torch.tensor([-3e38, 0.0]))


def test_an_update_that_is_not_finite_or_of_another_length_is_refused() -> None:
    for bad in (torch.tensor([1.0, float("nan")]), torch.zeros(3), torch.zeros(2, dtype=torch.float64)):
        with pytest.raises(FormatError, match="the averaged update"):
            step(OuterOptimizer(), "diloco", genesis(2), bad)


def test_a_base_of_the_other_method_is_refused() -> None:
    base = step(OuterOptimizer(), "gradient", genesis(10), vector(1, 10))
    with pytest.raises(FormatError, match="expected a base with 1 outer vectors, got 2"):
        step(OuterOptimizer(momentum=0.5), "diloco", base, vector(1, 10))


def test_the_mean_is_weighted_by_tokens() -> None:
    parts = [vector(seed, 5000) for seed in range(4)]
    weights = [1, 2, 3, 1_000_000_007]
    expected = sum(w * p.double() for w, p in zip(weights, parts, strict=True)) / sum(weights)
    assert torch.allclose(weighted_mean(parts, weights).double(), expected, rtol=1e-6, atol=1e-7)


def test_the_mean_of_one_part_is_that_part_and_shares_no_memory() -> None:
    part = vector(1, 100)
    mean = weighted_mean([part], [17])
    assert torch.equal(mean, part) and mean.data_ptr() != part.data_ptr()


@pytest.mark.parametrize("weights", [[1], [1, 0], [1, -1], [1, True], [1, 1.5], [1, float("nan")]])
def test_weights_that_are_missing_or_not_positive_integers_are_refused(weights: list[int]) -> None:
    with pytest.raises(FormatError):
        weighted_mean([torch.ones(2), torch.ones(2)], weights)


def test_parts_that_differ_in_shape_or_dtype_are_refused() -> None:
    for bad in (torch.ones(3), torch.ones(2, dtype=torch.float64)):
        with pytest.raises(FormatError):
            weighted_mean([torch.ones(2), bad], [1, 1])
    with pytest.raises(FormatError):
        weighted_mean([], [])
