"""The files of a base model's folder: which of them a loader takes, and what is wrong with them.

No tensor code, no network.

`model_check` and `model.load_causal_lm` ask here before anything is loaded, `coordinator.base_model` before it copies.

    check_names(folder)        names alone: what a hub can be asked for before the weights are fetched
    weight_files(folder)       the files that `from_pretrained` takes
    headers(folder)            tensor -> file, dtype, shape; reads no weights
    check_finite(headers)      reads all weights once, a piece at a time
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from protocol.errors import InputError
from protocol.safetensors_file import FULL_FILE, INDEX_FILE, MAX_INDEX_BYTES

CONFIG_FILE = "config.json"
FLOATS = ("F64", "F32", "F16", "BF16")  # what weights may be held in

_ADAPTER = ("adapter_config.", "adapter_model")  # as peft writes them: .json, .safetensors, .bin
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_OTHER_FORMATS = (".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".npz", ".tflite")
_FORMAT = "give a folder in the transformers format"
_AGAIN = "fetch or copy the file again"
_LFS_POINTER = b"version https://git-lfs"
_PIECE_VALUES = 1 << 24  # looked at together


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of one tensor."""

    path: Path
    dtype: str  # as safetensors writes it: F32, BF16, F8_E4M3, ...
    shape: tuple[int, ...]


def check_names(folder: Path) -> None:
    """Check what can be seen without opening a file of weights.

    Adapter files beside a whole model are refused rather than left out: nobody but the host knows which of the two is
    meant.

    Raises:
        InputError: no folder, an adapter, no config.json, a Git LFS pointer, or a link or file that cannot be read.
    """
    if not os.path.isdir(folder):
        if os.path.isfile(folder):
            raise InputError(f"{folder}: a file, expected a model folder", _FORMAT)
        hint = "give a folder in the transformers format, or model.hub and model.revision for a model on a hub"
        raise InputError(f"{folder}: no such model folder", hint)
    names = _names(folder)
    adapter = next((name for name in names if name.startswith(_ADAPTER)), None)
    if adapter is not None and CONFIG_FILE in names:
        raise InputError(
            f"{folder}: holds an adapter ({adapter}) beside a whole model",
            "move the adapter_* files away to train the whole model alone, or merge the adapter into it first "
            "(peft: `merge_and_unload`)",
        )
    if adapter is not None:
        raise InputError(
            f"{folder}: an adapter ({adapter}), not a whole model",
            "merge it into its base model first (peft: `merge_and_unload`), and give the merged folder as path",
        )
    for name in names:
        path = folder / name
        if path.is_symlink() and not os.path.exists(path):
            raise InputError(f"{path}: a link to a file that is not there", _AGAIN)
        if os.path.isfile(path) and _is_pointer(path):
            raise InputError(f"{path}: a Git LFS pointer, not the file itself", "fetch it with `git lfs pull`")
    if CONFIG_FILE not in names and "snapshots" in names:
        raise InputError(f"{folder}: a hub's cache, not a model folder", "give one of the folders in its snapshots/")
    if CONFIG_FILE not in names:
        weight_files(folder)  # where there is no model at all, that is the better thing to say
        raise InputError(f"{folder}: no {CONFIG_FILE}, which says what kind of model this is", _FORMAT)


def weight_files(folder: Path) -> list[Path]:
    """The weight files that `from_pretrained` takes: one file, else the shards that an index names; sorted.

    Raises:
        InputError: none, other formats only, or an index that does not fit what lies there.
    """
    names = _names(folder)
    if FULL_FILE in names:
        return [folder / FULL_FILE]
    if INDEX_FILE in names:
        shards = sorted(set(_weight_map(folder / INDEX_FILE).values()))
        missing = [name for name in shards if not os.path.isfile(folder / name)]
        if missing:
            raise InputError(
                f"{folder}: {INDEX_FILE} names {len(missing)} of {len(shards)} files that are not there, "
                f"{missing[0]} among them",
                "fetch or copy the missing files",
            )
        return [folder / name for name in shards]
    found = [name for name in names if name.endswith(".safetensors")]
    if len(found) > 1:
        raise InputError(
            f"{folder}: {len(found)} weight files, {found[0]} among them, and no {INDEX_FILE} that puts them together",
            "copy the index too, or save the model again (`save_pretrained`)",
        )
    if found:
        raise InputError(f"{folder}: expected the weights in {FULL_FILE}, got {found[0]}", f"rename it to {FULL_FILE}")
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        raise InputError(
            f"{folder}: weights in {pickles[0]}, a pickle, which can run code when it is loaded",
            "save the model as safetensors (`save_pretrained` does) or choose a revision that has them",
        )
    other = [name for name in names if name.endswith(_OTHER_FORMATS)]
    what = f", only {other[0]}, a format that is not for training" if other else ""
    raise InputError(f"{folder}: no *.safetensors file{what}", _FORMAT)


