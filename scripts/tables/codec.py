"""How fast each wire codec is on one core, what it writes, and what it loses, against hivemind's 8-bit codecs.

Speed is of fp32 bytes per CPU second of one thread, in chunks of 65536 values as they travel, over a heavy-tailed made
tensor of 4 M values (normal times exp(normal), times 1e-4); arms interleaved, median of the repetitions. Beside it
numpy's copy of the same chunks, bytes a value, and the relative L2 error, of that tensor and of a real update: ten
local steps of the demo's model. Then the averaging of four members' parts: their common update and noise a third as
large.

    scripts/bench codec --json codec.json

Goal: int4 encodes and decodes at least 0.3 GB/s.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hivemind.compression import (
    BlockwiseQuantization,
    CompressionInfo,
    Quantile8BitQuantization,
    Uniform8BitQuantization,
)

from coordinator.presets import NEW
from lab.small_community import real_inputs
from lab.training_fixtures import Bench
from peer.training.codecs.codec import CHUNK_VALUES, average_codec, codec
from peer.training.reduce import average_chunk
from peer.training.robust import aggregator

GOAL_GB_S = 0.3
OURS = ("fp32", "fp16", "int8", "int4", "int2", "topk")
THEIRS = (Uniform8BitQuantization, Quantile8BitQuantization, BlockwiseQuantization)
MEMBERS = 4
LOCAL_STEPS = 10


@dataclass
class Arm:
    """One codec: how it writes a chunk, how it reads it back, how long each took."""

    encode: Callable[[torch.Tensor], Any]
    decode: Callable[[Any, int], torch.Tensor]
    size: Callable[[Any], int]
    encode_s: list[float] = field(default_factory=list)
    decode_s: list[float] = field(default_factory=list)

    def run(self, chunks: Sequence[torch.Tensor]) -> None:
        """Once over all chunks."""
        started = time.process_time()
        encoded = [self.encode(chunk) for chunk in chunks]
        between = time.process_time()
        for data, chunk in zip(encoded, chunks, strict=True):
            self.decode(data, chunk.numel())
        self.encode_s.append(between - started)
        self.decode_s.append(time.process_time() - between)

    def quality(self, tensor: torch.Tensor) -> tuple[float, float]:
        """Bytes a value, and the relative L2 error."""
        size, parts = 0, []
        for chunk in tensor.split(CHUNK_VALUES):
            data = self.encode(chunk)
            size += self.size(data)
            parts.append(self.decode(data, chunk.numel()))
        return size / tensor.numel(), relative(torch.cat(parts), tensor)


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((got.double() - wanted.double()).norm() / wanted.double().norm()).item()


def arms() -> dict[str, Arm]:
    """Every codec that works here; of the others stderr says why not."""
    made = {
        "numpy copy": Arm(
            lambda chunk: chunk.numpy().copy(), lambda data, _: torch.from_numpy(data.copy()), lambda data: data.nbytes
        )
    }
    for name in OURS:
        made[name] = Arm(codec(name).encode, codec(name).decode, len)
    for kind in THEIRS:
        theirs, label = kind(), f"hivemind {kind.__name__.removesuffix('Quantization')}"
        arm = Arm(
            lambda chunk, theirs=theirs: theirs.compress(chunk, CompressionInfo.from_tensor(chunk)),
            lambda data, _, theirs=theirs: theirs.extract(data),
            lambda data: data.ByteSize(),
        )
        try:
            arm.quality(torch.linspace(-1, 1, CHUNK_VALUES))
        except (ImportError, TypeError) as error:  # bitsandbytes is not there; int() of an array, on numpy >= 2.4
            print(f"{label} does not work here: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        made[label] = arm
    return made


def made_tensor(count: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator=draw) * torch.exp(torch.randn(count, generator=draw)) * 1e-4


def real_update(folder: Path) -> torch.Tensor:
    """What ten local steps of the demo's model come to."""
    inputs = real_inputs(folder / "inputs")
    inner = {"lr": 4e-3, "micro_batch": 4, "batch": 4}
    bench = Bench(folder, inputs.model, inputs.text, base=inputs.model, inner=inner)
    work = bench.work()
    for _ in range(LOCAL_STEPS):
        work.step()
    return work.finish().vector


def averaging(repetitions: int) -> dict[str, dict[str, float]]:
    """GB/s of a chunk's four parts averaged and encoded, and of one chunk's average read; its bytes a value."""
    common = made_tensor(CHUNK_VALUES)
    members = [common + made_tensor(CHUNK_VALUES, 1 + i) / 3 for i in range(MEMBERS)]
    parts = {name: [codec(name).encode(member) for member in members] for name in OURS}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in OURS}
    sizes, how = {}, aggregator(NEW["sync"]["clip"])
    for _ in range(repetitions):
        for name in OURS:
            started = time.process_time()
            results = [average_chunk(name, how, parts[name], [1] * MEMBERS, CHUNK_VALUES) for _ in range(8)]
            between = time.process_time()
            for data in results:
                average_codec(name).decode(data, CHUNK_VALUES)
            times[name].append((between - started, time.process_time() - between))
            sizes[name] = len(results[0]) / CHUNK_VALUES
    gigabytes = 8 * 4 * CHUNK_VALUES / 1e9
    return {
        name: {
            "average": MEMBERS * gigabytes / statistics.median(pair[0] for pair in times[name]),
            "decode": gigabytes / statistics.median(pair[1] for pair in times[name]),
            "bytes": sizes[name],
        }
        for name in OURS
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench codec", description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--values", type=int, default=1 << 22, help="of the made tensor")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    made = made_tensor(options.values)
    with tempfile.TemporaryDirectory() as folder:
        real = real_update(Path(folder))
    contest, chunks = arms(), made.split(CHUNK_VALUES)
    for _ in range(options.repetitions):
        for arm in contest.values():
            arm.run(chunks)
    gigabytes = 4 * options.values / 1e9
    found: dict[str, dict[str, float]] = {}
    print(
        "\n| codec | encode, GB/s | decode, GB/s | bytes a value | error, made | error, real |\n"
        "|---|---|---|---|---|---|"
    )
    for name, arm in contest.items():
        (size, error), (_, real_error) = arm.quality(made), arm.quality(real)
        encode, decode = (gigabytes / statistics.median(times) for times in (arm.encode_s, arm.decode_s))
        found[name] = {"encode": encode, "decode": decode, "bytes": size, "made": error, "real": real_error}
        print(f"| {name} | {encode:.2f} | {decode:.2f} | {size:.3f} | {error:.4f} | {real_error:.4f} |")
    averages = averaging(options.repetitions)
    print(
        f"\n| {MEMBERS} members | averaged, GB/s of parts | average decoded, GB/s | bytes a value |\n|---|---|---|---|"
    )
    for name, row in averages.items():
        print(f"| {name} | {row['average']:.2f} | {row['decode']:.2f} | {row['bytes']:.3f} |")
    slowest = min(found["int4"]["encode"], found["int4"]["decode"])
    print(f"\nint4 {slowest:.2f} GB/s, goal at least {GOAL_GB_S}; real update: {real.numel()} values")
    if options.json:
        options.json.write_text(json.dumps({"codecs": found, "averages": averages}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
