"""How much memory a run needs: what a volunteer is told before anything is loaded. Needs no torch.

Of the trainable parameters there are, beside model, gradient and AdamW's moments, two copies all the time: the base,
and first the update, then the average, then the state that it has become, which takes the base's place as the state
before it. Gradients by a codec with error feedback keep one more; averages as they travelled take half of one at most.
The number of members does not matter. All pages of a process count, its libraries' and mapped weights' too: that is
what a volunteer sees. `scripts/bench shapes` and tests/test_memory.py hold this against real processes.

>>> shape = ModelShape(576, 30, 49152, 576, 192, 1536, gated=True, tied=True)
>>> kept, most = (_Pass(shape, length=2048, sequences=1, trained=True).bytes(how) / 2**30 for how in (False, True))
>>> round(kept, 1), round(most, 1)
(2.9, 0.6)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from peer.training.model_shape import ModelShape
from protocol.data_spec import DataSetRules
from protocol.run_spec import RunSpec

MomentsKind = Literal["fp32", "8bit"]  # how a member holds what its own AdamW remembers
MOMENTS_BYTES: dict[MomentsKind, float] = {"fp32": 8.0, "8bit": 2.04}  # a parameter: `eight_bit`
# on a CPU, measured: Python with torch, transformers and hivemind, and their libraries' pages, 485 MiB; hivemind's
# daemon 65; threads of the swarm and of the disk, and what they leave, the rest. CUDA takes as much again
RUNTIME_BYTES = 620 << 20
# of what a pass keeps, holes that malloc does not use again, measured; with an adapter more, whose small values lie
# between large ones, the less so the larger those are
_LOST, _LOST_ADAPTER, _SMALL_BYTES = 0.25, 0.25, 1 << 20
# of logits in fp32 that go through the head at a time, see `head_loss`; their loss and gradient take as much each
LOGITS_BYTES = 1 << 27
_RESIDUAL_BYTES = 4.0  # a parameter: what gradients that travel by a codec with error feedback have left out
_WITH_RESIDUAL = ("int4", "int2", "topk")
_KEPT_BYTES = 2.0  # a parameter: the last averages, see `peer.sync.shelf.Position.keep_average`
_WIRE_BYTES = {
    "fp32": 4.0,
    "fp16": 2.0,
    "int8": 1.02,
    "int4": 0.54,
    "int2": 0.27,
    "topk": 0.04,
}  # a parameter


def memory_needed_bytes(
    spec: RunSpec,
    shape: ModelShape | None = None,
    *,
    reduce_only: bool = False,
    sequences: int = 1,
    recomputing: bool | None = None,
    moments: MomentsKind = "fp32",
) -> int:
    """About what taking part needs at least, device and main memory together, with passes in fp32.

    The weights, the base in fewer bits; for the trainable ones what the module's docstring lists; activations of one
    sequence, for what fits on top of that goes into a larger micro-batch; the runtime. The state before
    this one stays while it works. A peer that only reduces holds the states and the averages.

    Args:
        shape: of the model; None: guessed from its number of parameters.
        sequences: in a pass.
        recomputing: None: with a base in 4 bits, for whoever needs the one needs the other.
        moments: as this member wants to hold them.
    """
    diloco = spec.sync.method == "diloco"
    state = 4 * (1 + ((1 if spec.outer.momentum else 0) if diloco else 2))  # bytes a parameter
    travelling = _WIRE_BYTES[spec.sync.wire] + _KEPT_BYTES
    if reduce_only:
        return int((2 * state + travelling) * spec.model.trainable) + RUNTIME_BYTES
    residual = _RESIDUAL_BYTES if not diloco and spec.sync.wire in _WITH_RESIDUAL else 0.0
    held = state + 4 + (MOMENTS_BYTES[moments] if diloco else 0) + travelling + residual  # and gradient
    shape = shape or ModelShape.guessed(base_parameters(spec))
    recomputing = spec.method.base == "nf4" if recomputing is None else recomputing
    of = _Pass.of(spec, shape, sequences)
    working = of.bytes(recomputing) + int(of.lost * of.kept(recomputing))
    averaging = state * spec.model.trainable
    most = working + averaging if spec.sync.overlap else max(working, averaging)
    return _weight_bytes(spec, shape) + int(held * spec.model.trainable) + most + RUNTIME_BYTES


def device_needed_bytes(
    spec: RunSpec,
    shape: ModelShape | None = None,
    *,
    sequences: int = 1,
    recomputing: bool = False,
    moments: MomentsKind = "fp32",
) -> int:
    """About what a card with memory of its own must have: weights, gradients, moments and activations, and its runtime.

    The other copies of the shared state lie in main memory. Arguments as for `memory_needed_bytes`.
    """
    shape = shape or ModelShape.guessed(base_parameters(spec))
    held = 4 + (MOMENTS_BYTES[moments] if spec.sync.method == "diloco" else 0)  # and gradient
    working = activation_bytes(spec, sequences, recomputing, shape)
    return _weight_bytes(spec, shape) + int(held * spec.model.trainable) + working + RUNTIME_BYTES


def base_parameters(spec: RunSpec) -> int:
    """Of the model without an adapter."""
    return spec.model.parameters - (spec.model.trainable if spec.method.kind == "lora" else 0)


def update_bytes(spec: RunSpec) -> int:
    """About what the update of one round comes to as it travels."""
    return max(int(_WIRE_BYTES[spec.sync.wire] * spec.model.trainable / spec.sync.fragments), 1)


def activation_bytes(spec: RunSpec, sequences: int, recomputing: bool = False, shape: ModelShape | None = None) -> int:
    """What a forward and backward pass over that many sequences holds beside weights and gradients, in fp32.

    Args:
        recomputing: whether layers keep only their input, and the rest is of one layer at a time.
        shape: as for `memory_needed_bytes`.
    """
    return _Pass.of(spec, shape or ModelShape.guessed(base_parameters(spec)), sequences).bytes(recomputing)


@dataclass(frozen=True)
class _Pass:
    """Forward and back over some sequences."""

    shape: ModelShape
    length: int  # of a sequence, tokens
    sequences: int
    trained: bool  # all weights; or just an adapter's
    narrow: bool = False  # weights are made wide when they are used, one at a time
    apart: bool = False  # documents that share a sequence do not see each other
    merged: int = 0  # values of a layer's experts, where an adapter is added to all of them

    @classmethod
    def of(cls, spec: RunSpec, shape: ModelShape, sequences: int) -> _Pass:
        lora, data = spec.method.kind == "lora", spec.data
        return cls(
            shape, data.sequence_length, sequences, trained=not lora, narrow=spec.method.base != "fp32",
            apart=isinstance(data, DataSetRules) and data.documents_apart,
            merged=_expert_values(spec, shape) // shape.layers if lora and shape.kind.merges_experts else 0,
        )  # fmt: skip

    def kept(self, recomputing: bool) -> int:
        """What autograd keeps, bytes. Recomputing: what goes into each layer, and all of one."""
        shape, tokens = self.shape, self.sequences * self.length
        masked = self.apart or 0 < shape.window < self.length
        layer = 4 * tokens * shape.kept(self.length, trained=self.trained, masked=masked) + 4 * self.merged
        last = 4 * tokens * 4 * shape.width  # the last norm, and the rows that predict something
        return last + (4 * tokens * shape.width * shape.layers + layer if recomputing else layer * shape.layers)

    @property
    def lost(self) -> float:
        """Of what is kept, how much is lost beside it."""
        hidden = 4 * self.sequences * self.length * self.shape.width
        return _LOST + (0.0 if self.trained else _LOST_ADAPTER * min(1.0, _SMALL_BYTES / hidden))

    def bytes(self, recomputing: bool) -> int:
        """The most at a time: on the way back something is added to what is kept, in the head or in the last layer."""
        shape, tokens = self.shape, self.sequences * self.length
        logits = 4 * shape.vocabulary * min(tokens, max(LOGITS_BYTES // (4 * shape.vocabulary), 1))
        capped = 1 if shape.capped else 0
        head, mlp = (3 + capped) * logits, 4 * (2 * shape.inner + 2 * shape.width) * tokens
        if self.narrow or self.trained:  # the wide weight, or its gradient
            head = max(head, (2 + capped) * logits + 4 * shape.embedding)
            mlp += 4 * shape.width * shape.inner
        return self.kept(recomputing) + max(head, mlp)


def _expert_values(spec: RunSpec, shape: ModelShape) -> int:
    """Of a mixture's experts, about: all that is neither attention nor embedding."""
    if not shape.experts:
        return 0
    embedding = shape.embedding * (1 if shape.tied else 2)
    return max(base_parameters(spec) - embedding - shape.layers * shape.attention, 0)


def _weight_bytes(spec: RunSpec, shape: ModelShape) -> int:
    """Linear layers in 4 bits with their scales (Dettmers et al. 2023, section 3.2), embedding and head then in bf16;
    or all of these in bf16, but not experts, which are no linear layers; the rest in fp32."""
    parameters = base_parameters(spec)
    adapter = 4 * (spec.model.parameters - parameters)
    large = min(shape.embedding * (1 if shape.tied else 2), parameters)
    if spec.method.base == "nf4":
        return int(0.52 * (parameters - large)) + 2 * large + adapter
    if spec.method.base == "bf16":
        return 2 * parameters + 2 * _expert_values(spec, shape) + adapter
    return 4 * parameters + adapter
