"""Recomputing activations where memory is short: less is kept, the update is the same, and the next start knows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lab.training_fixtures import Bench, write_tiny_gpt2
from peer.training.evaluate import held_out_loss
from peer.training.micro_batch import read_size
from peer.training.model import TrainableModel
from peer.training.work import LocalWork
from protocol.errors import InputError

LORA = {"kind": "lora", "rank": 4, "alpha": 8.0}


class CountingCard:
    """Holds so many bytes of activations, counted as torch keeps them for the backward pass, and no more."""

    def __init__(self, model: TrainableModel, holds: float = float("inf")) -> None:
        self.holds, self.failures, self.most, self._loss = holds, 0, 0, model.loss
        self._weights = {parameter.untyped_storage().data_ptr() for parameter in model.model.parameters()}
        model.loss = self.loss  # type: ignore[method-assign]

    def loss(self, tokens_BT: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._weights:
                kept[storage.data_ptr()] = storage.nbytes()
            if sum(kept.values()) > self.holds:
                self.failures += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = self._loss(tokens_BT, labels_BT)
        self.most = max(self.most, sum(kept.values()))
        return loss


def activations(work: LocalWork, sequences: int) -> int:
    """Bytes that one pass keeps."""
    card = CountingCard(work.model)
    batch = work.dataset.train.batch(range(sequences))
    work.model.loss(*batch).backward()
    work.model.gradient_N.zero_()
    return card.most


def train(work: LocalWork, sequences: int) -> torch.Tensor:
    while work.sequences < sequences:
        work.step()
    return work.finish().vector


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return ((a - b).norm() < 2e-3 * b.norm()).item() is True


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("method", ["gradient", "diloco"])
def test_where_not_one_sequence_fits_activations_are_recomputed_and_the_update_is_the_same(
    tmp_path: Path, glass_dir: Path, plays: Path, method: str, kind: str
) -> None:
    bench = Bench(tmp_path, glass_dir, plays, sync={"method": method}, method=LORA | {"kind": kind})
    ample, small, sizes = bench.work(), bench.work(sizes=tmp_path / "sizes.json"), tmp_path / "sizes.json"
    one = activations(bench.work(), 1)
    card = CountingCard(small.model, holds=0.9 * one)
    vector = train(small, 16)
    assert small.model.recomputing and not ample.model.recomputing and 0 < card.failures <= 3
    assert close(vector, train(ample, 16))
    again = bench.work(sizes=sizes)
    assert again.model.recomputing and again.passes.most == small.passes.most


@pytest.mark.parametrize("gpt2", [False, True])
def test_recomputing_keeps_a_fraction_and_changes_no_bit_in_fp32(
    tmp_path: Path, glass_dir: Path, plays: Path, gpt2: bool
) -> None:
    base = write_tiny_gpt2(tmp_path / "gpt2", glass_dir) if gpt2 else None  # it has dropout in its config
    bench = Bench(tmp_path, glass_dir, plays, base=base)
    plain, recomputing = bench.work(), bench.work()
    assert recomputing.model.recompute() and not recomputing.model.recompute()
    assert activations(recomputing, 4) < 0.6 * activations(plain, 4)  # of what is left most are logits
    assert torch.equal(train(recomputing, 12), train(plain, 12))
    assert held_out_loss(recomputing.model, bench.dataset) == held_out_loss(plain.model, bench.dataset)
    assert plain.model.generate("to be", 4) == recomputing.model.generate("to be", 4)


def test_recomputing_in_bf16_gives_the_same_update(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    bench = Bench(tmp_path, glass_dir, plays)
    plain, recomputing = bench.work(wanted="bf16"), bench.work(wanted="bf16")
    recomputing.model.recompute()
    assert torch.equal(train(recomputing, 8), train(plain, 8))


def test_a_machine_short_of_main_memory_recomputes_from_the_first_pass(
    tmp_path: Path, glass_dir: Path, plays: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, glass_dir, plays)
    left = type("Memory", (), {"available": 1 << 10})
    monkeypatch.setattr("psutil.virtual_memory", lambda: left)
    assert bench.work().model.recomputing  # such a system kills rather than refuses
    left.available = 1 << 30
    assert not bench.work().model.recomputing


def test_a_run_of_single_sequences_remembers_it_too(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    bench, sizes = Bench(tmp_path, glass_dir, plays, inner={"micro_batch": 1}), tmp_path / "sizes.json"
    work = bench.work(sizes=sizes)  # nothing is searched, so no size is found
    CountingCard(work.model, holds=0.9 * activations(bench.work(), 1))
    work.step()
    assert work.model.recomputing and bench.work(sizes=sizes).model.recomputing


def test_a_card_that_is_too_small_all_the_same_says_so(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    work = Bench(tmp_path, glass_dir, plays).work()
    CountingCard(work.model, holds=0)
    with pytest.raises(InputError, match="ran out of memory over one sequence"):
        train(work, 4)
    assert work.model.recomputing


def test_a_model_that_cannot_recompute_says_that_memory_is_short(
    tmp_path: Path, glass_dir: Path, plays: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Bench(tmp_path, glass_dir, plays).work(sizes=tmp_path / "sizes.json")
    CountingCard(work.model, holds=0)
    monkeypatch.setattr("peer.training.recompute.GradientCheckpointingLayer", torch.nn.LSTM)
    with pytest.raises(InputError, match="ran out of memory over one sequence"):
        train(work, 4)
    assert not work.model.recomputing and read_size(tmp_path / "sizes.json", "any") is None
