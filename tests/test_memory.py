"""What a volunteer is told a run needs, against what processes really use; and no copy of the parameters too many."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.training_fixtures import make_genesis, make_spec, write_llama, write_tiny_llama
from peer.training.codecs.codec import codec
from peer.training.memory import activation_bytes, memory_needed_bytes
from protocol.run_spec import RunSpec
from tests.kit.memory_probe import Probes

DAEMON_BYTES = 90 << 20  # p2pd, which the probe does not start; measured in whole peers
FACTOR = 1.6  # the estimate is never too low, and at most this many times too high


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
