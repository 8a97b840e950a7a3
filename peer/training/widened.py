"""Layers whose frozen weights are held in bf16, and which compute as those held in fp32 do.

A layer makes its weight as wide as what comes, or as autocast wants it, when it is used, and again in the backward
pass. `bf16` and `nf4` prepare their models with it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional
from transformers.pytorch_utils import Conv1D


def widen_linear(module: Any) -> None:
    """Make a frozen linear layer compute in the precision of what comes, or of autocast."""
    module.forward = partial(_linear, module)


def widen_embedding(module: Any) -> None:
    """Make a frozen embedding give fp32, scaled as in fp32 where it is scaled."""
    if type(module) is torch.nn.Embedding:
        module.register_forward_hook(lambda module, inputs, output: output.float())
        return
    few = copy.copy(module)  # the same, on a table of just the rows that are asked for
    few._parameters = {}
    module.forward = partial(_look_up, module.weight, few)


def _look_up(weight: torch.Tensor, few: Any, ids: torch.Tensor) -> Any:
    few._parameters = {"weight": weight[ids.flatten()].float()}
    return few(torch.arange(ids.numel(), device=ids.device).view(ids.shape))


def _linear(module: Any, values: torch.Tensor) -> torch.Tensor:
    kind = values.device.type
    if torch.is_autocast_enabled(kind):
        values = values.to(torch.get_autocast_dtype(kind))
    weight = module.weight.T if isinstance(module, Conv1D) else module.weight
    bias = None if module.bias is None else module.bias.to(values.dtype)
    compute: Callable[..., torch.Tensor] = _Widened.apply
    return compute(values, weight, bias)


class _Widened(torch.autograd.Function):
    """values @ weight.T + bias of a frozen layer; autograd's own would keep the wide copy of each weight."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return functional.linear(values, weight.to(values.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return gradients[0] @ weight.to(gradients[0].dtype), None, None
