"""Averages updates so that every machine gets the same bits.

A reducer calls this for its part of the updates. Each product and each sum is rounded on its own and taken in the order
in which the parts are given, so the result depends neither on threads nor on the processor.

    >>> weighted_mean([torch.tensor([1.0]), torch.tensor([4.0])], [2, 1])
    tensor([2.])
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from protocol.errors import FormatError


def weighted_mean(parts: Sequence[torch.Tensor], weights: Sequence[int]) -> torch.Tensor:
    """sum(weight_i * part_i) / sum(weight_i).

    Args:
        parts: fp32, all of one shape, in group order.
        weights: positive integers, one a part.

    Returns:
        fp32, of the same shape; never one of `parts` itself.

    Raises:
        FormatError: no parts, shapes or counts that differ, another dtype, or a weight that is not positive.
    """
    _check(parts, weights)
    total = sum(weights)
    mean = torch.mul(parts[0], fp32(weights[0] / total))
    scaled = torch.empty_like(mean)
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        torch.mul(part, fp32(weight / total), out=scaled)  # apart from the sum: torch.add(alpha=) may fuse the two
        torch.add(mean, scaled, out=mean)
    return mean


def senders_mean(parts: Sequence[torch.Tensor], weights: Sequence[int]) -> torch.Tensor:
    """For each value the weighted mean over the parts where it is not 0; from one part alone, it times its share of all weight.

    For sparse updates, in which 0 means "not sent". A lone value is one member's word only.

    Args:
        parts: fp32, all of one shape, in group order.
        weights: positive integers, one a part.

    Returns:
        fp32, of the same shape; never one of `parts` itself.

    Raises:
        FormatError: as `weighted_mean`.
    """
    mean = weighted_mean(parts, weights)
    total = sum(weights)
    senders, share = torch.zeros_like(mean), torch.zeros_like(mean)
    for part, weight in zip(parts, weights, strict=True):
        sent = (part != 0).to(torch.float32)
        torch.add(senders, sent, out=senders)
        torch.add(share, torch.mul(sent, fp32(weight / total)), out=share)
    return torch.div(mean, torch.where(senders > 1, share, fp32(1.0)))


def _check(parts: Sequence[torch.Tensor], weights: Sequence[int]) -> None:
    if not parts or len(parts) != len(weights):
        raise FormatError(f"expected one weight for each part, got {len(weights)} for {len(parts)}")
    for part, weight in zip(parts, weights, strict=True):
        if part.dtype != torch.float32 or part.shape != parts[0].shape:
            raise FormatError(f"expected fp32 parts of shape {tuple(parts[0].shape)}, got {tuple(part.shape)}")
        if isinstance(weight, bool) or not isinstance(weight, int) or weight <= 0:
            raise FormatError(f"a weight is a positive integer, got {weight!r}")


def fp32(value: float) -> torch.Tensor:
    """A scalar rounded to fp32 once, here, whatever the kernel would do with a Python float."""
    return torch.tensor(value, dtype=torch.float32)
