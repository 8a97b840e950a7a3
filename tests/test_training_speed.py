"""What makes a pass fast and must not change it: attention by fused kernels, and no computing on padding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from lab.training_fixtures import Bench, write_tiny_gpt2, write_tiny_llama
from peer.training.data import Sequences, draw

LORA = {"kind": "lora", "rank": 4, "alpha": 8.0}


def records(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("write", [write_tiny_llama, write_tiny_gpt2])
def test_passes_use_flash_attention_and_nothing_slower(
    tmp_path: Path, glass_dir: Path, plays: Path, write: object, kind: str
) -> None:
    base = (write_tiny_gpt2 if write is write_tiny_gpt2 else write_tiny_llama)(tmp_path / "base", glass_dir)
    work = Bench(tmp_path, glass_dir, plays, base=base, method=LORA | {"kind": kind}).work()
    with sdpa_kernel(
        SDPBackend.FLASH_ATTENTION
    ):  # torch raises where this kernel will not do: for an explicit mask, say
        work.step()


def test_a_batch_is_as_wide_as_its_longest_sequence_and_no_wider() -> None:
    lengths = (3, 40, 64, 100)
    tokens_ST = torch.arange(4 * 100, dtype=torch.int32).reshape(4, 100)
    sequences = Sequences(tokens_ST, torch.ones(4, 100, dtype=torch.bool), lengths)
    for rows, width in (([0], 32), ([0, 1], 64), ([2], 64), ([0, 3], 100)):
        tokens_BT, labels_BT = sequences.batch(rows)
        assert sequences.width(rows) == width and tokens_BT.shape == labels_BT.shape == (len(rows), width)
        assert torch.equal(tokens_BT, tokens_ST[rows, :width].long())


@pytest.mark.parametrize("method", ["gradient", "diloco"])
def test_leaving_padding_out_changes_no_update(
    tmp_path: Path, glass_dir: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{i} to be or not " + "to be or not to be " * (i % 9) for i in range(60)]
    data = {"kind": "jsonl", "packing": False, "sequence_length": 60}
    path = records(tmp_path / "d.jsonl", texts)
    bench = Bench(tmp_path, glass_dir, path, data=data, sync={"method": method})
    updates = []
    for _ in range(2):
        work = bench.work()
        for _ in range(4):
            work.step()
        updates.append(work.finish())
        monkeypatch.setattr(Sequences, "width", lambda self, rows: 60)
    cut, whole = updates
    assert max(bench.dataset.train.lengths) > 32 > min(bench.dataset.train.lengths)
    assert (cut.tokens, cut.batches, cut.flops) == (whole.tokens, whole.batches, whole.flops)
    assert (cut.vector - whole.vector).norm() < 2e-3 * whole.vector.norm()


def test_a_pass_of_short_records_is_no_sign_of_a_fast_size(
    tmp_path: Path, glass_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = records(tmp_path / "d.jsonl", [f"{i} to be or not " + "to be or not to be " * (i % 9) for i in range(60)])
    data = {"kind": "jsonl", "packing": False, "sequence_length": 60}
    work = Bench(tmp_path, glass_dir, path, data=data, inner={"micro_batch": 1, "batch": 4}).work()
    monkeypatch.setattr("peer.training.passes.Stopwatch.seconds", lambda self: 1.0)
    told: list[float] = []
    monkeypatch.setattr("peer.training.micro_batch.MicroBatch.passed", lambda self, size, seconds: told.append(seconds))
    for _ in range(4):
        work.step()
    rows = draw(7, 1, "peer", 0, 4, len(work.dataset.train))
    assert told == [pytest.approx(60 / work.dataset.train.lengths[row]) for row in rows] and len(set(told)) > 1
