"""Whole rounds without a network: three workers, every method and wire; the loss falls and all agree to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from coordinator.model_source import prepare_model
from coordinator.run_config import ModelSource
from lab.training_fixtures import make_genesis, make_spec, write_tiny_gpt2
from peer.training.codecs.codec import EncodedUpdate, average_codec, chunk_sizes
from peer.training.data import load_dataset
from peer.training.evaluate import held_out_loss
from peer.training.model import load_trainable
from peer.training.outer import outer_step
from peer.training.reduce import average_chunk
from peer.training.robust import aggregator
from peer.training.state import SharedState
from peer.training.work import LocalWork
from protocol.run_spec import RunSpec

PEERS = ("peer-a", "peer-b", "peer-c")


def one_round(spec: RunSpec, works: list[LocalWork], states: list[SharedState], steps: list[int]) -> list[SharedState]:
    """Each worker with its own copy of everything, as on its own machine; only encoded bytes pass between them."""
    updates = []
    for work, state, count in zip(works, states, steps, strict=True):
        work.begin(state)
        for _ in range(count):
            work.step()
        updates.append(work.finish())
    wire = spec.sync.wire
    sent = [EncodedUpdate.encode(update.vector, spec.sync.wire, chunk_values=4096) for update in updates]
    weights, sizes = [update.tokens for update in updates], chunk_sizes(sent[0].values, 4096)
    how = aggregator(spec.sync.clip)
    averages = [
        average_chunk(wire, how, [item.chunks[index] for item in sent], weights, size)
        for index, size in enumerate(sizes)
    ]
    results = [
        torch.cat([average_codec(wire).decode(data, size) for data, size in zip(averages, sizes, strict=True)])
        for _ in states
    ]
    return [outer_step(spec, state, result) for state, result in zip(states, results, strict=True)]


@pytest.mark.parametrize(
    "wire",
    [
        pytest.param("fp32", marks=pytest.mark.slow),
        pytest.param("fp16", marks=pytest.mark.slow),
        "int8",
        pytest.param("int4", marks=pytest.mark.slow),
        "topk",
    ],
)
@pytest.mark.parametrize("method", ["diloco", "gradient"])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_loss_falls_and_all_states_are_equal(
    kind: str, method: str, wire: str, glass_dir: Path, plays: Path, tmp_path: Path
) -> None:
    rate = {"full": 2e-3, "lora": 1e-2}[kind]
    sections: dict[str, Any] = {
        "method": {"kind": kind, "rank": 4, "alpha": 8.0},
        "sync": {"method": method, "wire": wire},
        "inner": {"lr": rate, "micro_batch": 8, "batch": 8},
        "outer": {"lr": rate if method == "gradient" else 1.0},
        "data": {"held_out_sequences": 32},
    }
    spec = make_spec(glass_dir, plays, **sections)
    genesis = make_genesis(spec, glass_dir, tmp_path / "genesis")
    models = [load_trainable(spec, tmp_path / "genesis", glass_dir) for _ in PEERS]
    dataset = load_dataset(spec, models[0].tokenizer, plays)
    works = [LocalWork(model, dataset, spec, peer) for model, peer in zip(models, PEERS, strict=True)]
    states = [genesis] * len(PEERS)
    before = held_out_loss(models[0], dataset).loss
    for number in range(1, 7):
        states = one_round(spec, works, states, steps=[1, 2, 3])
        assert len({state.digest for state in states}) == 1 and states[0].round == number
    models[0].write(states[0].parameters)
    assert held_out_loss(models[0], dataset).loss < before - 0.15


def test_a_gpt2_with_tied_weights_trains_too(glass_dir: Path, plays: Path, tmp_path: Path) -> None:
    base = write_tiny_gpt2(tmp_path / "base", glass_dir)
    spec = make_spec(base, plays, inner={"lr": 1e-2, "micro_batch": 8, "batch": 8}, sync={"wire": "int8"})
    state = make_genesis(spec, base, tmp_path / "genesis")
    model = load_trainable(spec, tmp_path / "genesis")
    dataset = load_dataset(spec, model.tokenizer, plays)
    before = held_out_loss(model, dataset).loss
    work = LocalWork(model, dataset, spec, "peer")
    for _ in range(3):
        (state,) = one_round(spec, [work], [state], steps=[8])
    model.write(state.parameters)
    assert held_out_loss(model, dataset).loss < before - 1.0


def test_a_runs_result_is_the_next_runs_base(glass_dir: Path, plays: Path, tmp_path: Path) -> None:
    spec = make_spec(glass_dir, plays)
    genesis = make_genesis(spec, glass_dir, tmp_path / "genesis")
    model = load_trainable(spec, tmp_path / "genesis")
    work = LocalWork(model, load_dataset(spec, model.tokenizer, plays), spec, "peer")
    (state,) = one_round(spec, [work], [genesis], steps=[1])
    model.write(state.parameters)
    model.save_model(tmp_path / "next")
    source = ModelSource(path="next", license="MIT")
    assert prepare_model(source, tmp_path, tmp_path / "cache") == tmp_path / "next"
    next_spec = make_spec(tmp_path / "next", plays)
    assert torch.equal(make_genesis(next_spec, tmp_path / "next", tmp_path / "out").parameters, state.parameters)
