"""What every section gets: shapes, a model, data, members of a run.

The model is a random Llama, written once by the first section that needs it; the data are random tokens, some much more
frequent than others, so that there is something to learn. Nothing is fetched.
"""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from peer.training import adapter, head_loss
from peer.training.data import Dataset, Sequences
from peer.training.device import let_go_of_memory
from peer.training.loading import load_causal_lm, on_device
from peer.training.model import TrainableModel, full_parameters, load_base
from peer.training.quiet import no_progress_bars
from peer.training.state import SharedState
from peer.training.work import LocalWork
from protocol.data_spec import PinnedData
from protocol.errors import PotluckError
from protocol.run_spec import InnerOptimizer, Method, OuterOptimizer, PinnedModel, Publish, RunSection, RunSpec, Sync
from scripts.gpu_check.tables import Row, failed

# what a card, its driver, torch and the libraries on it may raise: a row, and the next one is tried
FAILED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    PotluckError,
    RuntimeError,
    TypeError,
    ValueError,
)
PRECISIONS = ("bf16", "fp16", "fp32")


class NotHere(Exception):
    """Something optional is not on this machine: the row says which."""


def _by_chunks(model: TrainableModel, *, fused: bool) -> None:
    found = head_loss.find(model.model)
    if found is None:
        raise NotHere("not for this model")
    if fused and found.fused is None:
        raise NotHere("not installed: liger-kernel, or no CUDA")
    if not fused:
        found.fused = None
    model.compute_loss_by(found)


# What the model's loss can be computed by: name -> what makes a model use it. A new kernel is one line.
KERNELS: Mapping[str, Callable[[TrainableModel], None]] = {
    "in chunks": partial(_by_chunks, fused=False),
    "by Liger": partial(_by_chunks, fused=True),
    "plain": lambda model: model.compute_loss_by(partial(head_loss.plain, model.model)),
}


@dataclass(frozen=True)
class Shape:
    """A Llama and a batch.

    Args:
        sequence: tokens.
        batch: sequences in a step.
        steps: measured, after two that warm up.
    """

    width: int
    layers: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int
    sequence: int
    batch: int
    steps: int

    @property
    def name(self) -> str:
        return f"{self.width}x{self.layers}"


LARGE = Shape(896, 24, 4864, 14, 2, 151_936, 1024, 4, 6)  # 0.49 B parameters, as Qwen2.5-0.5B has them
MIDDLE = Shape(512, 8, 1408, 8, 8, 32_000, 256, 4, 6)  # 42 M: what a CPU replays in seconds
TINY = Shape(32, 2, 64, 2, 2, 512, 32, 4, 2)


@dataclass(frozen=True)
class Given:
    """What a section gets.

    Args:
        device: to measure.
        shape: of the model.
        replayed: of the model that CPUs take part in.
        folder: that all sections share.
    """

    device: torch.device
    shape: Shape
    replayed: Shape
    folder: Path

    @classmethod
    def make(cls, device: str | None, small: bool, folder: str) -> Given:
        """For this process.

        Args:
            device: cpu or cuda; None: cuda where there is one.
        """
        kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
        chosen = torch.device("cuda", 0) if kind == "cuda" else torch.device(kind)  # some calls want its number
        return cls(chosen, TINY if small else LARGE, TINY if small else MIDDLE, Path(folder))

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def model_folder(self, shape: Shape | None = None) -> Path:
        """The base model, written when it is first asked for."""
        shape = shape or self.shape
        folder = self.folder / shape.name
        if not (folder / "config.json").exists():
            torch.manual_seed(0)
            with self.device:
                made = LlamaForCausalLM(llama(shape))
            with no_progress_bars():
                made.save_pretrained(self.folder / "half")
            (self.folder / "half").rename(folder)
            del made
            let_go_of_memory(self.device)
        return folder

    def model(
        self, kind: str = "full", base: str = "fp32", shape: Shape | None = None, device: torch.device | None = None
    ) -> TrainableModel:
        """As a member of a run loads it. Raises: NotHere: what that needs is not installed."""
        folder, device = self.model_folder(shape), device or self.device
        if kind == "full":
            there = importlib.util.find_spec("accelerate") is not None  # transformers needs it to load onto a device
            model = load_causal_lm(folder, on_device(device) if there else None)
            return TrainableModel(model, full_parameters(model), None, device)
        need(*packages(kind, base))
        how = method(kind, base)
        adapted = adapter.add_lora(load_base(how, folder, device), how, 1, "random")
        return TrainableModel(adapted, adapter.adapter_parameters(adapted), None, device)


