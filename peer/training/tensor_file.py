"""Writes tensors to one safetensors file, whole or not at all, with errors that say what to do.

`SharedState.save` and the inner optimizer's `save` call it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from protocol.disk import disk_error, sync


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
