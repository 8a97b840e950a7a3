"""Reads the weights of a checkpoint's `model/` folder: exactly the shared state's parameters as fp32, in safetensors.

They are read strictly (`protocol.safetensors_file`), straight into the flat vector. A base model, which holds whatever
precision its makers chose, is another matter: `base_files`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch

from peer.training.state import NamesShapes
from peer.training.tensor_file import read_pieces
from protocol.errors import FormatError, InputError, VerificationError
from protocol.safetensors_file import Weights

_OTHER_NAMES = (
    "this architecture keeps weights in files under other names than it trains them by; choose another, or LoRA"
)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint's `model/` folder, sorted.

    Raises:
        InputError: no such folder, or it holds none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such model folder", "give a folder in the transformers format")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}: no *.safetensors file", "give a folder in the transformers format")
    return files


def open_weights(folder: Path) -> Weights:
    """The fp32 weights of a checkpoint's `model/` folder.

    Raises:
        InputError: no folder, no weights, or files that are not sound fp32 safetensors.
    """
    weight_files(folder)
    try:
        return Weights.open(folder, [path.name for path in folder.iterdir() if path.is_file()])
    except (FormatError, VerificationError) as error:
        raise InputError(f"{folder}: {error.message}", "fetch or write the folder again") from error


def read_flat(folder: Path, names_shapes: NamesShapes) -> torch.Tensor:
    """The tensors of a `model/` folder, which must be exactly these, laid end to end: flat fp32 [N].

    Raises:
        InputError: a tensor is missing, extra, of another shape or dtype, or cut short.
    """
    flat = torch.empty(sum(math.prod(shape) for _, shape in names_shapes))
    position = 0
    for piece in pieces(folder, names_shapes):
        flat[position : position + len(piece)] = piece
        position += len(piece)
    return flat


def pieces(folder: Path, names_shapes: NamesShapes) -> Iterator[torch.Tensor]:
    """The same, a piece after the other; each is overwritten by the next. Raises: as `read_flat`."""
    found = open_weights(folder)
    _check_layout(folder, dict(found.layout), dict(names_shapes))
    for tensor in found.tensors:  # sorted by name, as the state is
        try:
            yield from read_pieces(tensor.path, tensor.start, tensor.size_bytes // 4)
        except (FormatError, OSError) as error:
            raise InputError(f"{tensor.path}: cut short", "fetch or write the folder again") from error


def _check_layout(folder: Path, found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> None:
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or extra:
        what = f"lacks the tensor {missing[0]}" if missing else f"has the extra tensor {extra[0]}"
        raise InputError(f"{folder}: {what} ({len(missing)} missing, {len(extra)} extra)", _OTHER_NAMES)
    for name, shape in wanted.items():
        if found[name] != shape:
            raise InputError(f"{folder}: {name}: expected shape {shape}, got {found[name]}")
