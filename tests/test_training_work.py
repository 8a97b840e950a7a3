"""A peer's local work: both methods against loops written out by hand, and what stays when a round is tried again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lab.training_fixtures import Bench
from peer.training.data import Dataset, draw
from peer.training.evaluate import held_out_loss
from peer.training.loading import load_causal_lm
from peer.training.state import SharedState
from protocol.errors import FormatError, RoundAborted


def reference_batches(bench: Bench, steps: int, size: int, round: int = 1) -> list[torch.Tensor]:
    rows = draw(bench.spec.run.seed, round, "peer", 0, steps * size, len(bench.dataset.train))
    return [bench.dataset.train.tokens_ST[rows[i * size : (i + 1) * size]].long() for i in range(steps)]


def flat(model: torch.nn.Module, names: list[str], gradients: bool = False) -> torch.Tensor:
    parameters = dict(model.named_parameters())
    return torch.cat([(parameters[n].grad if gradients else parameters[n].data).reshape(-1) for n in names])  # type: ignore[union-attr]


def test_gradient_work_is_the_mean_gradient_of_all_its_tokens(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    bench = Bench(tmp_path, glass_dir, plays, sync={"method": "gradient"})
    work = bench.work()
    results = [work.step() for _ in range(3)]
    update = work.finish()
    reference = load_causal_lm(bench.base_dir).double()
    tokens_BT = torch.cat(reference_batches(bench, 3, 4))
    reference(input_ids=tokens_BT, labels=tokens_BT).loss.backward()
    names = [name for name, _ in bench.genesis.names_shapes]
    assert torch.allclose(update.vector.double(), flat(reference, names, gradients=True), rtol=1e-4, atol=1e-7)
    assert update.tokens == work.tokens == 12 * 31 == sum(result.tokens for result in results)
    assert (update.first_batch, update.batches) == (0, 12)
    assert update.flops == bench.model().flops(12 * 32)
    assert torch.equal(work.model.read(), bench.genesis.parameters)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_diloco_work_is_local_adamw(tmp_path: Path, glass_dir: Path, plays: Path, accumulate: int) -> None:
    inner = {"lr": 1e-3, "micro_batch": 4, "batch": 4 * accumulate, "weight_decay": 0.1, "clip_norm": 0.5}
    bench = Bench(tmp_path, glass_dir, plays, inner=inner)
    work = bench.work()
    for _ in range(3 * accumulate):
        work.step()
    update = work.finish()
    reference = load_causal_lm(bench.base_dir).double()
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    for tokens_BT in reference_batches(bench, 3, 4 * accumulate):
        optimizer.zero_grad()
        reference(input_ids=tokens_BT, labels=tokens_BT).loss.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        optimizer.step()
    names = [name for name, _ in bench.genesis.names_shapes]
    expected = bench.genesis.parameters.double() - flat(reference, names)
    assert (update.vector.double() - expected).norm() < 2e-3 * expected.norm()
    assert torch.equal(update.vector, bench.genesis.parameters - work.model.read())


@pytest.mark.parametrize("method", ["gradient", "diloco"])
def test_the_same_base_and_draws_give_the_same_update(
    tmp_path: Path, glass_dir: Path, plays: Path, method: str
) -> None:
    bench = Bench(tmp_path, glass_dir, plays, sync={"method": method})
    updates = []
    for peer_id in ("peer", "peer", "other"):
        work = bench.work(peer_id)
        for _ in range(3):
            work.step()
        updates.append(work.finish().vector)
    assert torch.equal(updates[0], updates[1]) and not torch.equal(updates[0], updates[2])


@pytest.mark.parametrize("method", ["gradient", "diloco"])
def test_work_goes_on_after_a_round_was_aborted(tmp_path: Path, glass_dir: Path, plays: Path, method: str) -> None:
    bench = Bench(tmp_path, glass_dir, plays, sync={"method": method})
    work, straight = bench.work(), bench.work()
    work.step()
    first = work.finish()
    assert torch.equal(work.finish().vector, first.vector)
    for _ in range(2):
        work.step()
    for _ in range(3):
        straight.step()
    again = work.finish()
    assert torch.equal(again.vector, straight.finish().vector)
    assert (again.tokens, again.batches) == (3 * first.tokens, 3 * first.batches)


def test_a_partial_accumulation_is_stepped_and_not_lost(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    bench = Bench(tmp_path, glass_dir, plays, inner={"micro_batch": 4, "batch": 16})
    small = Bench(tmp_path / "small", glass_dir, plays, inner={"micro_batch": 4, "batch": 4})
    work, other = bench.work(), small.work()
    work.step()
    other.step()
    assert torch.equal(work.model.read(), bench.genesis.parameters)  # nothing is stepped yet
    assert torch.allclose(work.finish().vector, other.finish().vector)


def test_a_new_base_starts_over_and_draws_anew(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    bench = Bench(tmp_path, glass_dir, plays)
    work = bench.work()
    work.step()
    first = work.finish()
    base = SharedState(1, bench.genesis.names_shapes, bench.genesis.parameters - first.vector)
    work.begin(base)
    assert work.round == 2 and work.tokens == 0 and torch.equal(work.model.read(), base.parameters)
    loss = work.step().loss
    tokens_BT = reference_batches(bench, 1, 4, round=2)[0]
    model = bench.model()
    model.write(base.parameters)
    assert torch.allclose(loss, model.loss(tokens_BT, tokens_BT).detach() / (4 * 31))


def test_adamw_remembers_across_rounds(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    bench = Bench(tmp_path, glass_dir, plays)
    fresh, used = bench.work(), bench.work()
    used.step()
    used.begin(bench.genesis)
    fresh.step()
    used.step()
    assert not torch.equal(fresh.finish().vector, used.finish().vector)


def test_work_that_diverges_aborts_the_round_and_the_next_one_starts_afresh(
    tmp_path: Path, glass_dir: Path, plays: Path
) -> None:
    bench = Bench(tmp_path, glass_dir, plays)
    work = bench.work()
    work.model.flat_N[0] = float("nan")
    work.model.flat_N[-1] = float("nan")
    work.step()
    with pytest.raises(RoundAborted, match="round 1: the local work diverged"):
        work.finish()
    work.begin(bench.genesis)
    work.step()
    fresh = bench.work()
    fresh.step()
    assert torch.equal(work.finish().vector, fresh.finish().vector)


def test_a_base_of_another_model_is_refused(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    bench = Bench(tmp_path, glass_dir, plays)
    with pytest.raises(FormatError, match="other tensors"):
        bench.work().begin(SharedState(0, (("w", (1,)),), torch.zeros(1)))


def test_only_answers_count_as_tokens_and_masked_ones_cost_flops(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    bench = Bench(tmp_path, glass_dir, plays)
    loss_ST = bench.dataset.train.loss_ST.clone()
    loss_ST[:, :20] = False
    bench.dataset = Dataset(
        type(bench.dataset.train)(bench.dataset.train.tokens_ST, loss_ST, bench.dataset.train.lengths),
        bench.dataset.held_out,
    )
    work = bench.work()
    assert work.step().tokens == 4 * 12
    assert work.finish().flops == work.model.flops(4 * 32)


def test_evaluation_is_the_mean_loss_over_all_held_out_tokens(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    bench = Bench(tmp_path, glass_dir, plays)
    split, model = bench.dataset.held_out, bench.model()
    losses = []
    for row in range(len(split)):
        tokens_BT, labels_BT = split.batch([row])
        losses.append(model.loss(tokens_BT, labels_BT).item())
    evaluation = held_out_loss(model, bench.dataset, batch_sequences=7)
    assert evaluation.loss == pytest.approx(sum(losses) / sum(split.loss_tokens), rel=1e-5)
    assert (evaluation.sequences, evaluation.tokens) == (len(split), sum(split.loss_tokens))
    few = held_out_loss(model, bench.dataset, sequences=2)
    assert few.sequences == 2 and few.loss == pytest.approx(sum(losses[:2]) / sum(split.loss_tokens[:2]), rel=1e-5)


def test_evaluation_on_the_cpu_takes_few_tokens_at_once_and_gives_the_same_loss(
    tmp_path: Path, glass_dir: Path, plays: Path
) -> None:
    bench = Bench(tmp_path, glass_dir, plays, data={"sequence_length": 128, "held_out_sequences": 24})
    model = bench.model()
    loss, passes = model.loss, []

    def counted(tokens_BT: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        passes.append(tokens_BT.numel())
        return loss(tokens_BT, *more)

    model.loss = counted  # type: ignore[method-assign]
    whole = held_out_loss(model, bench.dataset, batch_sequences=24)
    assert whole.sequences == 24 and len(passes) == 1
    by_itself = held_out_loss(model, bench.dataset)
    assert max(passes[1:]) == 2 * 128
    one = held_out_loss(model, bench.dataset, batch_sequences=1)
    assert (by_itself.sequences, by_itself.tokens) == (whole.sequences, whole.tokens)
    assert [by_itself.loss, one.loss] == pytest.approx([whole.loss] * 2, rel=1e-6)
