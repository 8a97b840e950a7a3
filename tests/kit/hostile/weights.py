"""What a dishonest host publishes as weights, signed and logged with the run's own keys."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from tests.kit.builders import Run, safetensors_bytes
from tests.kit.hostile.cases import EMBED, GOOD, HOST, INFINITY, NAN, NORM, Cases, values_of

CASES = Cases()


def reweigh(what: str, tensors: dict[str, tuple[tuple[int, ...], list[float]]], **header: Any) -> None:
    """A case in which the host publishes other weights."""

    def make(run: Run, step: Path) -> None:
        (step / "model/model.safetensors").write_bytes(safetensors_bytes(tensors, **header))
        run.resign(step)

    CASES.add(what, HOST)(make)


reweigh("other weights than the members agreed on", GOOD)
reweigh("a NaN in the weights", GOOD | {NORM: ((4,), [*values_of(3), NAN])})
reweigh("an infinity in the weights", GOOD | {EMBED: ((8, 4), [-INFINITY, *values_of(31)]), NORM: ((4,), values_of(4))})
reweigh("a tensor that is not part of the state", GOOD | {"model.extra": ((2,), values_of(2))})
reweigh("a tensor of another shape", GOOD | {EMBED: ((4, 8), values_of(32))})
reweigh("a tensor left out", {NORM: ((4,), values_of(4))})
reweigh("a tensor of another type", GOOD, **{NORM: {"dtype": "F16", "shape": [8], "data_offsets": [128, 144]}})
reweigh("two tensors over the same bytes", GOOD, **{NORM: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}})
reweigh(
    "a tensor beyond the end of the file", GOOD, **{NORM: {"dtype": "F32", "shape": [8], "data_offsets": [128, 160]}}
)
reweigh(
    "a tensor whose bytes are not its shape's",
    GOOD,
    **{NORM: {"dtype": "F32", "shape": [5], "data_offsets": [128, 144]}},
)


@CASES.add("the safetensors header cut short", HOST)
def _(run: Run, step: Path) -> None:
    path = step / "model/model.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    run.resign(step)


@CASES.add("a tensor's name twice in the safetensors header", HOST)
def _(run: Run, step: Path) -> None:
    data = safetensors_bytes(GOOD)
    header = data[8 : 8 + struct.unpack("<Q", data[:8])[0]]
    twice = header[:-1] + b', "' + NORM.encode() + b'": {"dtype": "F32", "shape": [4], "data_offsets": [128, 144]}}'
    (step / "model/model.safetensors").write_bytes(len(twice).to_bytes(8, "little") + twice + data[8 + len(header) :])
    run.resign(step)


@CASES.add("bytes after the last tensor", HOST)
def _(run: Run, step: Path) -> None:
    with open(step / "model/model.safetensors", "ab") as file:
        file.write(b"tail")
    run.resign(step)


@CASES.add("pickled weights beside the agreed ones", HOST)
def _(run: Run, step: Path) -> None:
    (step / "model/pytorch_model.bin").write_bytes(b"\x80\x04.")
    run.resign(step)


@CASES.add("an adapter_config.json that names another base model", HOST)
def _(run: Run, step: Path) -> None:
    (step / "model/adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    run.resign(step)


@CASES.add("an adapter beside the agreed weights", HOST)
def _(run: Run, step: Path) -> None:
    (step / "model/adapter_model.safetensors").write_bytes(safetensors_bytes(GOOD))
    run.resign(step)


@CASES.add("a shard index beside the one weight file", HOST)
def _(run: Run, step: Path) -> None:
    (step / "model/model.safetensors.index.json").write_text("{}")
    run.resign(step)


@CASES.add("shards whose index names the wrong one", HOST)
def _(run: Run, step: Path) -> None:
    model = step / "model"
    (model / "model.safetensors").unlink()
    (model / "model-00001-of-00002.safetensors").write_bytes(safetensors_bytes({EMBED: GOOD[EMBED]}))
    (model / "model-00002-of-00002.safetensors").write_bytes(safetensors_bytes({NORM: GOOD[NORM]}))
    weight_map = dict.fromkeys((EMBED, NORM), "model-00001-of-00002.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    run.resign(step)


@CASES.add("config.json left out", HOST)
def _(run: Run, step: Path) -> None:
    (step / "model/config.json").unlink()
    run.resign(step)
