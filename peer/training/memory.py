"""How much memory a run needs: what a volunteer is told before anything is loaded. Needs no torch.

Of the trainable parameters there are, beside model, gradient and AdamW's moments, two copies all the time: the base,
and first the update, then the average, then the state that it has become, which takes the base's place as the state
before it. Gradients by a codec with error feedback keep one more; averages as they travelled take half of one at most.
The number of members does not matter. tests/test_memory.py and `scripts/bench memory` hold this
against real processes.

>>> shape = ModelShape(576, 30, 49152, 576, 192, 1536, gated=True, tied=True, experts=False)
>>> round(_activation_bytes(shape, tokens=2048) / 2**30, 1)
2.9
>>> round(_activation_bytes(shape, tokens=2048, recomputing=True) / 2**30, 1)
0.6
"""

from __future__ import annotations

from typing import Literal

from peer.training.model_shape import ModelShape
from protocol.run_spec import RunSpec

MomentsKind = Literal["fp32", "8bit"]  # how a member holds what its own AdamW remembers
MOMENTS_BYTES: dict[MomentsKind, float] = {"fp32": 8.0, "8bit": 2.04}  # a parameter: `eight_bit`
RUNTIME_BYTES = 1 << 29  # Python, torch, hivemind and its daemon on a CPU, measured: 0.4 GB; CUDA takes as much again
LOGITS_BYTES = (
    1 << 27
)  # in fp32 that go through the head at a time, see `head_loss`; their loss and gradient take as much
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
    working = activation_bytes(spec, sequences, recomputing, shape)
    averaging = state * spec.model.trainable
    return _weight_bytes(spec, shape) + int(held * spec.model.trainable) + working + averaging + RUNTIME_BYTES


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
    tokens = sequences * spec.data.sequence_length
    shape = shape or ModelShape.guessed(base_parameters(spec))
    lora, narrow = spec.method.kind == "lora", spec.method.base != "fp32"
    return _activation_bytes(shape, tokens, recomputing, frozen=lora, narrow=narrow)


def _activation_bytes(
    shape: ModelShape, tokens: int, recomputing: bool = False, *, frozen: bool = False, narrow: bool = False
) -> int:
    """What autograd keeps, and the most that is added to that on the way back: in the head, or in the last layer.

    Attention maps are not kept, by fused kernels. A layer keeps what goes into its norms and what comes out, queries,
    keys, values and what attention makes of them, and the MLP's inner values: gate, its activation, the other half and
    their product. Without a gate: before and after the activation.

    Args:
        frozen: weights have no gradient; a norm then keeps one value less, and only a frozen base can be narrow.
        narrow: weights are made wide when they are used, one at a time.
    """
    norms = (4 if frozen else 6) if shape.gated else 4
    inner = (4 if shape.gated else 2) * shape.inner
    layer = 4 * (norms * shape.width + 2 * (shape.queries + shape.keys) + inner)
    kept = 4 * shape.width * shape.layers + layer if recomputing else layer * shape.layers
    kept += 4 * 4 * shape.width  # the last norm, and the rows that predict something
    logits = 4 * shape.vocabulary * min(tokens, max(LOGITS_BYTES // (4 * shape.vocabulary), 1))
    gradients = 4 * (2 * shape.inner + 2 * shape.width) * tokens
    head, mlp = 3 * logits, gradients
    if narrow or not frozen:  # the wide weight, or its gradient
        head = max(head, 2 * logits + 4 * shape.embedding)
        mlp += 4 * shape.width * shape.inner
    return kept * tokens + max(head, mlp)


def _weight_bytes(spec: RunSpec, shape: ModelShape) -> int:
    """Linear layers in 4 bits with their scales (Dettmers et al. 2023, section 3.2), embedding and head then in bf16;
    or all of these in bf16, but not experts, which are no linear layers; the rest in fp32."""
    parameters = base_parameters(spec)
    adapter = 4 * (spec.model.parameters - parameters)
    large = min(shape.embedding * (1 if shape.tied else 2), parameters)
    if spec.method.base == "nf4":
        return int(0.52 * (parameters - large)) + 2 * large + adapter
    if spec.method.base == "bf16":
        wide = parameters - large - shape.layers * shape.attention if shape.experts else 0
        return 2 * parameters + 2 * max(wide, 0) + adapter
    return 4 * parameters + adapter
