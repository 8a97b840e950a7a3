"""Reads weights from a folder: safetensors only, and only what the files' headers say is there.

The model and the genesis use it to load weights, and to check that a saved folder holds exactly the shared state.

    model/model.safetensors                       or model-00001-of-00002.safetensors, ... (full)
    model/adapter_model.safetensors               (LoRA)
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from peer.training.state import NamesShapes
from protocol.errors import InputError

ADAPTER_FILE = "adapter_model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a transformers or peft folder, sorted.

    Raises:
        InputError: no such folder, or it holds no safetensors files.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such model folder", "give a folder in the transformers format")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = [path.name for path in sorted(folder.iterdir()) if path.suffix in _PICKLES]
        if pickles:
            raise InputError(
                f"{folder}: weights in {pickles[0]}, a pickle, which can run code when it is loaded",
                "save the model as safetensors (`save_pretrained` does) or choose a revision that has them",
            )
        raise InputError(f"{folder}: no *.safetensors file", "give a folder in the transformers format")
    return files


def read_shapes(folder: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """name -> (shape, dtype such as "F32") of every tensor in the folder.

    Raises:
        InputError: not a model folder, a damaged file, or a tensor that stands in two files.
    """
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    if name in found:
                        raise InputError(f"{path}: the tensor {name} stands in two files")
                    piece = file.get_slice(name)
                    found[name] = (tuple(piece.get_shape()), piece.get_dtype())
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: damaged: {error}", "fetch or copy the file again") from error
    return found


def read_flat(folder: Path, names_shapes: NamesShapes) -> torch.Tensor:
    """The tensors of a folder, which must be exactly these and fp32, laid end to end: flat fp32 [N].

    Raises:
        InputError: a tensor is missing, extra, or of another shape or dtype.
    """
    check_tensors(folder, names_shapes)
    flat = torch.empty(sum(torch.Size(shape).numel() for _, shape in names_shapes))
    slots, start = {}, 0
    for name, shape in names_shapes:
        count = torch.Size(shape).numel()
        slots[name] = flat[start : start + count].view(shape)
        start += count
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                slots[name].copy_(file.get_tensor(name))
    return flat


def check_tensors(folder: Path, names_shapes: NamesShapes) -> None:
    """Check that a folder holds exactly these tensors, as fp32.

    Raises:
        InputError: names the first tensor that is missing, extra, or different.
    """
    found, wanted = read_shapes(folder), dict(names_shapes)
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or extra:
        what = f"lacks the tensor {missing[0]}" if missing else f"has the extra tensor {extra[0]}"
        raise InputError(f"{folder}: {what} ({len(missing)} missing, {len(extra)} extra)", _UNSUPPORTED)
    for name, shape in names_shapes:
        if found[name] != (tuple(shape), "F32"):
            raise InputError(f"{folder}: {name}: expected F32 {tuple(shape)}, got {found[name][1]} {found[name][0]}")


_UNSUPPORTED = (
    "this architecture keeps its weights in files under other names than it trains them by; choose another, or LoRA"
)
