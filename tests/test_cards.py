"""Several devices in one peer, each a CPU here: the update of one, whatever they do, and whichever fails."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.training_fixtures import Bench
from peer.training.cards import AllCards, shares
from peer.training.codecs.codec import EncodedUpdate
from peer.training.interruption import Interrupted
from peer.training.model import TrainableModel
from peer.training.outer import outer_step
from peer.training.passes import Passed
from peer.training.update import Update
from peer.training.work import LocalWork

INNER = {"lr": 1e-3, "micro_batch": 2, "batch": 8}


def work_on(bench: Bench, count: int, **options: Any) -> LocalWork:
    work = LocalWork([bench.model() for _ in range(count)], bench.dataset, bench.spec, "peer", **options)
    work.begin(bench.genesis)
    return work


def train(work: LocalWork, sequences: int) -> Update:
    while work.sequences < sequences:
        work.step()
    return work.finish()


def same(update: Update, expected: Update) -> bool:
    counted = (update.tokens, update.batches, update.flops) == (expected.tokens, expected.batches, expected.flops)
    return counted and bool((update.vector - expected.vector).norm() < 2e-3 * expected.vector.norm())


def before_loss(model: TrainableModel, do: Callable[[int], None]) -> None:
    """Have something done before each pass, which gets the number of passes before."""
    loss, passes = model.loss, iter(range(1 << 30))

    def instead(*batch: torch.Tensor) -> torch.Tensor:
        do(next(passes))
        return loss(*batch)

    model.loss = instead  # type: ignore[method-assign]


def in_backward(model: TrainableModel, fails: Callable[[], bool], error: Exception) -> None:
    """Fail when half a pass stands in the gradient."""

    def hook(*_: Any) -> None:
        if fails():
            raise error

    model.model.model.layers[0].register_full_backward_hook(hook)


@pytest.mark.parametrize("method", ["gradient", "diloco"])
def test_three_cards_give_the_update_of_one(tmp_path: Path, glass_dir: Path, plays: Path, method: str) -> None:
    bench = Bench(tmp_path, glass_dir, plays, sync={"method": method}, inner=INNER | {"micro_batch": 1})
    three = train(work := work_on(bench, 3), 24)
    assert same(three, train(bench.work(), three.batches)) and isinstance(work.passes, AllCards)


def test_the_next_round_begins_with_the_agreed_parameters_on_every_card(
    tmp_path: Path, glass_dir: Path, plays: Path
) -> None:
    """Two members, one of them with two cards: they come to one state, and go on from it."""
    bench = Bench(tmp_path, glass_dir, plays, inner=INNER, sync={"wire": "int8"})
    members, states = [work_on(bench, 2), work_on(bench, 1)], [bench.genesis] * 2
    alone = bench.work()
    for number in range(1, 4):
        updates = [train(work, 8) for work in members]
        assert same(train(alone, 8), updates[1])
        sent = [EncodedUpdate.encode(update.vector, "int8").decode() for update in updates]
        states = [outer_step(bench.spec, state, (sent[0] + sent[1]) / 2) for state in states]
        assert len({state.digest for state in states}) == 1 and states[0].round == number
        for work in [*members, alone]:
            work.begin(states[0])
    assert same(train(members[0], 8), train(members[1], 8))


@pytest.mark.parametrize(
    ("method", "which", "where"),
    [("gradient", 0, "backward"), ("gradient", 1, "forward"), ("diloco", 0, "forward"), ("diloco", 1, "backward")],
)
def test_a_card_that_fails_is_taken_out_and_no_draw_is_lost(
    tmp_path: Path, glass_dir: Path, plays: Path, method: str, which: int, where: str
) -> None:
    bench = Bench(tmp_path, glass_dir, plays, sync={"method": method}, inner=INNER | {"micro_batch": 1})
    models = [bench.model() for _ in range(3)]
    work = LocalWork(models, bench.dataset, bench.spec, "peer")
    work.begin(bench.genesis)
    while work.sequences < 8:
        work.step()
    error, out = RuntimeError("CUDA error: device-side assert\nand a page more"), list[tuple[str, str]]()

    def fail(_: int) -> None:
        raise error

    if where == "forward":
        before_loss(models[which], fail)
    else:
        in_backward(models[which], lambda: True, error)
    assert isinstance(work.passes, AllCards)
    work.passes.tell_when_out(lambda name, why: out.append((name, why)))
    update = train(work, 24)
    assert same(update, train(bench.work(), update.batches))
    assert out == [("cpu", "CUDA error: device-side assert")]
    assert work.model is models[1 if which == 0 else 0]


def test_memory_that_runs_out_makes_one_cards_passes_smaller_and_loses_nothing(
    tmp_path: Path, glass_dir: Path, plays: Path
) -> None:
    bench = Bench(tmp_path, glass_dir, plays, inner=INNER)
    expected, models = train(bench.work(), 24), [bench.model() for _ in range(2)]
    work = LocalWork(models, bench.dataset, bench.spec, "peer")
    work.begin(bench.genesis)
    sizes, loss = list[int](), models[1].loss
    models[1].loss = lambda *batch: sizes.append(len(batch[0])) or loss(*batch)  # type: ignore[method-assign,func-returns-value]
    in_backward(models[1], lambda: sizes[-1] > 1, torch.OutOfMemoryError("CUDA out of memory"))
    assert same(train(work, 24), expected)
    assert max(sizes) == 2 and set(sizes[sizes.index(2) + 1 :]) == {1}


def test_the_last_card_that_fails_ends_the_work_with_its_error(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    bench = Bench(tmp_path, glass_dir, plays, inner=INNER)
    models = [bench.model() for _ in range(2)]
    work = LocalWork(models, bench.dataset, bench.spec, "peer")
    work.begin(bench.genesis)
    for model in models:
        in_backward(model, lambda: True, RuntimeError("CUDA error: unspecified launch failure"))
    with pytest.raises(RuntimeError, match="unspecified launch failure"):
        train(work, 8)


def test_a_slow_card_takes_fewer_sequences(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    """The slow one's first pass ends when the other has done all the rest."""
    bench = Bench(tmp_path, glass_dir, plays, inner=INNER | {"micro_batch": 1})
    fast, slow = bench.model(), bench.model()
    cards = AllCards([fast, slow], bench.dataset.train, bench.spec)
    passes, done = {"fast": 0, "slow": 0}, threading.Event()

    def on_fast(number: int) -> None:
        passes["fast"] = number + 1
        if number == 6:
            done.set()

    def on_slow(number: int) -> None:
        passes["slow"] = number + 1
        assert done.wait(60)

    before_loss(fast, on_fast)
    before_loss(slow, on_slow)
    assert isinstance(cards.attempt(range(8)), Passed)
    assert passes == {"fast": 7, "slow": 1}


