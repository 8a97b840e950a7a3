"""What a lossy codec leaves out comes with the author's next update: nothing is lost, and nothing is counted twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from swarm_kit import World

from peer.swarm.contribution import Contribution, leftover
from peer.training.codec import codec
from peer.training.work import Update

VALUES = 70_000  # more than a chunk, and a last block that is short


def make(world: World, round: int, feedback: torch.Tensor | None, **late: object) -> Contribution:
    update = Update(world.update(0, round), 150, 0, 10, 6)
    card, me = world.card, world.identity(0)
    return Contribution.make(update, world.spec, card.run, round, "c" * 64, me, late.get("late"), 0.0, feedback)  # type: ignore[arg-type]


@pytest.mark.parametrize("wire", ["int4", "topk"])
def test_what_was_sent_and_what_is_left_is_all_that_was_worked(tmp_path: Path, wire: str) -> None:
    world = World(tmp_path, values=VALUES, wire=wire)
    worked, sent = torch.zeros(VALUES, dtype=torch.float64), torch.zeros(VALUES, dtype=torch.float64)
    residual = None
    for round in range(1, 6):
        made = make(world, round, residual)
        worked += world.update(0, round).double()
        sent += made.encoded.decode().double()
        residual = made.residual
        assert residual is not None
        assert torch.allclose(sent + residual.double(), worked, atol=1e-5)


def test_a_residual_stands_until_the_next_is_committed(tmp_path: Path) -> None:
    world = World(tmp_path, values=VALUES, wire="int4")
    first = make(world, 1, None)
    assert first.residual is not None
    before = first.residual.clone()
    missed = make(world, 2, first.residual)
    assert torch.equal(first.residual, before), "round 2 may be lost: its residual is another tensor"
    assert missed.fresh.encoded.chunks == make(world, 2, None).encoded.chunks, "late work takes no residual with it"
    again = make(world, 3, first.residual, late=missed.fresh)
    assert again.residual is not None
    mixed = (world.update(0, 3) * 150 + missed.fresh.encoded.decode() * 75) / 225
    assert torch.allclose(again.encoded.decode() + again.residual, mixed + before, atol=1e-5)


@pytest.mark.parametrize("wire", ["fp32", "fp16", "int8"])
def test_codecs_that_lose_next_to_nothing_keep_no_copy_for_it(tmp_path: Path, wire: str) -> None:
    assert not codec(wire).feedback
    assert make(World(tmp_path, values=1000, wire=wire), 1, None).residual is None


def test_the_residual_is_made_in_the_memory_of_the_update(tmp_path: Path) -> None:
    world = World(tmp_path, values=VALUES, wire="topk")
    update = Update(world.update(0), 150, 0, 10, 6)
    at = update.vector.data_ptr()
    made = Contribution.make(update, world.spec, world.card.run, 1, "c" * 64, world.identity(0), None, 0.0)
    assert made.residual is not None and made.residual.data_ptr() == at


def test_late_sparse_work_is_added_where_it_has_values(tmp_path: Path) -> None:
    world = World(tmp_path, values=VALUES, wire="topk")
    late = leftover(Update(world.update(1), 100, 0, 10, 8), 1, "b" * 64, "topk")
    vector = world.update(0)
    wanted = (vector * 150 + late.encoded.decode() * 50) / 200
    late.add_to(vector, 150)
    assert torch.allclose(vector, wanted, atol=1e-6) and 0 < late.encoded.decode().count_nonzero() < VALUES / 30
