"""From a base model to the run's genesis: where the host's model comes from, how big it is, and the state of round 0.

    model_dir = prepare_model(config.model, run_toml.parent, cache)       a local transformers folder
    total, trainable = count_parameters(config.method, model_dir)         for RunConfig.pin
    state = build_genesis(spec, model_dir, out / "model")                 writes the genesis `model/` folder

The coordinator's `host` calls these, once in a run's life.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from peer.training import adapter, weights
from peer.training.hub import fetch_model
from peer.training.loading import loading
from peer.training.model import TrainableModel, full_parameters, load_causal_lm, load_tokenizer
from peer.training.state import SharedState
from protocol import checkpoint
from protocol.errors import FormatError, InputError, VerificationError
from protocol.run_spec import Method, ModelSource, RunSpec
from protocol.safetensors_file import ADAPTER_FILE

_VERIFY = "see what `potluck verify` says of it"


def prepare_model(source: ModelSource, base: Path, cache: Path, endpoint: str | None = None) -> Path:
    """The base model as a local folder.

    Args:
        source: `[model]` of run.toml.
        base: the folder of run.toml, which its paths start from.
        cache: where a model from a hub is kept.
        endpoint: of the hub; default: huggingface_hub's.

    Raises:
        InputError: no such folder, no safetensors in it, or a checkpoint that is an adapter.
        NetworkError: the hub cannot be reached.
    """
    if source.hub is not None:
        folder = fetch_model(source.hub, source.revision or "", cache, endpoint)
    elif source.checkpoint is not None:
        folder = _checkpoint_model(base / source.checkpoint)
    else:
        folder = base / (source.path or "")
    weights.check_headers(folder)
    return folder


def _checkpoint_model(step_dir: Path) -> Path:
    """The `model/` folder of another run's checkpoint; its weights are held against the state that it states."""
    folder = step_dir / checkpoint.MODEL
    if (folder / ADAPTER_FILE).is_file():
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
    """(in all, trainable), without loading any weights.

    Raises:
        InputError: not a model that transformers knows without remote code, or no modules of the method's names.
    """
    with loading(model_dir, "causal LM"):
        config = AutoConfig.from_pretrained(str(model_dir), local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    model.tie_weights()
    if method.kind == "lora":
        adapted = adapter.add_lora(model, method, 0, "base")
        trainable = sum(p.numel() for p in adapter.adapter_parameters(adapted).values())
        return sum(p.numel() for p in adapted.parameters()), trainable
    count = sum(p.numel() for p in full_parameters(model).values())
    return count, count


def build_genesis(spec: RunSpec, model_dir: Path, out_model_dir: Path) -> SharedState:
    """Write the genesis `model/` folder and return the state of round 0.

    full: the base model as fp32. LoRA: a fresh adapter, the same for the same run seed; the base model itself travels
    apart, pinned by its digest.

    Args:
        model_dir: the base model.
        out_model_dir: to write; it may exist.

    Raises:
        InputError: the model cannot be trained, or its files do not mirror its parameters.
    """
    model, tokenizer = load_causal_lm(model_dir), load_tokenizer(model_dir)
    if spec.method.kind == "full":
        trainable = TrainableModel(model, full_parameters(model), tokenizer)
    else:
        adapted = adapter.add_lora(model, spec.method, spec.run.seed, spec.model.name)
        trainable = TrainableModel(adapted, adapter.adapter_parameters(adapted), tokenizer)
    trainable.save_model(out_model_dir)
    return SharedState(0, trainable.names_shapes, trainable.read())


def load_state(model_dir: Path) -> SharedState:
    """The state of round 0 from the genesis' `model/` folder: its parameters, and nothing remembered yet.

    Raises:
        InputError: not sound fp32 weights.
        FormatError: values that are not finite.
    """
    names_shapes = weights.open_weights(model_dir).layout
    return SharedState(0, names_shapes, weights.read_flat(model_dir, names_shapes))
