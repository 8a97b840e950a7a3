"""What a lossy codec leaves out of a gradient comes with the author's next update: nothing is lost or counted twice.

With local steps it stays in the trainer's model: `test_training_overlap`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from peer.sync.contribution import Contribution, Leftover
from peer.training.codecs.codec import EncodedUpdate, codec
from peer.training.update import Update
from tests.swarm_kit import World, agreed, run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # hivemind's way to find p2pd
VALUES = 70_000  # more than a chunk, and a last block that is short


def make(world: World, round: int, feedback: torch.Tensor | None, *late: Leftover) -> Contribution:
    update = Update(world.update(0, round), 150, 0, 10, 6)
    return Contribution.make(
        update, world.spec, world.card.run, round, "c" * 64, world.identity(0), late, 0.0, feedback
    )


@pytest.mark.parametrize("wire", ["int4", "int2", "topk"])
def test_what_was_sent_left_and_let_go_is_all_that_was_worked(tmp_path: Path, wire: str) -> None:
    world = World(tmp_path, values=VALUES, wire=wire, method="gradient")
    worked, sent, let_go = (torch.zeros(VALUES, dtype=torch.float64) for _ in range(3))
    residual = None
    for round in range(1, 6):
        made = make(world, round, residual)
        worked += world.update(0, round).double()
        sent += made.encoded.decode().double()
        if residual is not None:
            let_go += (1 - codec(wire).feedback) * residual.double()
        residual = made.residual
        assert residual is not None
        assert torch.allclose(sent + residual.double() + let_go, worked, atol=1e-5)


@pytest.mark.parametrize("wire", ["int4", "int2", "topk"])
def test_work_that_comes_late_takes_its_residual_with_it(tmp_path: Path, wire: str) -> None:
    world = World(tmp_path, values=VALUES, wire=wire, method="gradient")
    first = make(world, 1, None)
    assert first.residual is not None
    before = first.residual * codec(wire).feedback
    missed = make(world, 2, first.residual)
    assert missed.residual is not None
    assert torch.allclose(missed.fresh.encoded.decode() + missed.residual, world.update(0, 2) + before, atol=1e-5)
    left = missed.residual * codec(wire).feedback
    again = make(world, 3, missed.residual, missed.fresh)
    assert again.residual is not None
    mixed = (world.update(0, 3) * 150 + missed.fresh.encoded.decode() * 75) / 225
    assert torch.allclose(again.encoded.decode() + again.residual, mixed + left, atol=1e-5)


@pytest.mark.parametrize("wire", ["fp32", "fp16", "int8"])
def test_codecs_that_lose_next_to_nothing_keep_no_copy_for_it(tmp_path: Path, wire: str) -> None:
    assert codec(wire).feedback == 0
    assert make(World(tmp_path, values=1000, wire=wire, method="gradient"), 1, None).residual is None


def test_the_residual_is_made_in_the_memory_of_the_update(tmp_path: Path) -> None:
    world = World(tmp_path, values=VALUES, wire="topk", method="gradient")
    update = Update(world.update(0), 150, 0, 10, 6)
    at = update.vector.data_ptr()
    made = Contribution.make(update, world.spec, world.card.run, 1, "c" * 64, world.identity(0), (), 0.0)
    assert made.residual is not None and made.residual.data_ptr() == at


def test_late_sparse_work_is_added_where_it_has_values(tmp_path: Path) -> None:
    world = World(tmp_path, values=VALUES, wire="topk", method="gradient")
    missed = EncodedUpdate.encode(world.update(1), "topk")
    late = Leftover.of(Update(world.update(1), 100, 0, 10, 8), 1, "b" * 64, missed)
    vector = world.update(0)
    wanted = (vector * 150 + missed.decode() * 50) / 200
    late.add_to(vector, 150)
    assert torch.allclose(vector, wanted, atol=1e-6) and 0 < missed.decode().count_nonzero() < VALUES / 30


def test_a_member_adds_what_it_has_left_out_to_its_next_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, values=VALUES, wire="topk", method="gradient", round_tokens=800, min_peers=2)
    real, checked = Contribution.make, []

    def noted(update: Update, *rest: Any) -> Contribution:
        feedback, vector = rest[-1], update.vector.clone()
        before = 0.0 if feedback is None else feedback * codec("topk").feedback
        made = real(update, *rest)
        assert made.residual is not None
        assert torch.allclose(made.encoded.decode() + made.residual, vector + before, atol=1e-5)
        checked.append(feedback is not None)
        return made

    monkeypatch.setattr(Contribution, "make", noted)

    async def main() -> None:
        async with world.peers(2) as peers:
            await agreed(peers, 4)

    run(main())
    assert sum(checked) >= 4, "each member's later updates had something to add"
