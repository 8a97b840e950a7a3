"""How fast a run would be here, from some passes of one decoder layer and the head of a model of its shape.

    pass     layers * (a layer forward and backward) + the head's
    tokens/s = tokens of a pass / (pass + its part of an optimizer step)

What one architecture has and another has not is left out, and so is reading the data: an estimate.
`scripts/bench doctor` holds it against real training.

Legend: B sequences, T tokens in each, D hidden size, V vocabulary, R rows that go through the head at once.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, linear, rms_norm, scaled_dot_product_attention, silu

from peer.training.device import Stopwatch, is_out_of_memory
from peer.training.memory import LOGITS_BYTES
from peer.training.micro_batch import PASSES, MicroBatch
from peer.training.model_shape import ModelShape
from peer.training.precision import Card, Precision, autocast, choose
from peer.training.schedule_free import make_optimizer
from protocol.errors import InputError, PotluckError
from protocol.run_spec import RunSpec

logger = logging.getLogger(__name__)

LONG_S = 0.7  # a longer pass is measured on fewer tokens
FEWEST_TOKENS = 64
OPTIMIZED = 1 << 22  # values of a measured optimizer step
AGAIN = 4 / 3  # a pass whose forward half is computed twice


class NotMeasured(PotluckError):
    """How fast it would be here cannot be found out."""


@dataclass(frozen=True)
class Speed:
    """What was found."""

    tokens_per_s: float
    sequences: int  # in a pass
    precision: Precision


class Measurement:
    """Measures on one device, for one run.

    Args:
        shape: of the run's model.
        sequences: that fit into memory; at least 1.
        recomputing: activations are computed twice.
        wanted: the owner's precision, one of `precision.WANTED`.
        limit_s: it stops looking for a better size after that.
    """

    def __init__(
        self,
        spec: RunSpec,
        shape: ModelShape,
        device: torch.device,
        sequences: int,
        *,
        recomputing: bool = False,
        wanted: str = "auto",
        limit_s: float = 10.0,
    ) -> None:
        self._spec, self._shape, self._device, self._limit_s = spec, shape, device, limit_s
        self._fitting, self._recomputing, self._wanted = max(sequences, 1), recomputing, wanted
        self._layer = _Layer(shape, device, rank=spec.method.rank if spec.method.kind == "lora" else 0)
        self._head_VD = torch.randn(shape.vocabulary, shape.width, device=device) / math.sqrt(shape.width)
        self._head_VD.requires_grad_(spec.method.kind == "full")

    def run(self) -> Speed:
        """Raises: InputError: memory runs out. NotMeasured: the device fails otherwise."""
        try:
            return self._run()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                why = str(error).partition("\n")[0].partition(". ")[0][:200]  # torch goes on for a page
                raise NotMeasured(
                    f"torch fails over one layer of this run's model: {why}",
                    "update the card's driver, and install the torch for it, as pytorch.org says; or give --device cpu",
                ) from error
        raise InputError(
            "memory ran out over one layer of this run's model", "close other programs, or join a smaller run"
        )

    def _run(self) -> Speed:
        until = time.monotonic() + self._limit_s
        inner = self._spec.inner
        precision = choose(self._wanted, Card.of(self._device), lambda used: self._precision_s(used))
        search = MicroBatch(inner.micro_batch, has_room=lambda size: size <= self._fitting and time.monotonic() < until)
        best: dict[int, float] = {}
        while True:
            size = search.size
            best[size] = min(self._pass_s(size, precision), best.get(size, math.inf))
            if not search.searching:
                break
            search.passed(size, best[size])
        a_step_s = self._optimizer_s() / inner.batch
        tokens = self._spec.data.sequence_length
        return Speed(tokens / (best[search.size] / search.size + a_step_s), search.size, precision)

    def _precision_s(self, used: Precision) -> float:
        try:
            return min(self._pass_s(1, used) for _ in range(PASSES))
        except (RuntimeError, TypeError) as error:  # what torch says where it has no such kernels
            logger.info("%s does not do here: %s", used, str(error).partition("\n")[0][:200])
            return math.inf

    def _pass_s(self, sequences: int, precision: Precision) -> float:
        """Seconds of a pass of the whole model over so many sequences."""
        tokens = self._spec.data.sequence_length
        layer_s = self._scaled(sequences, tokens, lambda b, t: self._layer_s(b, t, precision))
        rows = max(1, LOGITS_BYTES // (4 * self._shape.vocabulary))
        head_s = self._scaled(1, min(sequences * tokens, rows), lambda b, t: self._head_s(b * t, precision))
        chunks = sequences * tokens / min(sequences * tokens, rows)
        again = AGAIN if chunks > 1 else 1.0  # the logits of more than one chunk are computed twice
        return self._shape.layers * layer_s * (AGAIN if self._recomputing else 1.0) + chunks * again * head_s

    def _scaled(self, sequences: int, tokens: int, measure: Callable[[int, int], float]) -> float:
        """Seconds for so many; of what would be long, a part is measured."""
        few = min(tokens, FEWEST_TOKENS)
        few_s = min(measure(1, few), measure(1, few))  # the first one warms up
        about_s = few_s * sequences * tokens / few
        if about_s <= LONG_S:
            return measure(sequences, tokens)
        part = min(max(few, int(tokens * sequences * LONG_S / about_s)), tokens)
        return measure(1, part) * sequences * tokens / part

    def _layer_s(self, sequences: int, tokens: int, precision: Precision) -> float:
        hidden_BTD = torch.randn(sequences, tokens, self._shape.width, device=self._device, requires_grad=True)
        clock = Stopwatch(self._device, True)
        with autocast(self._device, precision):
            out_BTD = self._layer(hidden_BTD)
        out_BTD.backward(torch.ones_like(out_BTD))
        return clock.seconds()

    def _head_s(self, rows: int, precision: Precision) -> float:
        hidden_RD = torch.randn(rows, self._shape.width, device=self._device, requires_grad=True)
        targets_R = torch.zeros(rows, dtype=torch.long, device=self._device)
        clock = Stopwatch(self._device, True)
        with autocast(self._device, precision):
            logits_RV = linear(hidden_RD, self._head_VD)
        cross_entropy(logits_RV.float(), targets_R, reduction="sum").backward()
        return clock.seconds()

    def _optimizer_s(self) -> float:
        """Seconds of an optimizer step on all that is trained; 0 where that is the shared state's, once a round."""
        trained = self._spec.model.trainable
        values = min(trained, OPTIMIZED)
        flat_N, gradient_N = (torch.zeros(values, device=self._device) for _ in range(2))
        optimizer = make_optimizer(self._spec, flat_N, gradient_N)
        if optimizer is None:
            return 0.0
        times = []
        for _ in range(2):
            clock = Stopwatch(self._device, True)
            optimizer.step(1.0, self._spec.inner.lr, 1)
            times.append(clock.seconds())
        return min(times) * trained / values


