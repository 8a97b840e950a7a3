"""How much memory a run needs: what a volunteer is told before anything is loaded. Needs no torch.

>>> round(_activation_bytes(135_000_000, tokens=2048) / 2**30, 1)
3.6
"""

from __future__ import annotations

from protocol.run_spec import RunSpec

_RUNTIME_BYTES = 1 << 30  # Python, torch, hivemind and its daemon, measured: 0.75 to 0.95 GB
_VOCABULARY = 50_000  # a guess, for the logits


def memory_needed_bytes(spec: RunSpec) -> int:
    """A rough upper estimate of what training needs in all, device and main memory together.

    fp32 weights; for the trainable ones a gradient, AdamW's two moments, the base, the update and the average;
    activations of one micro-batch; the runtime.
    """
    trainable_copies = 6
    weights = 4 * spec.model.parameters + 4 * trainable_copies * spec.model.trainable
    return weights + activation_bytes(spec, spec.inner.micro_batch) + _RUNTIME_BYTES


def activation_bytes(spec: RunSpec, sequences: int) -> int:
    """What a forward and backward pass over that many sequences holds, beside weights and gradients; roughly."""
    return _activation_bytes(spec.model.parameters, sequences * spec.data.sequence_length)


def _activation_bytes(parameters: int, tokens: int) -> int:
    """Of a decoder with the usual proportions: width 64 times the depth, 12 * depth * width**2 parameters.

    68 bytes for each token, layer and unit of width (Korthikanti et al. 2022, section 4.1: 34 at half precision, without
    attention maps, which fused kernels do not keep), half as much again for gated MLPs, and the logits with their
    gradient.
    """
    depth = max(1.0, (parameters / (12 * 64**2)) ** (1 / 3))
    per_token = 1.5 * 68 * depth * 64 * depth + 3 * 4 * min(_VOCABULARY, parameters // 64)
    return int(per_token * tokens)
