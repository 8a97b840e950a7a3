"""How much memory a run needs: what a volunteer is told before anything is loaded. Needs no torch.

Of the trainable parameters there are, beside model, gradient and AdamW's moments, two copies all the time: the base,
and first the update, then the average, then the state that it has become, which takes the base's place as the state
before it. Gradients by a codec with error feedback keep one more; averages as they travelled take half of one at most.
The number of members does not matter. tests/test_memory.py holds this against real processes.

>>> round(_activation_bytes(135_000_000, tokens=2048) / 2**30, 1)
5.1
>>> round(_activation_bytes(135_000_000, tokens=2048, recomputing=True) / 2**30, 1)
2.9
"""

from __future__ import annotations

from protocol.run_spec import RunSpec

_RUNTIME_BYTES = 1 << 29  # Python, torch, hivemind and its daemon on a CPU, measured: 0.4 GB; CUDA takes as much again
_VOCABULARY_MOST = 100_000  # a guess, for the logits: large models have about this many
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


def memory_needed_bytes(spec: RunSpec, *, reduce_only: bool = False) -> int:
    """A rough upper estimate of what taking part needs at least, device and main memory together.

    fp32 weights, or the base in 4 bits; for the trainable ones what the module's docstring lists; activations of one
    sequence, for what fits on top of that goes into a larger micro-batch (with a base in 4 bits recomputed, for whoever
    needs the one needs the other); the runtime. A peer that only reduces holds the states and the averages.
    """
    diloco = spec.sync.method == "diloco"
    outer_vectors = (1 if spec.outer.momentum else 0) if diloco else 2
    copies = 2 * (1 + outer_vectors)
    travelling = _WIRE_BYTES[spec.sync.wire] + _KEPT_BYTES
    if reduce_only:
        return int((4 * copies + travelling) * spec.model.trainable) + _RUNTIME_BYTES
    copies += 1 + (2 if diloco else 0)  # gradient, moments
    residual = _RESIDUAL_BYTES if not diloco and spec.sync.wire in _WITH_RESIDUAL else 0.0
    trainable_bytes = 4 * copies + travelling + residual
    nf4 = spec.method.base == "nf4"
    weights = _nf4_bytes(spec.model.parameters) if nf4 else 4 * spec.model.parameters
    weights += int(trainable_bytes * spec.model.trainable)
    return weights + activation_bytes(spec, 1, recomputing=nf4) + _RUNTIME_BYTES


def update_bytes(spec: RunSpec) -> int:
    """About what the update of one round comes to as it travels."""
    return max(int(_WIRE_BYTES[spec.sync.wire] * spec.model.trainable / spec.sync.fragments), 1)


def activation_bytes(spec: RunSpec, sequences: int, recomputing: bool = False) -> int:
    """What a forward and backward pass over that many sequences holds beside weights and gradients, roughly.

    Args:
        recomputing: whether layers keep only their input, and the rest is of one layer at a time.
    """
    tokens = sequences * spec.data.sequence_length
    return _activation_bytes(spec.model.parameters, tokens, recomputing, spec.method.kind == "lora")


def _activation_bytes(parameters: int, tokens: int, recomputing: bool = False, frozen: bool = False) -> int:
    """Of a decoder with the usual proportions: width 64 times the depth, 12 * depth * width**2 parameters.

    68 bytes for each token, layer and unit of width (Korthikanti et al. 2022, section 4.1: 34 at half precision,
    without attention maps, which fused kernels do not keep), half as much again for gated MLPs; the logits with their
    softmax and gradient; and, if it is not frozen, the gradient of the largest matrix before it is added, the
    embedding's.
    """
    depth, width, vocabulary = _proportions(parameters)
    layers = 1.5 * 68 * width + 4 * depth * width if recomputing else 1.5 * 68 * depth * width
    per_token = layers + 3 * 4 * vocabulary
    return int(per_token * tokens + (0 if frozen else 4 * vocabulary * width))


def _nf4_bytes(parameters: int) -> int:
    """Linear layers in 4 bits with their scales (Dettmers et al. 2023, section 3.2); embedding and head in bf16."""
    _, width, vocabulary = _proportions(parameters)
    bf16 = min(int(2 * vocabulary * width), parameters)
    return int(0.52 * (parameters - bf16)) + 2 * bf16


def _proportions(parameters: int) -> tuple[float, float, int]:
    """(depth, width, vocabulary), guessed."""
    depth = max(1.0, (parameters / (12 * 64**2)) ** (1 / 3))
    return depth, 64 * depth, min(_VOCABULARY_MOST, parameters // 1000)
