"""The optimizer on each peer (method diloco): one flat vector, and a memory that stays for the whole run.

`adamw` is torch's AdamW, or `eight_bit` where the member asks for that; `schedule-free-adamw` stands in
`schedule_free`. The learning rate is that of the round which the work is for. What they remember is this peer's alone
and never travels. `save` puts it on disk so that a peer which comes back goes on where it was:

    moments.safetensors     exp_avg, exp_avg_sq: fp32 [N]; other names where they are held otherwise
                            metadata: run, round, steps; sha256 of "run|round|steps\\n" and the vectors' bytes

What cannot be loaded, or is held otherwise now, is put aside as moments.safetensors.damaged; training then starts with
moments of zero, which costs some steps of warming up and harms nothing else (Douillard et al. 2023, section 3).
"""

from __future__ import annotations

import hashlib
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from peer.training.own_state import OwnState
from peer.training.tensor_file import write_tensors
from peer.training.vectors import bytes_of, check_vector
from protocol.errors import FormatError, InputError
from protocol.run_spec import InnerOptimizer

logger = logging.getLogger(__name__)

_MOST = 2.0**40  # of the numbers that an optimizer remembers: steps, rounds, sums of rates


class LocalOptimizer(ABC):
    """Steps one flat parameter in place, and remembers vectors.

    Args:
        flat_N: the parameters, fp32 [N] on the device.
        gradient_N: read by `step`, and overwritten.
        vectors: what it remembers, all zero, the one that is never negative last. Made before the first step: the
            micro-batch is fitted to the memory that is really left.
    """

    def __init__(
        self, inner: InnerOptimizer, flat_N: torch.Tensor, gradient_N: torch.Tensor, vectors: dict[str, torch.Tensor]
    ) -> None:
        self._inner, self._flat_N, self._gradient_N = inner, flat_N, gradient_N
        self._vectors = vectors

    @property
    @abstractmethod
    def numbers(self) -> dict[str, str]:
        """What is saved beside the vectors: steps, how many there have been since they were zero, and others."""

    @abstractmethod
    def _take_numbers(self, numbers: Mapping[str, str]) -> None: ...

    @abstractmethod
    def _step(self, lr: float, round: int) -> None: ...

    @torch.no_grad()
    def step(self, parts: float, lr: float, round: int) -> None:
        """One step on the gradient, a sum, divided by `parts` and clipped to `inner.clip_norm`.

        Args:
            lr: of the round that the work is for.
        """
        scale: torch.Tensor | float = 1.0 / parts
        if self._inner.clip_norm is not None:
            norm = torch.linalg.vector_norm(self._gradient_N) * scale
            scale = scale * torch.clamp(self._inner.clip_norm / (norm + 1e-6), max=1.0)
        self._gradient_N.mul_(scale)
        self._step(lr, round)

    @abstractmethod
    def look_ahead(self) -> None:
        """The parameters were written anew: move them to where gradients are taken, if that is elsewhere."""

    @abstractmethod
    def look_back(self, vector: torch.Tensor, read: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Move a copy of some of the parameters from where gradients are taken to what they stand for.

        Args:
            read: copies the same values of another vector that is as long as the parameters.
        """

    def reset(self) -> None:
        """Forget everything."""
        for vector in self._vectors.values():
            vector.zero_()
        self._take_numbers(dict.fromkeys(self.numbers, "0"))

    def remembered(self) -> OwnState:
        """A copy of all that it remembers."""
        return OwnState(self.numbers, {name: vector.to("cpu", copy=True) for name, vector in self._vectors.items()})

    def take(self, numbers: Mapping[str, str], vectors: Mapping[str, torch.Tensor]) -> None:
        """Remember this instead. Raises: FormatError: it is of another model, or was held otherwise."""
        if sorted(vectors) != sorted(self._vectors) or sorted(numbers) != sorted(self.numbers):
            raise FormatError(f"moments that were held otherwise: {', '.join(sorted(vectors))}")
        for name, vector in vectors.items():
            _check_as(self._vectors[name], vector, name)
        try:
            if not all(0 <= float(number) <= _MOST for number in numbers.values()):
                raise ValueError
            self._take_numbers(numbers)
        except ValueError as error:
            raise FormatError(f"no numbers of an optimizer: {', '.join(numbers.values())}"[:200]) from error
        self._take_vectors(vectors)

    def save(self, path: Path, run: str, round: int) -> None:
        """Write vectors and numbers to one file, whole or not at all.

        It hashes and writes 8 bytes a parameter, in 8 bits a quarter: for 135 M parameters (1.1 GB) 7 to 15 s were
        measured on a slow, busy disk, 1.4 s of them hashing. Other threads go on meanwhile, and any thread may call it,
        but nothing may step. On a GPU it takes that much main memory while it lasts.

        Raises:
            InputError: the disk is full or cannot be written.
        """
        vectors = {name: vector.to("cpu") for name, vector in self._vectors.items()}
        metadata = {"run": run, "round": str(round), **self.numbers}
        write_tensors(path, vectors, metadata | {"sha256": _digest(metadata, vectors)})

    def load(self, path: Path, run: str) -> int:
        """Take over what `save` wrote; nothing has changed when it raises.

        Returns:
            the round that was saved with it.

        Raises:
            InputError: no such file.
            FormatError: damaged, of another run or model, or of moments that were held otherwise.
        """
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        try:
            with safe_open(path, framework="pt") as file:
                held = sorted(file.keys())
                if held != sorted(self._vectors):
                    raise FormatError(f"{path.name} is of moments that were held otherwise: {', '.join(held)}")
                found = file.metadata() or {}
                vectors = {name: file.get_tensor(name) for name in self._vectors}
            metadata = {name: found[name] for name in ("run", "round", *self.numbers)}
            round, stated, expected = int(metadata["round"]), found["sha256"], _digest(metadata, vectors)
            numbers = [float(metadata[name]) for name in self.numbers]
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise FormatError(f"{path.name} is damaged: {error}") from error
        if metadata["run"] != run:
            raise FormatError(f"{path.name} is of another run: expected {run[:12]}…, got {metadata['run'][:12]}…")
        for name, vector in vectors.items():
            _check_as(self._vectors[name], vector, f"{path.name}: {name}")
        never_negative = [*numbers, list(vectors.values())[-1].min().item()]
        if stated != expected or not all(number >= 0 for number in never_negative):
            raise FormatError(f"{path.name} is damaged: its bytes have changed")
        self._take_vectors(vectors)
        self._take_numbers(metadata)
        return round

    def take_over(self, other: LocalOptimizer) -> None:
        """What the same optimizer on another device remembers; nothing, where that device does not answer any more."""
        try:
            numbers = other.numbers
            self._take_vectors(other._vectors)
            self._take_numbers(numbers)
        except RuntimeError as error:
            self.reset()
            logger.warning("the optimizer starts afresh: %s", str(error).partition("\n")[0])

    def _take_vectors(self, vectors: Mapping[str, torch.Tensor]) -> None:
        for name, vector in vectors.items():
            self._vectors[name].copy_(vector)


class InnerAdamW(LocalOptimizer):
    """torch's AdamW: one flat parameter, so one fused kernel a step, however many tensors the model has."""

    def __init__(self, inner: InnerOptimizer, flat_N: torch.Tensor, gradient_N: torch.Tensor) -> None:
        vectors = {name: torch.zeros_like(flat_N) for name in ("exp_avg", "exp_avg_sq")}
        super().__init__(inner, flat_N, gradient_N, vectors)
        parameter = torch.nn.Parameter(flat_N)
        parameter.grad = gradient_N
        self._adamw = torch.optim.AdamW(
            [parameter], lr=inner.lr, betas=inner.betas, weight_decay=inner.weight_decay, fused=True
        )
        self._steps = torch.zeros((), device=flat_N.device)
        self._adamw.state[parameter] |= {"step": self._steps, **self._vectors}

    @property
    def numbers(self) -> dict[str, str]:
        return {"steps": str(int(self._steps.item()))}  # waits for the device

    def _take_numbers(self, numbers: Mapping[str, str]) -> None:
        self._steps.fill_(int(numbers["steps"]))

    def look_ahead(self) -> None: ...  # gradients are taken where it stands

    def look_back(self, vector: torch.Tensor, read: Callable[[torch.Tensor], torch.Tensor]) -> None: ...

    def _step(self, lr: float, round: int) -> None:
        self._adamw.param_groups[0]["lr"] = lr
        self._adamw.step()


def _check_as(held: torch.Tensor, vector: torch.Tensor, what: str) -> None:
    """Raises: FormatError: a vector of another kind or length than what is held, or not finite."""
    if held.dtype == torch.float32:
        check_vector(vector, held.numel(), what)
    elif vector.dtype != held.dtype or vector.shape != held.shape:
        raise FormatError(
            f"{what}: expected {held.numel()} values of {held.dtype}, got {vector.dtype} {tuple(vector.shape)}"
        )


def _digest(metadata: Mapping[str, str], vectors: Mapping[str, torch.Tensor]) -> str:
    hasher = hashlib.sha256(("|".join(metadata.values()) + "\n").encode())
    for vector in vectors.values():
        hasher.update(bytes_of(vector))
    return hasher.hexdigest()


def save_or_warn(optimizer: LocalOptimizer, path: Path, run: str, round: int) -> bool:
    """As `save`; a full disk is a warning, and False."""
    try:
        optimizer.save(path, run, round)
    except InputError as error:
        logger.warning("%s; going on: only a restart would miss what the optimizer remembers", error.message)
        return False
    return True


def load_or_put_aside(optimizer: LocalOptimizer, path: Path, run: str) -> bool:
    """Take over what `save` wrote in this run, if it did; whether that was done. What cannot be used is put aside."""
    if not path.is_file():
        return False
    try:
        round = optimizer.load(path, run)
    except FormatError as error:
        logger.warning("%s; put aside as %s, the optimizer starts afresh", error.message, put_aside(path).name)
        return False
    logger.info("the optimizer goes on from round %d", round)
    return True


def put_aside(path: Path) -> Path:
    """Move a file that cannot be used out of the way; it is kept for its owner to look at. An older one is replaced."""
    aside = path.with_name(path.name + ".damaged")
    os.replace(path, aside)
    return aside
