"""In which precision a card does its forward and backward passes: bf16, fp16 or fp32, by what it does well.

    CUDA, compute capability 8.0 and up     bf16
    CUDA, 7.0 to 7.5                        fp16, the loss scaled
    CUDA, below                             fp32 (their fp16 is slow, they have no bf16)
    CPU, Apple, ROCm and others             bf16 where measured to be clearly faster, else fp32

Only the passes: `autocast` wraps them, so weights, gradients, the optimizer and the shared state stay fp32, and peers
of all kinds mix in one run. fp16's range is small (6e-8 to 65504); the loss is multiplied by a power of two before the
backward pass, and the gradient divided by it afterwards (Micikevicius et al. 2018, section 3.2).

    >>> choose("auto", Card("cuda", (7, 5)), measure=lambda precision: 1.0)
    'fp16'
    >>> choose("auto", Card("cpu"), measure={"fp32": 1.0, "bf16": 0.5}.__getitem__)
    'bf16'
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from protocol.errors import InputError

logger = logging.getLogger(__name__)

Precision = Literal["bf16", "fp16", "fp32"]
WANTED = ("auto", *get_args(Precision))  # what an owner may ask for
CLEARLY = (
    0.6  # bf16, which rounds to 8 bits, is taken on other devices only where it needs at most this share of fp32's time
)

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_FIRST_SCALE = 2.0**12
_LEAST_SCALE = 2.0**-12  # the loss is a sum over tokens, so a scale below 1 may be right
_MOST_SCALE = 2.0**15
_GROW_AFTER = 2000  # passes without an overflow; as torch.amp.GradScaler


@dataclass(frozen=True)
class Card:
    """What matters of a device.

    Args:
        kind: torch's name for it.
        capability: NVIDIA's compute capability; None for everything else, ROCm too.
    """

    kind: str
    capability: tuple[int, int] | None = None

    @classmethod
    def of(cls, device: torch.device) -> Card:
        if device.type != "cuda" or torch.version.hip is not None:
            return cls(device.type)
        return cls("cuda", torch.cuda.get_device_capability(device))


def choose(wanted: str, card: Card, measure: Callable[[Precision], float]) -> Precision:
    """The precision to train in.

    Args:
        wanted: the owner's word: one of `WANTED`.
        measure: seconds that a pass takes; infinite where it cannot be done. Asked only where no rule knows.

    Raises:
        InputError: no such precision.
    """
    if wanted not in WANTED:
        raise InputError(f"precision: expected one of {', '.join(WANTED)}, got {wanted!r}")
    for precision in get_args(Precision):
        if wanted == precision:
            return precision  # type: ignore[no-any-return]
    if card.capability is not None:
        return "bf16" if card.capability >= (8, 0) else "fp16" if card.capability >= (7, 0) else "fp32"
    plain_s, bf16_s = measure("fp32"), measure("bf16")
    chosen: Precision = "bf16" if bf16_s < CLEARLY * plain_s else "fp32"  # neither, when both are infinite
    logger.info("precision %s: a pass takes %.3f s in fp32, %.3f s in bf16", chosen, plain_s, bf16_s)
    return chosen


def coarsest(used: Iterable[Precision]) -> Precision:
    """The one that rounds most.

    >>> coarsest(["fp32", "fp16"])
    'fp16'
    """
    return min(used, key=get_args(Precision).index)


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[object]:
    """For the forward pass."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=_DTYPES[precision])


class LossScale:
    """What the loss is multiplied by: 1 but for fp16. Always a power of two, so scaling rounds nothing.

    It changes only while the gradient is zero; all that is in a gradient has one scale.
    """

    def __init__(self, precision: Precision) -> None:
        self.watched = precision == "fp16"  # whether a gradient can overflow that is finite in fp32
        self.value = _FIRST_SCALE if self.watched else 1.0
        self._good = 0

    def passed(self) -> None:
        """A pass left the gradient finite."""
        self._good += 1

    def grow(self) -> None:
        """Try the next larger scale when it is time to. The gradient is zero now."""
        if self.watched and self._good >= _GROW_AFTER and self.value < _MOST_SCALE:
            self.value, self._good = 2 * self.value, 0

    def overflowed(self, loss: float) -> bool:
        """A pass left values that are not finite, and the gradient was thrown away.

        Args:
            loss: of that pass; one that is not finite overflowed in the forward pass already.

        Returns:
            whether a smaller scale may help; if not, this model needs another precision.
        """
        self.value, self._good = self.value / 2, 0
        return math.isfinite(loss) and self.value >= _LEAST_SCALE