def test_shares_go_by_speed() -> None:
    assert shares(10, [4.0, 1.0]) == [8, 2] and shares(9, [None, 2.0, None]) == [3, 3, 3]
    assert sum(shares(7, [3.0, 2.0, 1.7])) == 7 and shares(1, [1.0, 1.0]) in ([1, 0], [0, 1])


def test_a_pause_ends_the_passes_of_all_cards_and_their_draws_are_drawn_again(
    tmp_path: Path, glass_dir: Path, plays: Path
) -> None:
    bench = Bench(tmp_path, glass_dir, plays, inner=INNER)
    expected, work, is_paused = train(bench.work(), 24), work_on(bench, 2), threading.Event()
    work.passes.interrupt_when(is_paused.is_set)
    while work.sequences < 8:
        work.step()
    is_paused.set()
    with pytest.raises(Interrupted):
        work.step()
    assert work.sequences == 8
    is_paused.clear()
    assert same(train(work, 24), expected)


def test_each_card_searches_its_micro_batch_and_remembers_it(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    bench = Bench(tmp_path, glass_dir, plays, inner=INNER | {"micro_batch": 2, "batch": 12})
    path = tmp_path / "sizes.json"
    threads = torch.get_num_threads()
    update = train(work_on(bench, 2, sizes=path), 48)
    assert update.batches == 48 and "threads" in path.read_text() and torch.get_num_threads() == threads
