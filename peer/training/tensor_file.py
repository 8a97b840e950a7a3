"""Tensors in files: written to one safetensors file, whole or not at all; vectors too large to hold twice, in pieces.

`SharedState.save` and the inner optimizer's `save` call `write_tensors`. Models and received states are read and
written a piece at a time.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from peer.training.vectors import bytes_of
from protocol.disk import disk_error, sync
from protocol.errors import FormatError

_PIECE_VALUES = 1 << 20


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write tensors that lie on the CPU; when this returns, a power cut does not take them away.

    Args:
        path: its folder is made when it is not there.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, metadata)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise disk_error(path, error) from error


def piece_slices(values: int) -> Iterator[slice]:
    """A long vector in pieces of 4 MiB."""
    for start in range(0, values, _PIECE_VALUES):
        yield slice(start, min(start + _PIECE_VALUES, values))


def write_pieces(
    path: Path, names_shapes: Sequence[tuple[str, tuple[int, ...]]], pieces: Iterable[torch.Tensor]
) -> None:
    """Write fp32 tensors as the safetensors library does, the same bytes, without having all of them in memory.

    Args:
        names_shapes: sorted by name.
        pieces: their values in that order, cut anywhere; flat, on the CPU.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in names_shapes:
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    data = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    data += b" " * (-len(data) % 8)
    with path.open("wb") as file:
        file.write(len(data).to_bytes(8, "little") + data)
        for piece in pieces:
            file.write(bytes_of(piece))


def read_pieces(path: Path, start: int, values: int) -> Iterator[torch.Tensor]:
    """fp32 values from byte `start` of a file on, in pieces of 4 MiB; each is overwritten by the next.

    Raises:
        FormatError: the file ends before.
        OSError: it cannot be read.
    """
    buffer = torch.empty(min(values, _PIECE_VALUES))
    with path.open("rb") as file:
        file.seek(start)
        for where in piece_slices(values):
            piece = buffer[: where.stop - where.start]
            target = bytes_of(piece)
            if file.readinto(target) != len(target):  # type: ignore[attr-defined]
                raise FormatError(f"{path.name}: cut short")
            yield piece
