"""AdamW's moments in 8 bits: a member's own choice, what it saves and costs, and where there is none."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from lab.training_fixtures import Bench, make_spec
from peer.training import eight_bit
from peer.training.evaluate import held_out_loss
from peer.training.memory import memory_needed_bytes
from peer.training.work import LocalWork
from protocol.errors import InputError

FREE = {"inner": {"optimizer": "schedule-free-adamw"}}


def steps(work: LocalWork, count: int) -> torch.Tensor:
    for _ in range(count):
        work.step()
    return work.finish().vector


# ---- without bitsandbytes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "why"), [({"sync": {"method": "gradient"}}, "agreed on by all"), (FREE, "this run has schedule-free")]
)
def test_moments_that_are_not_a_members_own_stay_as_they_are(
    tmp_path: Path, glass_dir: Path, plays: Path, sections: Any, why: str
) -> None:
    bench = Bench(tmp_path, glass_dir, plays, **sections)
    with pytest.raises(InputError, match=why) as refused:
        bench.work(moments="8bit")
    assert refused.value.hint == "join without --moments"


def test_where_bitsandbytes_is_missing_the_member_is_told(
    glass_dir: Path, plays: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # import fails as if it were not there
    spec = make_spec(glass_dir, plays)
    eight_bit.check_choice(spec, "fp32")
    with pytest.raises(InputError, match="moments in 8 bits need bitsandbytes") as refused:
        eight_bit.check_choice(spec, "8bit")
    assert "pip install" in refused.value.hint


def test_they_are_counted_as_a_quarter(glass_dir: Path, plays: Path) -> None:
    spec = make_spec(glass_dir, plays)
    saved = memory_needed_bytes(spec) - memory_needed_bytes(spec, moments="8bit")
    assert saved == pytest.approx(6 * spec.model.trainable, rel=0.01)
    reducing = [memory_needed_bytes(spec, reduce_only=True, moments=moments) for moments in ("fp32", "8bit")]
    assert reducing[0] == reducing[1]


# ---- with it ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def installed() -> None:
    pytest.importorskip("bitsandbytes", reason="optional: pip install potluck[moments]")


@pytest.mark.usefixtures("installed")
def test_training_comes_to_the_loss_that_it_comes_to_in_fp32(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    bench = Bench(tmp_path, glass_dir, plays, base=glass_dir, inner={"weight_decay": 0.1})
    losses, updates = [], []
    before = held_out_loss(bench.model(), bench.dataset).loss
    for moments in ("fp32", "8bit"):
        work = bench.work(moments=moments)
        updates.append(steps(work, 40))
        losses.append(held_out_loss(work.model, bench.dataset).loss)
    gained = before - losses[0]
    print(f"held-out loss {before:.4f}, after 40 steps {losses[0]:.4f} in fp32, {losses[1]:.4f} in 8 bits")
    assert gained > 0.2 and abs(losses[1] - losses[0]) < 0.03 * gained
    assert not torch.equal(updates[0], updates[1])


@pytest.mark.usefixtures("installed")
def test_work_after_a_restart_has_the_same_bits_as_without_one(
    tmp_path: Path, glass_dir: Path, plays: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eight_bit, "LOT", 4096)  # several, and the last one no whole block
    bench, path = Bench(tmp_path, glass_dir, plays), tmp_path / "moments.safetensors"
    straight = bench.work(moments="8bit")
    steps(straight, 3)
    assert straight.save_optimizer(path)
    with safe_open(path, framework="pt") as file:
        held = sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118  no dict
    assert held == pytest.approx(2.03 * bench.spec.model.trainable, rel=0.01)
    back = bench.work(moments="8bit")
    assert back.load_optimizer(path)
    straight.begin(bench.genesis)
    assert torch.equal(steps(back, 3), steps(straight, 3))
    assert not torch.equal(back.finish().vector, steps(bench.work(moments="8bit"), 3))


@pytest.mark.usefixtures("installed")
def test_how_many_are_stepped_at_a_time_changes_nothing(
    tmp_path: Path, glass_dir: Path, plays: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, glass_dir, plays)
    whole = steps(bench.work(moments="8bit"), 3)
    monkeypatch.setattr(eight_bit, "LOT", 4096)
    assert torch.equal(steps(bench.work(moments="8bit"), 3), whole)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("before", ["fp32", "8bit"])
def test_who_changes_the_choice_starts_afresh_and_is_told(
    tmp_path: Path, glass_dir: Path, plays: Path, before: str, caplog: pytest.LogCaptureFixture
) -> None:
    bench, path = Bench(tmp_path, glass_dir, plays), tmp_path / "moments.safetensors"
    after = "8bit" if before == "fp32" else "fp32"
    work = bench.work(moments=before)
    steps(work, 2)
    work.save_optimizer(path)
    back = bench.work(moments=after)
    assert not back.load_optimizer(path) and "put aside" in caplog.text and "held otherwise" in caplog.text
    assert torch.equal(steps(back, 2), steps(bench.work(moments=after), 2))


@pytest.mark.usefixtures("installed")
def test_a_gradient_that_is_not_finite_shows_and_a_reset_forgets_it(
    tmp_path: Path, glass_dir: Path, plays: Path
) -> None:
    inner = make_spec(glass_dir, plays).inner
    flat_N, gradient_N = torch.zeros(5000), torch.ones(5000)
    optimizer = eight_bit.EightBitAdamW(inner, flat_N, gradient_N)
    gradient_N[5] = float("nan")
    optimizer.step(1.0, 0.1, round=1)
    assert not flat_N.isfinite().all()  # by which `LocalWork.finish` knows
    optimizer.reset()
    for values, value in ((flat_N, 0.0), (gradient_N, 1.0)):
        values.fill_(value)
    optimizer.step(1.0, 0.1, round=1)
    assert optimizer.numbers == {"steps": "1"}
    assert torch.allclose(flat_N, torch.full_like(flat_N, -0.1), rtol=1e-3)
