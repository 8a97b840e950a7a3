"""What a volunteer is told a run needs, against what processes really use; and no copy of the parameters too many."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from lab.training_fixtures import make_genesis, make_spec, write_llama, write_tiny_llama
from peer.training.codecs.codec import codec
from peer.training.memory import activation_bytes, base_parameters, memory_needed_bytes
from peer.training.model_shape import ModelShape
from protocol.run_spec import RunSpec
from tests.kit.memory_probe import Probes

DAEMON_BYTES = 90 << 20  # p2pd, which the probe does not start; measured in whole peers
FACTOR = 1.6  # of its own memory, without libraries' files: never more than is said, and not much less
CLOSE = 0.15  # of all its memory: what is said is this close
SHAPE = ModelShape(512, 8, 32_000, 512, 256, 1408, gated=True, tied=False, heads=8)
LORA = {"kind": "lora", "rank": 4, "alpha": 8.0}


@pytest.fixture(scope="module")
def probes() -> Iterator[Probes]:
    with Probes() as started:
        yield started


def run_of(folder: Path, model: Path, plays: Path, length: int, **sections: Any) -> RunSpec:
    """A run with all that a probe of it needs."""
    inner = {"micro_batch": 1, "batch": 1}
    spec = make_spec(model, plays, inner=inner, data={"sequence_length": length}, **sections)
    make_genesis(spec, model, folder / "genesis")
    (folder / "run-spec.json").write_bytes(spec.to_bytes())
    (folder / "data").symlink_to(plays)
    return spec


@dataclass(frozen=True)
class Case:
    """How a run averages, and what that may take: copies of the trainable parameters beyond the imports."""

    sync: dict[str, Any]
    loaded: float  # weights, gradient, the base; diloco: two moments
    most: float


@pytest.mark.parametrize(
    "case",
    [
        # and the update, or its average, which becomes the next state; what travels and what has (a quarter, half);
        # activations
        pytest.param(Case({"method": "diloco", "wire": "int8"}, 5.4, 7.6), id="int8"),
        # no residual, no copy of where the work of the round before ended: what the others have not got is in the model
        pytest.param(
            Case({"method": "diloco", "wire": "int4", "overlap": True}, 5.4, 7.75),
            id="int4, overlap",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            Case({"method": "diloco", "wire": "int2", "fragments": 6, "overlap": True}, 5.4, 7.35), id="int2, fragments"
        ),
        # two outer vectors each of the base and of the next state
        pytest.param(Case({"method": "gradient", "wire": "int8"}, 3.4, 10.0), id="gradient", marks=pytest.mark.slow),
    ],
)
def test_a_model_of_30_m_parameters_needs_what_is_said_and_no_copy_more(
    tmp_path: Path, glass_dir: Path, plays: Path, probes: Probes, case: Case
) -> None:
    model = write_llama(tmp_path / "model", glass_dir, width=512, layers=11)
    spec = run_of(tmp_path, model, plays, 128, sync=case.sync)
    assert 28e6 < spec.model.trainable < 35e6
    found = probes.take(tmp_path)
    most = max(stage["peak"] for stage in found.values()) + DAEMON_BYTES
    copy = 4 * spec.model.trainable
    over = {name: round((stage["peak"] - found["imports"]["after"]) / copy, 2) for name, stage in found.items()}
    assert over["optimizer"] <= case.loaded
    assert max(over.values()) <= case.most, str(over)
    before = max(found[name]["peak"] for name in ("work 2", "encode 2", "average 2", "outer step 2"))
    assert found["ahead 2"]["peak"] <= before + 0.2 * copy
    assert found["save 2"]["peak"] <= found["ahead 2"]["peak"] + 0.02 * copy
    assert most <= memory_needed_bytes(spec) <= FACTOR * most


def test_a_residual_is_counted_for_just_the_codecs_that_have_one(glass_dir: Path, plays: Path) -> None:
    for wire in ("fp32", "fp16", "int8", "int4", "int2", "topk"):
        local, gradients = (
            memory_needed_bytes(make_spec(glass_dir, plays, sync={"method": method, "wire": wire}))
            for method in ("diloco", "gradient")
        )
        trainable = make_spec(glass_dir, plays).model.trainable
        # gradients: two outer vectors, twice, for two moments; and the residual
        copies = round((gradients - local) / (4 * trainable))
        assert copies == 2 + (codec(wire).feedback > 0)


def test_a_tiny_model_needs_hardly_more_than_the_runtime(
    tmp_path: Path, glass_dir: Path, plays: Path, probes: Probes
) -> None:
    model = write_tiny_llama(tmp_path / "model", glass_dir)
    spec = run_of(tmp_path, model, plays, 32)
    most = max(stage["peak"] for stage in probes.take(tmp_path).values()) + DAEMON_BYTES
    assert most <= memory_needed_bytes(spec) <= FACTOR * most


def test_needed_memory_grows_with_what_needs_it(glass_dir: Path, plays: Path) -> None:
    lora = {"kind": "lora", "rank": 4, "alpha": 8.0}
    small = memory_needed_bytes(make_spec(glass_dir, plays, method=lora))
    full = memory_needed_bytes(make_spec(glass_dir, plays))
    longer = memory_needed_bytes(make_spec(glass_dir, plays, data={"sequence_length": 4096}))
    reducing = memory_needed_bytes(make_spec(glass_dir, plays), reduce_only=True)
    assert 1 << 29 < reducing < full, "no gradient, no moments, no activations"
    assert 1 << 29 < small < full < longer < 4 << 30
    spec = make_spec(glass_dir, plays)
    assert activation_bytes(spec, 8) < 8 * activation_bytes(spec, 1)


@pytest.mark.parametrize("recomputing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("method", [{"kind": "full"}, LORA, LORA | {"base": "bf16"}], ids=["full", "lora", "bf16"])
def test_what_is_larger_needs_more(glass_dir: Path, plays: Path, method: dict[str, Any], recomputing: bool) -> None:
    spec = make_spec(glass_dir, plays, method=method, data={"sequence_length": 256})

    def needed(shape: ModelShape = SHAPE, spec: RunSpec = spec, sequences: int = 1) -> int:
        return memory_needed_bytes(spec, shape, sequences=sequences, recomputing=recomputing)

    longer = make_spec(glass_dir, plays, method=method, data={"sequence_length": 512})
    assert needed() < needed(spec=longer)
    assert needed() < needed(sequences=2) < needed(sequences=4)
    for size in ("width", "layers", "vocabulary", "inner", "keys", "queries"):
        larger = replace(SHAPE, **{size: 4 * getattr(SHAPE, size)})
        assert needed() < needed(larger), size
    if not recomputing:
        spans = [needed(replace(SHAPE, layers=layers)) for layers in (8, 16, 32)]
        assert spans[2] - spans[1] == pytest.approx(2 * (spans[1] - spans[0]), rel=1e-3), "each layer keeps as much"
        assert needed() > memory_needed_bytes(spec, SHAPE, recomputing=True)


def test_overlapping_rounds_hold_activations_while_they_average(glass_dir: Path, plays: Path) -> None:
    apart, overlapping = (
        memory_needed_bytes(make_spec(glass_dir, plays, sync={"overlap": overlap}), SHAPE) for overlap in (False, True)
    )
    assert apart < overlapping


@pytest.mark.parametrize(
    "method",
    [
        pytest.param({"kind": "full"}, id="full", marks=pytest.mark.slow),
        pytest.param(LORA | {"base": "bf16"}, id="lora, bf16 base"),
    ],
)
def test_a_process_takes_what_its_config_json_says(
    tmp_path: Path, glass_dir: Path, plays: Path, method: dict[str, Any]
) -> None:
    model = tmp_path / "base-model"
    write_llama(model, glass_dir, width=384, layers=8)
    spec = run_of(tmp_path, model, plays, 512, method=method, sync={"wire": "int8"})
    shape = ModelShape.from_config(json.loads((model / "config.json").read_text()), base_parameters(spec))
    with Probes(alone=True) as process:
        found = process.take(tmp_path, steps=1)
    most = max(stage["resident"] for stage in found.values()) + DAEMON_BYTES
    assert memory_needed_bytes(spec, shape) == pytest.approx(most, rel=CLOSE)