def left_out(folder: Path) -> list[str]:
    """The names of further safetensors files, which no loader takes. Raises: as `weight_files`."""
    taken = {path.name for path in weight_files(folder)}
    return [name for name in _names(folder) if name.endswith(".safetensors") and name not in taken]


def headers(folder: Path) -> dict[str, Header]:
    """What the files say of each tensor.

    Raises:
        InputError: as `weight_files`; or a damaged file.
    """
    found: dict[str, Header] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  no dict
                    part = file.get_slice(name)
                    found[name] = Header(path, part.get_dtype(), tuple(part.get_shape()))
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error
    return found


def check_index(folder: Path, found: Mapping[str, Header]) -> None:
    """Check that an index puts each tensor where it lies; loaders look for less.

    Raises:
        InputError: it does not.
    """
    if weight_files(folder) == [folder / FULL_FILE]:
        return
    for name, shard in _weight_map(folder / INDEX_FILE).items():
        if name not in found or found[name].path.name != shard:
            raise InputError(f"{folder / shard}: lacks the tensor {name}, which {INDEX_FILE} says it holds", _AGAIN)


def same(first: tuple[str, Header], second: tuple[str, Header]) -> bool:
    """Whether two tensors hold the same values. Raises: InputError: a file cannot be read."""
    if first[1].shape != second[1].shape:
        return False
    return torch.equal(_read(*first), _read(*second))


def check_finite(found: Mapping[str, Header]) -> None:
    """Look for values that no training can start from, among weights held as floats, as fp32 makes them.

    Raises:
        InputError: NaN or an infinity, with file and tensor.
    """
    for name, header in found.items():
        if header.dtype not in FLOATS or 0 in header.shape:
            continue
        rows = max(1, _PIECE_VALUES // max(1, math.prod(header.shape[1:])))
        try:
            with safe_open(header.path, framework="pt") as file:
                part = file.get_slice(name)
                for start in range(0, header.shape[0] if header.shape else 1, rows):
                    piece = part[start : start + rows] if header.shape else file.get_tensor(name)
                    if not bool(torch.isfinite(piece.float()).all()):
                        what = "NaN" if bool(piece.isnan().any()) else "an infinity"
                        raise InputError(
                            f"{header.path}: the tensor {name} holds {what}: no training can start from that",
                            "take weights from before they broke, or save them again in a wider dtype (bfloat16)",
                        )
        except (SafetensorError, OSError) as error:
            raise _damaged(header.path, error) from error


def _read(name: str, header: Header) -> torch.Tensor:
    try:
        with safe_open(header.path, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor
    except (SafetensorError, OSError) as error:
        raise _damaged(header.path, error) from error


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}", "check the folder's permissions") from error


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor -> the shard that holds it."""
    try:
        with path.open("rb") as file:
            value: Any = json.loads(file.read(MAX_INDEX_BYTES))
        shards = value["weight_map"]
        plain = all(
            isinstance(name, str) and name.endswith(".safetensors") and name == os.path.basename(name)
            for name in shards.values()
        )
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not an index of weight files", _AGAIN) from error
    if not plain or not shards:
        raise InputError(f"{path}: names other files than safetensors beside it", "fetch or save the model again")
    return dict(shards)


def _is_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_LFS_POINTER)) == _LFS_POINTER
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}", "check the file's permissions") from error


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: damaged: {error}", _AGAIN)
