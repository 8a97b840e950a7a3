"""A member's own state as tensors: made when its work is finished, kept on disk, gone on from, revealed to an audit.

What it is and how it is named stands in `protocol.own_state`.

    >>> own = OwnState({"steps": "3"}, {"exp_avg": torch.zeros(5)})
    >>> own.digest == OwnState({"steps": "3"}, {"exp_avg": torch.zeros(5)}).digest
    True
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from peer.training.tensor_file import write_tensors
from peer.training.vectors import bytes_of, chunks_of
from protocol import merkle
from protocol.digests import Digest
from protocol.errors import FormatError, InputError
from protocol.own_state import LEFT, OwnManifest

_NUMBERS = "numbers"


@dataclass(frozen=True, eq=False)
class OwnState:
    """One own state.

    Args:
        numbers: of the optimizer.
        vectors: by name, flat on the CPU: [N] fp32, or as the optimizer holds them. Not written to any more.
    """

    numbers: Mapping[str, str]
    vectors: Mapping[str, torch.Tensor]

    @cached_property
    def manifest(self) -> OwnManifest:
        """What its digest stands for; hashes all of it once."""
        return OwnManifest(numbers=dict(self.numbers), vectors={name: _root(v) for name, v in self.vectors.items()})

    @property
    def digest(self) -> Digest:
        return self.manifest.digest

    @property
    def left(self) -> torch.Tensor | None:
        return self.vectors.get(LEFT)

    @property
    def remembered(self) -> dict[str, torch.Tensor]:
        """What is the optimizer's."""
        return {name: vector for name, vector in self.vectors.items() if name != LEFT}

    def with_left(self, left: torch.Tensor | None) -> OwnState:
        return OwnState(self.numbers, self.remembered | ({LEFT: left} if left is not None else {}))

    def save(self, path: Path) -> None:
        """Write it to one file, whole or not at all. Raises: InputError: the disk is full."""
        vectors = dict(self.vectors) or {"nothing": torch.zeros(0)}
        write_tensors(path, vectors, {f"{_NUMBERS}.{name}": value for name, value in self.numbers.items()})

    @classmethod
    def load(cls, path: Path, digest: Digest) -> OwnState:
        """What `save` wrote. Raises: InputError: no such file. FormatError: damaged, or another one."""
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        try:
            with safe_open(path, framework="pt") as file:
                vectors = {name: file.get_tensor(name) for name in file.keys() if name != "nothing"}  # noqa: SIM118
                found = file.metadata() or {}
            numbers = {name.partition(".")[2]: value for name, value in found.items() if name.startswith(_NUMBERS)}
            own = cls(numbers, vectors)
            if own.digest != digest:
                raise FormatError(f"{path.name} is damaged: its bytes have changed")
        except (SafetensorError, OSError, ValueError) as error:  # pydantic's are ValueErrors
            raise FormatError(f"{path.name} is damaged: {error}") from error
        return own


def _root(vector: torch.Tensor) -> Digest:
    return merkle.root([merkle.leaf_hash(chunk) for chunk in chunks_of(bytes_of(vector.contiguous()))]).hex()
