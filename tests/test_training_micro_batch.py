"""The micro-batch: how the search goes, what is remembered, and that running out of memory changes no update."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lab.training_fixtures import Bench
from peer.training.micro_batch import MAX_KEPT, PASS_MOST_S, PASSES, MicroBatch, read_size, remember_size
from peer.training.work import LocalWork
from protocol.errors import InputError


def search(most: int, pass_s: Callable[[int], float], fits: int = 1 << 20, **options: Any) -> list[int]:
    """The sizes that a search goes through until it ends, on a card that takes `pass_s(size)` and holds `fits`."""
    size, tried = MicroBatch(most, **options), []
    while size.searching:
        tried.append(size.size)
        if size.size > fits:
            assert size.out_of_memory(size.size)
        else:
            for _ in range(PASSES):
                size.passed(size.size, pass_s(size.size))
    return [*tried, size.size]


def test_the_search_doubles_while_the_card_gets_faster() -> None:
    assert search(64, lambda size: 1.0) == [1, 2, 4, 8, 16, 32, 64, 64]  # a wide card: any size takes a second
    assert search(6, lambda size: 1.0) == [1, 2, 4, 6, 6]  # never beyond what the run allows
    assert search(64, lambda size: 0.1 + 0.1 * max(size - 4, 0)) == [1, 2, 4, 8, 4]  # no gain beyond four
    assert search(64, lambda size: 0.1 * size) == [1, 2, 1]


def test_the_search_backs_off_when_memory_runs_out() -> None:
    assert search(64, lambda size: 1.0, fits=11) == [1, 2, 4, 8, 16, 8]


def test_the_search_ends_before_a_pass_gets_long_or_main_memory_short() -> None:
    assert search(64, lambda size: 0.6 * PASS_MOST_S) == [1, 1]  # two might take twice as long
    assert search(64, lambda size: 0.4 * PASS_MOST_S * size**0.9) == [1, 2, 2]
    assert search(64, lambda size: 1.0, has_room=lambda size: size < 8) == [1, 2, 4, 4]


def test_the_slow_first_pass_of_a_size_does_not_count() -> None:
    size = MicroBatch(8)
    for pass_s in (9.0, 1.0, 1.0, 9.0, 1.0, 1.0):
        size.passed(size.size, pass_s)
    assert size.size == 4
    size.passed(3, 0.001)  # the rest of a batch says nothing about four
    assert size.size == 4 and size.searching


def test_a_size_that_fitted_may_not_fit_later() -> None:
    found: list[int] = []
    size = MicroBatch(16, 16, on_found=found.append)
    assert size.out_of_memory(16) and size.size == 8
    assert size.out_of_memory(3) and size.size == 1  # the rest of a batch did not fit: even less than eight does
    assert not size.out_of_memory(1) and found == [8, 1]


@given(st.integers(1, 100), st.lists(st.tuples(st.booleans(), st.floats(1e-3, 3.0)), max_size=30))
def test_whatever_happens_a_size_that_did_not_fit_is_not_tried_again(
    most: int, passes: list[tuple[bool, float]]
) -> None:
    size, too_large = MicroBatch(most), most + 1
    for fits, pass_s in passes:
        assert 1 <= size.size < too_large
        tried = size.size
        if fits:
            for _ in range(PASSES):
                size.passed(tried, pass_s)
        else:
            too_large = tried
            if not size.out_of_memory(tried):
                assert too_large == 1  # nothing is left to try: the training ends with a reason
                return


def test_a_size_is_remembered_for_its_card_and_run_alone(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "sizes.json"
    assert read_size(path, "card a") is None
    remember_size(path, "card a", 8)
    remember_size(path, "card b", 2)
    remember_size(path, "card a", 4)
    assert (read_size(path, "card a"), read_size(path, "card b"), read_size(path, "card c")) == (4, 2, None)
    for number in range(2 * MAX_KEPT):
        remember_size(path, f"card {number}", 1)
    assert read_size(path, "card a") is None and len(path.read_text().split(",")) == MAX_KEPT


@pytest.mark.parametrize("data", [b"", b"[1]", b'{"card": "8"}', b'{"card": true}', b'{"card": 0}', b"\xff" * 100_000])
def test_a_file_of_sizes_that_makes_no_sense_is_no_obstacle(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "sizes.json"
    path.write_bytes(data)
    assert read_size(path, "card") is None
    remember_size(path, "card", 4)
    assert read_size(path, "card") == 4


def test_a_full_disk_does_not_stop_the_search(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("not a folder")
    remember_size(tmp_path / "file" / "sizes.json", "card", 4)
    assert "searches the micro-batch again" in caplog.text


class SmallCard:
    """Runs out of memory over more sequences than it holds: at once, or in mid-backward with half a gradient added."""

    def __init__(self, work: LocalWork, holds: int, where: str) -> None:
        self.holds, self.failures, self._where, self._loss = holds, 0, where, work.model.loss
        work.model.loss = self.loss  # type: ignore[method-assign]
        layers = work.model.model.model.layers
        layers[0].register_full_backward_hook(self._on_backward)  # the second layer's gradient stands by then
        self._size = 0

    def loss(self, tokens_BT: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
        self._size = len(tokens_BT)
        if self._where == "forward":
            self._check()
        return self._loss(tokens_BT, labels_BT)

    def _on_backward(self, *_: Any) -> None:
        if self._where == "backward":
            self._check()

    def _check(self) -> None:
        if self._size > self.holds:
            self.failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return ((a - b).norm() < 2e-3 * b.norm()).item() is True


def train(work: LocalWork, sequences: int) -> None:
    while work.sequences < sequences:
        work.step()


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("method", ["gradient", "diloco"])
def test_running_out_of_memory_changes_neither_the_update_nor_the_count(
    tmp_path: Path, glass_dir: Path, plays: Path, method: str, where: str
) -> None:
    inner = {"lr": 1e-3, "micro_batch": 8, "batch": 8}
    bench = Bench(tmp_path, glass_dir, plays, sync={"method": method}, inner=inner)
    ample, small = bench.work(), bench.work()
    train(ample, 16)
    small.step()
    card = SmallCard(small, holds=3, where=where)  # another program has taken the rest of the memory
    train(small, 16)
    expected, update = ample.finish(), small.finish()
    assert card.failures == 2 and small.passes.most == 2
    assert (update.tokens, update.batches, update.flops) == (expected.tokens, expected.batches, expected.flops)
    assert close(update.vector, expected.vector)


@pytest.mark.parametrize("holds", [1, 3, 5])
def test_a_search_from_one_sequence_gives_the_same_update_as_full_passes(
    tmp_path: Path, glass_dir: Path, plays: Path, holds: int
) -> None:
    inner = {"lr": 1e-3, "micro_batch": 6, "batch": 12}
    bench = Bench(tmp_path, glass_dir, plays, inner=inner)
    full, searching = bench.work(), bench.work(sizes=tmp_path / "sizes.json")
    SmallCard(searching, holds, "backward")
    train(full, 60)
    train(searching, 60)
    expected, update = full.finish(), searching.finish()
    assert searching.passes.most <= holds and update.batches == expected.batches == 60
    assert (update.tokens, update.flops) == (expected.tokens, expected.flops)
    assert close(update.vector, expected.vector)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_an_optimizer_step_takes_exactly_a_batch_whatever_fits(
    tmp_path: Path, glass_dir: Path, plays: Path, size: int
) -> None:
    bench = Bench(tmp_path, glass_dir, plays, inner={"lr": 1e-3, "micro_batch": 4, "batch": 4}, audit={"share": 0.1})
    work = bench.work()
    SmallCard(work, size, "forward")
    train(work, 12)
    update = work.finish()
    assert update.own is not None and (update.batches, update.own.numbers["steps"]) == (12, "3")


def test_the_next_start_begins_at_the_size_that_was_found(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    bench = Bench(tmp_path, glass_dir, plays, inner={"micro_batch": 8, "batch": 8})
    path = tmp_path / "sizes.json"
    remember_size(path, "another card", 5)
    work = bench.work(sizes=path)
    assert work.passes.most == 1
    SmallCard(work, 0, "forward").holds = 1
    train(work, 16)
    (key,) = [key for key in path.read_text().split('"') if bench.spec.digest in key]
    assert "cpu" in key and "fp32" in key and read_size(path, key) == 1
    remember_size(path, key, 4)
    assert bench.work(sizes=path).passes.most == 4


def test_a_card_too_small_for_one_sequence_says_so(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    work = Bench(tmp_path, glass_dir, plays).work()
    SmallCard(work, 0, "forward")
    with pytest.raises(InputError, match="ran out of memory over one sequence of 32 tokens") as caught:
        work.step()
    assert "--device" in caught.value.hint


def test_other_errors_of_a_pass_are_not_taken_for_a_lack_of_memory(
    tmp_path: Path, glass_dir: Path, plays: Path
) -> None:
    work = Bench(tmp_path, glass_dir, plays).work()

    def broken(*_: Any) -> torch.Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    work.model.loss = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="mat1"):
        work.step()