def llama(shape: Shape) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=2 * shape.sequence,
        tie_word_embeddings=True,
    )


def method(kind: str, base: str) -> Method:
    return Method(kind="full") if kind == "full" else Method(kind="lora", rank=16, alpha=32.0, base=base)


def sequences(shape: Shape, count: int = 256) -> Sequences:
    """Random tokens, the n-th as frequent as 1 / n."""
    draw = torch.Generator().manual_seed(0)
    known = min(shape.vocabulary, 4096)
    weights = 1.0 / torch.arange(1, known + 1)
    tokens_ST = torch.multinomial(weights, count * shape.sequence, True, generator=draw).view(count, shape.sequence)
    loss_ST = torch.ones_like(tokens_ST, dtype=torch.bool)
    return Sequences(tokens_ST.to(torch.int32), loss_ST, (shape.sequence,) * count)


def spec_of(model: TrainableModel, shape: Shape, how: Method, **sections: Mapping[str, Any]) -> RunSpec:
    """Of a run that trains this model.

    Args:
        sections: what of `sync`, `inner` and `outer` is to be other than here.
    """
    inner = {"lr": 3e-4, "micro_batch": shape.batch, "batch": shape.batch} | dict(sections.get("inner", {}))
    sync = {"method": "diloco", "round_tokens": 1_000_000, "wire": "fp16"} | dict(sections.get("sync", {}))
    digest, license = "0" * 64, "CC0-1.0"
    return RunSpec(
        run=RunSection(name="gpu-check", seed=1),
        model=PinnedModel(
            digest=digest,
            name="random",
            license=license,
            parameters=model.parameters_total,
            trainable=model.parameters_trainable,
        ),
        data=PinnedData(license=license, sequence_length=shape.sequence, digest=digest, size_bytes=1),
        method=how,
        sync=Sync(**sync),
        inner=InnerOptimizer(**inner),
        outer=OuterOptimizer(**sections.get("outer", {})),
        publish=Publish(),
    )


def member(
    given: Given,
    kind: str = "full",
    base: str = "fp32",
    precision: str = "fp32",
    *,
    shape: Shape | None = None,
    device: torch.device | None = None,
    **sections: Mapping[str, Any],
) -> LocalWork:
    """One member's work, at the beginning of round 1."""
    shape = shape or given.shape
    model = given.model(kind, base, shape, device)
    spec = spec_of(model, shape, method(kind, base), **sections)
    dataset = Dataset(sequences(shape), lambda: sequences(shape, 1))
    work = LocalWork(model, dataset, spec, "member", wanted=precision)
    work.begin(SharedState(0, model.names_shapes, model.read()))
    return work


def packages(kind: str, base: str) -> tuple[str, ...]:
    """What such a model needs beside torch and transformers."""
    return () if kind == "full" else ("peft", "accelerate", *(("bitsandbytes",) if base == "nf4" else ()))


def need(*packages: str) -> None:
    """Raises: NotHere: one of these is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise NotHere(f"not installed: {', '.join(missing)}")


def missing(label: str, *packages: str) -> Row | None:
    """One row instead of many, where a package is not installed."""
    try:
        need(*packages)
    except NotHere as error:
        return Row(label, {}, str(error))
    return None


def attempt(given: Given, label: str, measure: Callable[[], Mapping[str, Any]]) -> Row:
    """A row, whatever becomes of it; what a failure has left on the card is given back."""
    try:
        return Row(label, measure())
    except NotHere as error:
        return Row(label, {}, str(error))
    except FAILED as error:
        row = Row(label, {}, failed(error))
    finally:
        gc.collect()
    let_go_of_memory(given.device)
    return row
