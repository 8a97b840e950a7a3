"""A pass that ends in the middle: at the next layer, forward or backward, when somebody asks for it.

The owner's pause must not wait for a pass of many seconds. What the pass had done is lost; `passes` says whether the
gradient holds a part of it, as after one that ran out of memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


class Interrupted(Exception):
    """Raised inside a pass; caught by `passes`, goes no further."""


def interrupt_layers(model: nn.Module, is_asked: Callable[[], bool]) -> None:
    """Look before each layer of every later pass, and on the way back, whether it is asked to end.

    Raises:
        Interrupted: in these passes.
    """
    layers: list[nn.Module] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers or [module for module in model.modules() if isinstance(module, nn.Linear)]:
        layer.register_forward_pre_hook(lambda module, arguments: _look(is_asked))
        layer.register_forward_hook(lambda module, arguments, output: _watch(output, is_asked))


def _look(is_asked: Callable[[], bool]) -> None:
    if is_asked():
        raise Interrupted


def _watch(output: Any, is_asked: Callable[[], bool]) -> None:
    """Look again when the gradient comes to this layer."""
    first = output[0] if isinstance(output, tuple) else output
    if isinstance(first, torch.Tensor) and first.requires_grad:
        first.register_hook(lambda gradient: _look(is_asked))
