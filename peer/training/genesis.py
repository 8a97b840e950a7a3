"""From a base model to the run's genesis: where the host's model comes from, how big it is, and the state of round 0.

    model_dir = prepare_model(config.model, run_toml.parent, cache)       a local transformers folder
    facts = check_model(model_dir, config.method, config.data)            of `model_check`; for RunConfig.pin
    state = build_genesis(spec, model_dir, out / "model")                 writes the genesis `model/` folder

The coordinator's `host` calls these, once in a run's life.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from peer.training import adapter, base_files, model_check, weights
from peer.training.hub import fetch_model
from peer.training.model import TrainableModel, full_parameters, load_causal_lm, load_tokenizer
from peer.training.state import SharedState
from protocol import checkpoint
from protocol.errors import FormatError, InputError, VerificationError
from protocol.run_spec import Method, ModelSource, RunSpec
from protocol.safetensors_file import ADAPTER_FILE

_LEAK = 1e-4  # of the largest logit; what rounding does is far below, what attention to later tokens does far above
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


def count_parameters(method: Method, model_dir: Path) -> tuple[int, int]:
    """(in all, trainable), without loading any weights. Raises: InputError: as `model_check.outline` and `count`."""
    return model_check.count(model_check.outline(model_dir), method)


def build_genesis(spec: RunSpec, model_dir: Path, out_model_dir: Path) -> SharedState:
    """Write the genesis `model/` folder and return the state of round 0.

    full: the base model as fp32. LoRA: a fresh adapter, the same for the same run seed; the base model itself travels
    apart, pinned by its digest.

    Args:
        model_dir: the base model.
        out_model_dir: to write; it may exist.

    Raises:
        InputError: the model cannot be trained, sees later tokens, or its files do not mirror its parameters.
    """
    model, tokenizer = load_causal_lm(model_dir), load_tokenizer(model_dir)
    _check_causal(model_dir, model)
    if spec.method.kind == "full":
        trainable = TrainableModel(model, full_parameters(model), tokenizer)
    else:
        adapted = adapter.add_lora(model, spec.method, spec.run.seed, spec.model.name)
        trainable = TrainableModel(adapted, adapter.adapter_parameters(adapted), tokenizer)
    trainable.save_model(out_model_dir)
    return SharedState(0, trainable.names_shapes, trainable.read())


@torch.no_grad()
def _check_causal(folder: Path, model: Any) -> None:
    """What a model says of a token must not depend on later ones. Raises: InputError: it does."""
    model.eval()
    rows = model.get_input_embeddings().weight.shape[0]
    first_BT = torch.arange(1, 9).remainder(rows).unsqueeze(0)
    second_BT = first_BT.clone()
    second_BT[0, -1] = (first_BT[0, -1] + rows // 2) % rows
    before, after = (model(input_ids=ids, use_cache=False).logits[0, :-1].float() for ids in (first_BT, second_BT))
    if not torch.allclose(before, after, rtol=0, atol=_LEAK * float(before.abs().max()), equal_nan=True):
        raise InputError(
            f"{folder}: what this model says of a token depends on those that follow: "
            "it would see what it is to predict",
            "choose a decoder-only model",
        )


def load_state(model_dir: Path) -> SharedState:
    """The state of round 0 from the genesis' `model/` folder: its parameters, and nothing remembered yet.

    Raises:
        InputError: not sound fp32 weights.
        FormatError: values that are not finite.
    """
    names_shapes = weights.open_weights(model_dir).layout
    return SharedState(0, names_shapes, weights.read_flat(model_dir, names_shapes))
