"""Trades time for memory: a layer's activations are computed again in the backward pass instead of being kept.

What stays of each layer is its input (Chen et al. 2016, "Training deep nets with sublinear memory cost"); a pass takes
about a third longer. The gradient is the same, for the same operations run on the same values. `passes` switches it on
where not even one sequence fits.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


def recompute_layers(model: nn.Module) -> bool:
    """Make every layer of a transformers model recompute; whether it has any that can.

    transformers' own switch works in training mode alone, in which dropout is on. So the layers' `forward` is wrapped
    here, once; without gradients (evaluation, generation) the wrapping does nothing.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        # nothing here draws random numbers, so their state need not be kept; autocast's is
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    return bool(layers)
