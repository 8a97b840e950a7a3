"""What all arms of `scripts/bench wan` share: the model, the data, the local step and its pace, the evaluation.

A `Task` is a folder that any process can open: the run spec, the genesis, the base model, the text.

    task = Task.make(folder, inputs, "lora", lr=1e-3, seed=1)
    work = task.open().work("peer-0")           LocalWork, as a Potluck peer has it
    paced = Pace(tokens_per_s=700)
    paced.step(work.step)                       as long as a card of that speed takes
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from coordinator.run_config import RunConfig
from peer.training.codecs.codec import EncodedUpdate, average_codec, chunk_sizes
from peer.training.data import Dataset, draw, load_dataset
from peer.training.evaluate import held_out_loss
from peer.training.genesis import build_genesis, count_parameters, load_state
from peer.training.model import TrainableModel, load_trainable
from peer.training.reduce import average_chunk
from peer.training.robust import aggregator
from peer.training.state import SharedState
from peer.training.work import LocalWork
from protocol.run_spec import RunSpec, Sync
from scripts.wan.scale import BATCH, SEQUENCE_LENGTH

HELD_OUT = 256  # sequences
T = TypeVar("T")


def sections(kind: str, lr: float, seed: int, batches: int = 1) -> dict[str, dict[str, Any]]:
    """What a run.toml says, whichever arm it is for; an AdamW step is on `batches` batches."""
    return {
        "run": {"name": "wan", "seed": seed},
        "data": {"sequence_length": SEQUENCE_LENGTH, "held_out": 0.02, "held_out_sequences": HELD_OUT},
        "method": {"kind": kind},
        "inner": {"lr": lr, "micro_batch": BATCH[kind], "batch": batches * BATCH[kind]},
    }


@dataclass(frozen=True)
class Task:
    """Where everything lies that an arm's process needs."""

    folder: Path
    base: Path
    text: Path

    @classmethod
    def make(cls, folder: Path, config: dict[str, Any]) -> Task:
        """Write the spec and the genesis of this run.toml."""
        parsed = RunConfig.model_validate(config)
        base, text = Path(config["model"]["path"]), Path(config["data"]["path"])
        total, trainable = count_parameters(parsed.method, base)
        spec = parsed.pin(
            model_digest="0" * 64,
            model_name=base.name,
            parameters=total,
            trainable=trainable,
            data_digest="0" * 64,
            data_size_bytes=text.stat().st_size,
        )
        build_genesis(spec, base, folder / "genesis")
        (folder / "spec.json").write_bytes(spec.to_bytes())
        return cls(folder, base, text)

    def to_json(self) -> dict[str, str]:
        return {"folder": str(self.folder), "base": str(self.base), "text": str(self.text)}

    @classmethod
    def from_json(cls, value: dict[str, str]) -> Task:
        return cls(Path(value["folder"]), Path(value["base"]), Path(value["text"]))

    @property
    def spec(self) -> RunSpec:
        return RunSpec.from_bytes((self.folder / "spec.json").read_bytes())

    def model(self) -> TrainableModel:
        return load_trainable(self.spec, self.folder / "genesis", self.base)

    def open(self, dataset: Dataset | None = None) -> Bench:
        """Load it; `dataset` saves reading the text again."""
        torch.set_num_threads(1)
        model = self.model()
        return Bench(
            self.spec,
            model,
            dataset or load_dataset(self.spec, model.tokenizer, self.text),
            load_state(self.folder / "genesis"),
        )


@dataclass(frozen=True, eq=False)
class Bench:
    """A task in memory."""

    spec: RunSpec
    model: TrainableModel
    dataset: Dataset
    genesis: SharedState

    def work(self, name: str, sync: Sync | None = None) -> LocalWork:
        """The local work of the peer of this name; `sync`: in place of the spec's."""
        spec = self.spec if sync is None else self.spec.model_copy(update={"sync": sync})
        return LocalWork(self.model, self.dataset, spec, name)

    def loss_of(self, parameters: torch.Tensor) -> float:
        """The held-out loss with these parameters, as the coordinator evaluates."""
        self.model.write(parameters)
        return held_out_loss(self.model, self.dataset).loss


class Gradients:
    """For the arm whose optimizer is another's: the mean gradient of each batch, clipped as LocalWork does."""

    def __init__(self, bench: Bench, name: str) -> None:
        self._bench, self._name, self._drawn = bench, name, 0
        bench.model.gradient_N.zero_()

    def step(self) -> int:
        """Leave the next batch's mean gradient in `model.gradient_N`; returns the tokens predicted."""
        bench, inner = self._bench, self._bench.spec.inner
        train = bench.dataset.train
        rows = draw(bench.spec.run.seed, 1, self._name, self._drawn, inner.batch, len(train))
        self._drawn += len(rows)
        gradient_N = bench.model.gradient_N.zero_()
        bench.model.loss(*train.batch(rows)).backward()
        tokens = sum(train.loss_tokens[row] for row in rows)
        gradient_N.mul_(1.0 / tokens)
        if inner.clip_norm is not None:
            gradient_N.mul_(torch.clamp(inner.clip_norm / (torch.linalg.vector_norm(gradient_N) + 1e-6), max=1.0))
        return tokens


class Pace:
    """Makes each step last as long as on a card of this speed, and notes how long the steps took."""

    def __init__(self, tokens_per_s: float) -> None:
        self._tokens_per_s = tokens_per_s
        self.tokens = 0
        self.busy_s = 0.0
        self.late_s = 0.0  # by how much steps took longer than they should: the machine is too slow

    def step(self, step: Callable[[], T], tokens_of: Callable[[T], int]) -> T:
        started = time.monotonic()
        result = step()
        tokens = tokens_of(result)
        left = started + tokens / self._tokens_per_s - time.monotonic()
        time.sleep(max(0.0, left))
        self.tokens += tokens
        self.late_s += max(0.0, -left)
        self.busy_s += time.monotonic() - started
        return result


def average(sent: Sequence[EncodedUpdate], clip: float) -> torch.Tensor:
    """What all peers read of the average of updates of the same weight, in a run of this `sync.clip`: flat fp32 [N]."""
    how, weights = aggregator(clip), [1] * len(sent)
    wire, sizes = sent[0].codec, chunk_sizes(sent[0].values, sent[0].chunk_values)
    parts = [average_chunk(wire, how, [item.chunks[i] for item in sent], weights, n) for i, n in enumerate(sizes)]
    return torch.cat([average_codec(wire).decode(part, n) for part, n in zip(parts, sizes, strict=True)])


def say(event: str, **values: Any) -> None:
    """One line of JSON on standard output, for the bench that started this process."""
    print(json.dumps({"event": event, "time": time.time(), **values}), flush=True)
