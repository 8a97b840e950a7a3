"""Flat vectors of fp32: checked, looked at, and numbers for them that are rounded once.

>>> check_vector(torch.zeros(3), 2, "an update")
Traceback (most recent call last):
...
protocol.errors.FormatError: an update: expected 2 values, got shape (3,)
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from protocol.errors import FormatError
from protocol.state import STATE_CHUNK_BYTES


def check_vector(vector: torch.Tensor, count: int, what: str) -> None:
    """Check that a tensor is flat fp32 [count] on the CPU, contiguous, and finite.

    Raises:
        FormatError: it is not; `what` names it.
    """
    if vector.dtype != torch.float32 or vector.device.type != "cpu" or not vector.is_contiguous():
        raise FormatError(f"{what}: expected contiguous fp32 on the CPU, got {vector.dtype} on {vector.device}")
    if vector.shape != (count,):
        raise FormatError(f"{what}: expected {count} values, got shape {tuple(vector.shape)}")
    if not is_finite(vector):
        raise FormatError(f"{what}: values that are not finite")


def is_finite(vector: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite; allocates nothing."""
    if vector.numel() == 0:
        return True
    if vector.dim() == 1 and vector.numel() <= 1 << 20 and math.isfinite(torch.dot(vector, vector).item()):
        return True  # a chunk, in half the time of what follows; very large values have no finite square
    low, high = torch.aminmax(vector)  # both are NaN when any value is
    return math.isfinite(low.item()) and math.isfinite(high.item())


def bytes_of(vector: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, not copied."""
    return memoryview(vector.detach().numpy().data).cast("B")


def chunks_of(data: memoryview) -> Iterator[memoryview]:
    """Bytes in the chunks whose hashes are the leaves of a Merkle tree; the last may be shorter."""
    return (data[start : start + STATE_CHUNK_BYTES] for start in range(0, len(data), STATE_CHUNK_BYTES))


def fp32(value: float) -> torch.Tensor:
    """A scalar rounded to fp32 once, here, whatever the kernel would do with a Python float."""
    return torch.tensor(value, dtype=torch.float32)
