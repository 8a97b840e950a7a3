"""Where the host's base model comes from, as a local folder: a folder, a hub, or another run's checkpoint.

    model_dir = prepare_model(config.model, run_toml.parent, cache)

`first_start` calls it, once in a run's life.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from coordinator.run_config import ModelSource
from peer.training import base_files, weights
from peer.training.hub import fetch_model
from protocol import checkpoint
from protocol.errors import FormatError, InputError, VerificationError
from protocol.safetensors_file import ADAPTER_FILE

_VERIFY = "see what `potluck verify` says of it"


def prepare_model(
    source: ModelSource,
    base: Path,
    cache: Path,
    endpoint: str | None = None,
    before_weights: Callable[[Path], object] = base_files.check_names,
) -> Path:
    """The base model as a local folder, whose names and headers are sound.

    Args:
        source: `[model]` of run.toml.
        base: the folder of run.toml, which its paths start from.
        cache: where a model from a hub is kept.
        endpoint: of the hub; default: huggingface_hub's.
        before_weights: looks at what a hub sent first, all but the weights, and raises what speaks against them.

    Raises:
        InputError: no such folder, no safetensors in it, or a checkpoint that is an adapter.
        NetworkError: the hub cannot be reached.
    """
    if source.hub is not None:
        folder = fetch_model(source.hub, source.revision or "", cache, endpoint, before_weights)
    elif source.checkpoint is not None:
        folder = _checkpoint_model(base / source.checkpoint)
    else:
        folder = base / (source.path or "")
    base_files.check_names(folder)
    base_files.headers(folder)
    return folder


def _checkpoint_model(step_dir: Path) -> Path:
    """The `model/` folder of another run's checkpoint; its weights are held against the state that it states."""
    folder = step_dir / checkpoint.MODEL
    if os.path.isfile(folder / ADAPTER_FILE):
        raise InputError(
            f"{step_dir}: this checkpoint is an adapter, not a whole model",
            "merge it into its base model first (peft: `merge_and_unload`), and give the merged folder as path",
        )
    try:
        stated = checkpoint.read_info(step_dir).state
        found = weights.open_weights(folder)
        if found.layout != stated.tensors or found.state_root() != stated.parameters:
            raise InputError(f"{step_dir}: the weights are not those of the state that checkpoint.json states", _VERIFY)
    except (FormatError, VerificationError) as error:
        raise InputError(f"{step_dir}: not a sound checkpoint: {error.message}", _VERIFY) from error
    return folder