def usual_shape(shape: ModelShape | None, parameters: int) -> ModelShape:
    """The shape if a layer can be made of it, else a guess: a config.json from outside may say anything."""
    if shape is None or shape.queries % shape.keys or _head_size(shape.queries, shape.keys) % 2:
        return ModelShape.guessed(parameters)
    return shape


def layer_bytes(shape: ModelShape) -> int:
    """What is measured, in memory: weights of a layer and of the head, gradients, and copies in another precision."""
    mlp = (3 if shape.gated else 2) * shape.width * shape.inner
    return 12 * (shape.attention + mlp + shape.embedding)


class _Layer(torch.nn.Module):
    """A decoder layer of that shape, with random weights; with a rank, frozen, and an adapter on each matrix."""

    def __init__(self, shape: ModelShape, device: torch.device, rank: int) -> None:
        super().__init__()
        self._heads = shape.queries // _head_size(shape.queries, shape.keys)
        self._key_heads = shape.keys * self._heads // shape.queries
        sizes = {"q": (shape.queries, shape.width), "k": (shape.keys, shape.width), "v": (shape.keys, shape.width)}
        sizes |= {"o": (shape.width, shape.queries), "up": (shape.inner, shape.width)}
        sizes |= {"down": (shape.width, shape.inner)}
        if shape.gated:
            sizes["gate"] = (shape.inner, shape.width)
        self._gated, self._rank, self._head_size = shape.gated, rank, shape.queries // self._heads
        self.norm_D = torch.nn.Parameter(torch.ones(shape.width, device=device), requires_grad=not rank)
        for name, (out, into) in sizes.items():
            weight = torch.randn(out, into, device=device) / math.sqrt(into)
            self.register_parameter(name, torch.nn.Parameter(weight, requires_grad=not rank))
            if rank:
                self.register_parameter(f"{name}_a", torch.nn.Parameter(torch.zeros(rank, into, device=device)))
                self.register_parameter(f"{name}_b", torch.nn.Parameter(torch.zeros(out, rank, device=device)))

    def forward(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        into_BTD = rms_norm(hidden_BTD, hidden_BTD.shape[-1:], self.norm_D)
        queries, keys, values = (
            self._times(name, into_BTD).unflatten(-1, (heads, -1)).transpose(1, 2)
            for name, heads in (("q", self._heads), ("k", self._key_heads), ("v", self._key_heads))
        )
        turns_TC = self._turns(hidden_BTD)
        queries, keys = _turned(queries, turns_TC), _turned(keys, turns_TC)
        groups = self._heads // self._key_heads
        keys, values = (item.repeat_interleave(groups, dim=1) for item in (keys, values))
        mixed = scaled_dot_product_attention(queries, keys, values, is_causal=True)
        hidden_BTD = hidden_BTD + self._times("o", mixed.transpose(1, 2).flatten(2))
        into_BTD = rms_norm(hidden_BTD, hidden_BTD.shape[-1:], self.norm_D)
        inner = self._times("up", into_BTD)
        inner = silu(self._times("gate", into_BTD)) * inner if self._gated else silu(inner)
        return hidden_BTD + self._times("down", inner)

    def _turns(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """What rotary positions multiply by, [T, C]: C values of a head."""
        places_T = torch.arange(hidden_BTD.shape[1], device=hidden_BTD.device, dtype=torch.float32)
        return torch.cos(places_T[:, None] * torch.ones(self._head_size, device=hidden_BTD.device))

    def _times(self, name: str, of: torch.Tensor) -> torch.Tensor:
        out = linear(of, self.get_parameter(name))
        if self._rank:
            out = out + linear(linear(of, self.get_parameter(f"{name}_a")), self.get_parameter(f"{name}_b"))
        return out


def _turned(heads_BHTC: torch.Tensor, turns_TC: torch.Tensor) -> torch.Tensor:
    """As rotary positions cost, not as they compute."""
    first, second = heads_BHTC.chunk(2, dim=-1)
    return heads_BHTC * turns_TC + torch.cat((-second, first), dim=-1) * turns_TC


def _head_size(queries: int, keys: int) -> int:
    """Of an attention head: the usual size that both can be cut into.

    >>> _head_size(576, 192), _head_size(4096, 1024), _head_size(32, 32)
    (64, 128, 32)
    """
    cut = [size for size in (64, 128) if not queries % size and not keys % size]
    sizes = [size for size in cut if not (queries // size) % (keys // size)]
    return sizes[-1] if sizes else math.gcd(queries, keys)
