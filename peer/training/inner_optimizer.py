"""The AdamW on each peer (method diloco): one flat vector, and moments that stay for the whole run.

They are this peer's alone and never travel. `save` puts them on disk so that a peer which comes back goes on where it
was:

    moments.safetensors     exp_avg, exp_avg_sq: fp32 [N]
                            metadata: run, round, steps; sha256 of "run|round|steps\\n" and the two vectors' bytes

What cannot be loaded is put aside as moments.safetensors.damaged; training then starts with moments of zero, which
costs some steps of warming up and harms nothing else (Douillard et al. 2023, section 3).
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from peer.training.tensor_file import write_tensors
from peer.training.vectors import bytes_of, check_vector
from protocol.errors import FormatError, InputError
from protocol.run_spec import InnerOptimizer

_NAMES = ("exp_avg", "exp_avg_sq")


class InnerAdamW:
    """AdamW over one flat parameter, in place.

    Args:
        flat_N: the parameters, fp32 [N] on the device.
        gradient_N: read by `step`.
    """

    def __init__(self, inner: InnerOptimizer, flat_N: torch.Tensor, gradient_N: torch.Tensor) -> None:
        self._parameter = torch.nn.Parameter(flat_N)
        self._parameter.grad = gradient_N
        # one flat parameter: one fused kernel a step, however many tensors the model has
        self._adamw = torch.optim.AdamW(
            [self._parameter], lr=inner.lr, betas=inner.betas, weight_decay=inner.weight_decay, fused=True
        )
        # torch makes these at the first step; made now, the micro-batch is fitted to the memory that is really left
        self._state = self._adamw.state[self._parameter]
        self._state["step"] = torch.zeros((), device=flat_N.device)
        self._state |= {name: torch.zeros_like(flat_N) for name in _NAMES}

    @property
    def steps(self) -> int:
        """How many there have been since the moments were zero. Waits for the device."""
        return int(self._state["step"].item())

    def step(self) -> None:
        """One step on the gradient."""
        self._adamw.step()

    def reset(self) -> None:
        """Forget everything."""
        for value in self._state.values():
            value.zero_()

    def save(self, path: Path, run: str, round: int) -> None:
        """Write moments and step count to one file, whole or not at all.

        It hashes and writes 8 bytes a parameter: for 135 M parameters (1.1 GB) 7 to 15 s were measured on a slow, busy
        disk, 1.4 s of them hashing. Other threads go on meanwhile, and any thread may call it, but nothing may step. On
        a GPU it takes that much main memory while it lasts.

        Raises:
            InputError: the disk is full or cannot be written.
        """
        vectors = {name: self._state[name].to("cpu") for name in _NAMES}
        metadata = {"run": run, "round": str(round), "steps": str(self.steps)}
        metadata["sha256"] = _digest(metadata, vectors)
        write_tensors(path, vectors, metadata)

    def load(self, path: Path, run: str) -> int:
        """Take over what `save` wrote; nothing has changed when it raises.

        Returns:
            the round that was saved with it.

        Raises:
            InputError: no such file.
            FormatError: damaged, or of another run or model.
        """
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                vectors = {name: file.get_tensor(name) for name in _NAMES}
            round, steps = int(metadata["round"]), int(metadata["steps"])
            stated, expected = metadata["sha256"], _digest(metadata, vectors)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise FormatError(f"{path.name} is damaged: {error}") from error
        if metadata["run"] != run:
            raise FormatError(f"{path.name} is of another run: expected {run[:12]}…, got {metadata['run'][:12]}…")
        for name, vector in vectors.items():
            check_vector(vector, self._parameter.numel(), f"{path.name}: {name}")
        if stated != expected or steps < 0 or vectors["exp_avg_sq"].min().item() < 0:
            raise FormatError(f"{path.name} is damaged: its bytes have changed")
        for name, vector in vectors.items():
            self._state[name].copy_(vector)
        self._state["step"].fill_(steps)
        return round


def _digest(metadata: dict[str, str], vectors: dict[str, torch.Tensor]) -> str:
    hasher = hashlib.sha256(f"{metadata['run']}|{metadata['round']}|{metadata['steps']}\n".encode())
    for name in _NAMES:
        hasher.update(bytes_of(vectors[name]))
    return hasher.hexdigest()


def put_aside(path: Path) -> Path:
    """Move a file that cannot be used out of the way; it is kept for its owner to look at. An older one is replaced."""
    aside = path.with_name(path.name + ".damaged")
    os.replace(path, aside)
    return aside
