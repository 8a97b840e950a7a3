"""AdamW's moments on disk: the same bits after a restart, and what is not to be trusted is put aside."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lab.training_fixtures import Bench
from peer.training import tensor_file
from peer.training.inner_optimizer import InnerAdamW
from peer.training.tensor_file import write_tensors
from peer.training.work import LocalWork
from protocol.errors import InputError


def steps(work: LocalWork, count: int) -> torch.Tensor:
    for _ in range(count):
        work.step()
    return work.finish().vector


def test_work_after_a_restart_has_the_same_bits_as_without_one(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    bench = Bench(tmp_path, glass_dir, plays, inner={"weight_decay": 0.1})
    straight = bench.work()
    steps(straight, 3)
    assert straight.save_optimizer(tmp_path / "sub" / "moments.safetensors")
    back = bench.work()
    assert back.load_optimizer(tmp_path / "sub" / "moments.safetensors")
    straight.begin(bench.genesis)
    assert torch.equal(steps(back, 3), steps(straight, 3))
    assert not torch.equal(back.finish().vector, steps(bench.work(), 3))
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["moments.safetensors"]


def test_the_file_is_plain_safetensors_and_names_its_run_and_round(
    tmp_path: Path, glass_dir: Path, plays: Path
) -> None:
    bench = Bench(tmp_path, glass_dir, plays)
    work = bench.work()
    steps(work, 2)
    work.save_optimizer(tmp_path / "moments.safetensors")
    with safe_open(tmp_path / "moments.safetensors", framework="pt") as file:
        assert sorted(file.keys()) == ["exp_avg", "exp_avg_sq"]
        metadata = file.metadata()
    assert (metadata["run"], metadata["round"], metadata["steps"]) == (bench.spec.digest, "1", "2")


@pytest.mark.parametrize("place", [4, 60, 300, 5000, -1])
def test_a_damaged_file_is_put_aside_and_training_starts_afresh(
    tmp_path: Path, glass_dir: Path, plays: Path, place: int, caplog: pytest.LogCaptureFixture
) -> None:
    bench, path = Bench(tmp_path, glass_dir, plays), tmp_path / "moments.safetensors"
    work = bench.work()
    steps(work, 2)
    work.save_optimizer(path)
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)
    back = bench.work()
    assert not back.load_optimizer(path)
    assert "put aside" in caplog.text and not path.exists() and (tmp_path / "moments.safetensors.damaged").exists()
    assert torch.equal(steps(back, 2), steps(bench.work(), 2))


def test_a_file_that_is_cut_or_another_kind_of_file_is_put_aside(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    work, path = Bench(tmp_path, glass_dir, plays).work(), tmp_path / "moments.safetensors"
    steps(work, 1)
    work.save_optimizer(path)
    whole = path.read_bytes()
    for data in (whole[:-4], whole[:100], b"", b"\xff" * 1000):
        path.write_bytes(data)
        assert not work.load_optimizer(path) and not path.exists()
    save_file({"exp_avg": torch.zeros(3)}, path)
    assert not work.load_optimizer(path) and not path.exists()


@pytest.mark.parametrize("difference", ["run", "model"])
def test_a_file_of_another_run_is_put_aside(
    tmp_path: Path, glass_dir: Path, plays: Path, difference: str, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path, glass_dir, plays)
    other = {
        "run": lambda: Bench(tmp_path / "other", glass_dir, plays, run={"seed": 8}),
        "model": lambda: Bench(tmp_path / "other", glass_dir, plays, base=glass_dir),
    }[difference]()
    work, path = other.work(), tmp_path / "moments.safetensors"
    steps(work, 1)
    work.save_optimizer(path)
    back = bench.work()
    assert not back.load_optimizer(path) and "of another run" in caplog.text and not path.exists()


def test_moments_that_are_not_finite_are_put_aside(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    bench, path = Bench(tmp_path, glass_dir, plays), tmp_path / "moments.safetensors"
    work = bench.work()
    gradient_N = torch.zeros_like(work.model.flat_N)
    gradient_N[5] = float("nan")
    spoilt = InnerAdamW(bench.spec.inner, work.model.flat_N.clone(), gradient_N)
    spoilt.step(1.0, bench.spec.inner.lr, round=1)
    spoilt.save(path, bench.spec.digest, round=1)
    assert not work.load_optimizer(path) and not path.exists()


def test_a_full_disk_does_not_end_the_training_and_keeps_the_older_file(
    tmp_path: Path, glass_dir: Path, plays: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench, path = Bench(tmp_path, glass_dir, plays), tmp_path / "moments.safetensors"
    work = bench.work()
    steps(work, 1)
    assert work.save_optimizer(path)
    before = path.read_bytes()

    def full(tensors: object, temporary: Path, metadata: object) -> None:
        temporary.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tensor_file, "save_file", full)
    steps(work, 1)
    assert not work.save_optimizer(path)
    assert "the disk is full" in caplog.text
    assert path.read_bytes() == before and not path.with_name(path.name + ".new").exists()
    steps(work, 1)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (SafetensorError("I/O error: Permission denied (os error 13)"), "Permission denied"),
        (SafetensorError("something else"), "something else"),
    ],
)
def test_what_stands_in_the_way_of_writing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(tensor_file, "save_file", fail)
    with pytest.raises(InputError, match=message):
        write_tensors(tmp_path / "x", {}, {})


def test_saving_may_go_on_in_another_thread_while_the_trainer_waits(
    tmp_path: Path, glass_dir: Path, plays: Path
) -> None:
    bench, path = Bench(tmp_path, glass_dir, plays), tmp_path / "moments.safetensors"
    work = bench.work()
    steps(work, 2)
    thread = threading.Thread(target=work.save_optimizer, args=[path])
    thread.start()
    work.finish()
    thread.join(timeout=60)
    assert bench.work().load_optimizer(path)


def test_the_gradient_method_remembers_nothing(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    work, path = Bench(tmp_path, glass_dir, plays, sync={"method": "gradient"}).work(), tmp_path / "moments.safetensors"
    steps(work, 1)
    assert not work.save_optimizer(path) and not path.exists() and not work.load_optimizer(path)
