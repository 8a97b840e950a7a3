"""AdamW with moments in 8 bits, by bitsandbytes (Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization").

They take 2.03 bytes a parameter instead of 8:

    exp_avg_8bit, exp_avg_sq_8bit         uint8 [N]: each a place in a table of 256 values
    exp_avg_scales, exp_avg_sq_scales     fp32 [N / 256]: the largest value of each block

Each member chooses for its own card (`potluck join --moments 8bit`), as it does the precision of its passes; a run spec
says nothing of it. With local steps the moments never leave the machine and nobody agrees on them: what they lose by
rounding is in the update like any other rounding. Two kinds of run leave no choice. Averaged gradients are stepped with
moments that all members hold to the bit. Schedule-free AdamW remembers how far two points lie apart, and rounding that
would move the one that is agreed on.

bitsandbytes is optional, and imported where it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from peer.training.inner_optimizer import LocalOptimizer
from peer.training.memory import MomentsKind
from protocol.errors import InputError
from protocol.run_spec import InnerOptimizer, RunSpec

_BLOCK = 256  # values that share a scale; bitsandbytes' own choice
LOT = 1 << 22  # values stepped at a time: on a CPU they are unpacked for that. A multiple of a block


def check_choice(spec: RunSpec, moments: MomentsKind) -> None:
    """Check that a member of this run can hold moments so.

    Raises:
        InputError: no such choice here, or bitsandbytes is missing, or does not work here.
    """
    if moments == "fp32":
        return
    if spec.sync.method != "diloco":
        raise InputError(
            "moments in 8 bits: this run averages gradients, and its moments are agreed on by all",
            "join without --moments",
        )
    if spec.inner.optimizer != "adamw":
        raise InputError(
            f"moments in 8 bits go with adamw, and this run has {spec.inner.optimizer}", "join without --moments"
        )
    try:
        import bitsandbytes  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:  # what it raises where its own library cannot be loaded
        raise InputError(
            f"moments in 8 bits need bitsandbytes: {error}",
            'install it (pip install "bitsandbytes>=0.50"), or join without --moments',
        ) from error


class EightBitAdamW(LocalOptimizer):
    """Arguments as `LocalOptimizer`."""

    def __init__(self, inner: InnerOptimizer, flat_N: torch.Tensor, gradient_N: torch.Tensor) -> None:
        from bitsandbytes.optim import AdamW8bit

        count, device = flat_N.numel(), flat_N.device
        vectors = {}
        for name in ("exp_avg", "exp_avg_sq"):
            vectors[f"{name}_8bit"] = torch.zeros(count, dtype=torch.uint8, device=device)
            vectors[f"{name}_scales"] = torch.zeros(-(-count // _BLOCK), device=device)
        super().__init__(inner, flat_N, gradient_N, vectors)
        lots = [slice(start, min(start + LOT, count)) for start in range(0, count, LOT)]
        parameters = [torch.nn.Parameter(flat_N[lot]) for lot in lots]
        self._adamw: Any = AdamW8bit(
            parameters, lr=inner.lr, betas=inner.betas, weight_decay=inner.weight_decay, min_8bit_size=0
        )
        for index, (parameter, lot) in enumerate(zip(parameters, lots, strict=True)):
            parameter.grad = gradient_N[lot]
            self._adamw.init_state(self._adamw.param_groups[0], parameter, 0, index)  # zeros, and its tables
            self._adamw.state[parameter] |= self._states(lot)
        self._states_of = [self._adamw.state[parameter] for parameter in parameters]

    def _states(self, lot: slice) -> dict[str, torch.Tensor]:
        """Of a lot, under bitsandbytes' names."""
        blocks = slice(lot.start // _BLOCK, -(-lot.stop // _BLOCK))
        held = self._vectors
        return {
            "state1": held["exp_avg_8bit"][lot],
            "absmax1": held["exp_avg_scales"][blocks],
            "state2": held["exp_avg_sq_8bit"][lot],
            "absmax2": held["exp_avg_sq_scales"][blocks],
        }

    @property
    def numbers(self) -> dict[str, str]:
        return {"steps": str(self._states_of[0]["step"])}

    def _take_numbers(self, numbers: Mapping[str, str]) -> None:
        for state in self._states_of:
            state["step"] = int(numbers["steps"])

    def look_ahead(self) -> None: ...  # gradients are taken where it stands

    def look_back(self, vector: torch.Tensor, read: Callable[[torch.Tensor], torch.Tensor]) -> None: ...

    def _step(self, lr: float, round: int) -> None:
        self._adamw.param_groups[0]["lr"] = lr
        self._adamw.step()
