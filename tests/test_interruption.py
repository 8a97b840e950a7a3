"""A pass that its owner ends in the middle: nothing of it is left, and what is drawn again comes to the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lab.training_fixtures import Bench
from peer.training.interruption import Interrupted


class Asked:
    """Says yes at the look of this number, once."""

    def __init__(self, at: int) -> None:
        self.looks, self._at = 0, at

    def __call__(self) -> bool:
        self.looks += 1
        return self.looks == self._at


@pytest.mark.parametrize("method", ["diloco", "gradient"])
@pytest.mark.parametrize("recompute", [False, True], ids=["", "recomputing"])
def test_wherever_a_pass_is_ended_the_work_comes_to_the_same(
    tmp_path: Path, glass_dir: Path, plays: Path, method: str, recompute: bool
) -> None:
    bench = Bench(tmp_path, glass_dir, plays, sync={"method": method})
    plain, counted = bench.work(), bench.work()
    for work in (plain, counted):
        assert not recompute or work.model.recompute()
        work.step()
        work.step()
    look = Asked(0)
    counted.passes.interrupt_when(look)
    counted.step()
    plain.step()
    expected = plain.finish()
    assert torch.equal(counted.finish().vector, expected.vector) and look.looks == 4, "two layers, there and back"
    for at in range(1, look.looks + 1):
        ended = bench.work()
        assert not recompute or ended.model.recompute()
        ended.step()
        ended.step()
        asked = Asked(at)
        ended.passes.interrupt_when(asked)
        with pytest.raises(Interrupted):
            ended.step()
        while ended.sequences < plain.sequences:
            ended.step()
        update: Any = ended.finish()
        assert (update.tokens, update.batches) == (expected.tokens, expected.batches)
        assert torch.allclose(update.vector, expected.vector, rtol=1e-4, atol=1e-7)
