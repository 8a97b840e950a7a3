"""The precision of the passes: what is chosen for which card, and that the update hardly knows the difference."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.training_fixtures import Bench
from peer.training import passes as passes_of_a_peer
from peer.training.precision import Card, LossScale, choose
from peer.training.work import LocalWork
from protocol.errors import InputError


def never(precision: str) -> float:
    raise AssertionError(f"measured {precision} though a rule knows")


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((7, 0), "fp16"), ((6, 1), "fp32"), ((5, 2), "fp32")],
)
def test_an_nvidia_card_trains_in_what_it_has_fast_units_for(capability: tuple[int, int], expected: str) -> None:
    assert choose("auto", Card("cuda", capability), never) == expected


@pytest.mark.parametrize("kind", ["cpu", "mps", "cuda"])
def test_other_devices_take_bf16_only_when_it_measures_faster(kind: str) -> None:
    for plain_s, bf16_s, expected in (
        (1.0, 0.5, "bf16"),
        (1.0, 0.95, "fp32"),
        (1.0, 7.0, "fp32"),
        (1.0, math.inf, "fp32"),
        (math.inf, math.inf, "fp32"),
    ):
        assert choose("auto", Card(kind), {"fp32": plain_s, "bf16": bf16_s}.__getitem__) == expected


def test_the_owners_word_stands_and_an_unknown_one_is_refused() -> None:
    for wanted in ("bf16", "fp16", "fp32"):
        assert choose(wanted, Card("cuda", (5, 2)), never) == wanted
    with pytest.raises(InputError, match="expected one of auto, bf16, fp16, fp32, got 'int8'"):
        choose("int8", Card("cpu"), never)


def test_the_scale_halves_on_overflow_and_grows_back_after_many_good_passes() -> None:
    scale = LossScale("fp16")
    first = scale.value
    assert scale.overflowed(loss=3.0) and scale.value == first / 2
    for _ in range(1999):
        scale.passed()
    scale.grow()
    assert scale.value == first / 2
    scale.passed()
    assert scale.value == first / 2  # not while a gradient is being added up
    scale.grow()
    assert scale.value == first


def test_an_overflow_that_no_scale_can_help_ends_the_search() -> None:
    assert not LossScale("fp16").overflowed(loss=math.inf)  # of the forward pass
    scale = LossScale("fp16")
    tried = 1
    while scale.overflowed(loss=3.0):
        tried += 1
    assert 10 < tried < 40


def train(work: LocalWork, sequences: int) -> torch.Tensor:
    while work.sequences < sequences:
        work.step()
    return work.finish().vector


def distance(update: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    """(cosine, relative L2): what an audit of replayed work goes by."""
    cosine = torch.nn.functional.cosine_similarity(update.double(), reference.double(), dim=0)
    return cosine.item(), ((update - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize("method", ["gradient", "diloco"])
@pytest.mark.parametrize("wanted", ["bf16", "fp16"])
def test_an_update_at_half_precision_passes_for_the_same_work(
    tmp_path: Path, glass_dir: Path, plays: Path, wanted: str, method: str
) -> None:
    bench = Bench(tmp_path, glass_dir, plays, base=glass_dir, sync={"method": method})
    work = bench.work(wanted=wanted)
    before = work.model.read()
    update, reference = train(work, 40), train(bench.work(), 40)
    cosine, relative = distance(update, reference)
    assert 0.99 <= cosine < 1.0 and 0.0 < relative <= 0.15
    assert work.precision == wanted
    assert {work.model.flat_N.dtype, work.model.gradient_N.dtype, before.dtype, update.dtype} == {torch.float32}


class Overflowing:
    """A model whose gradients leave fp16's range at every scale above `bearable`, counting its passes."""

    def __init__(self, work: LocalWork, bearable: float) -> None:
        self.passes, self._work, self._bearable = 0, work, bearable
        work.model.model.model.layers[0].mlp.register_full_backward_hook(self._on_backward)
        self._loss = work.model.loss
        work.model.loss = self.loss  # type: ignore[method-assign]

    def loss(self, tokens_BT: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return self._loss(tokens_BT, labels_BT)

    def _on_backward(self, module: Any, grad_input: Any, grad_output: Any) -> Any:
        if self._work._passes.scale > self._bearable:
            return tuple(torch.full_like(g, math.inf) for g in grad_input)
        return None


@pytest.mark.parametrize("method", ["gradient", "diloco"])
def test_an_overflow_costs_a_pass_and_no_sequence(tmp_path: Path, glass_dir: Path, plays: Path, method: str) -> None:
    bench = Bench(tmp_path, glass_dir, plays, base=glass_dir, sync={"method": method})
    work, reference = bench.work(wanted="fp16"), bench.work()
    model = Overflowing(work, bearable=2.0**10)
    cosine, relative = distance(train(work, 16), train(reference, 16))
    assert model.passes == 4 + 2 and work.precision == "fp16"
    assert work.tokens == reference.tokens and work.sequences == 16
    assert cosine >= 0.99 and relative <= 0.15


def test_a_model_that_fp16_cannot_hold_goes_on_in_fp32(
    tmp_path: Path, glass_dir: Path, plays: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path, glass_dir, plays, base=glass_dir)
    work = bench.work(wanted="fp16")
    loss = work.model.loss
    work.model.loss = lambda *batch: loss(*batch) * (math.inf if work.precision == "fp16" else 1.0)  # type: ignore[method-assign]
    update = train(work, 16)
    assert work.precision == "fp32" and "going on in fp32" in caplog.text
    assert torch.equal(update, train(bench.work(), 16))


def test_a_measured_choice_leaves_no_trace_in_the_work(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    bench = Bench(tmp_path, glass_dir, plays)
    work = bench.work(wanted="auto")
    assert work.precision in ("bf16", "fp32") and not work.model.gradient_N.any()
    plain = bench.work(wanted=work.precision)
    assert torch.equal(train(work, 16), train(plain, 16))


@pytest.mark.parametrize(("pass_s", "passes"), [(0.01, 3), (5.0, 1)])
def test_a_long_pass_is_tried_once_in_each_precision(
    tmp_path: Path, glass_dir: Path, plays: Path, monkeypatch: pytest.MonkeyPatch, pass_s: float, passes: int
) -> None:
    """A member would wait for six of them at each start."""
    made: list[float] = []

    class Clock:
        def __init__(self, *_: object) -> None:
            made.append(pass_s)

        def seconds(self) -> float:
            return pass_s

    bench = Bench(tmp_path, glass_dir, plays)
    monkeypatch.setattr(passes_of_a_peer, "Stopwatch", Clock)
    bench.work(wanted="auto")
    assert len(made) == 2 * passes
