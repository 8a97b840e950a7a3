"""From a base model to the run's genesis: how big the model is, and the state of round 0.

    facts = check_model(model_dir, config.method, config.data)            of `model_check`; pinned in the run spec
    state = build_genesis(spec, model_dir, out / "model")                 writes the genesis `model/` folder

A host calls these, once in a run's life; members load what came of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from peer.training import adapter, model_check, weights
from peer.training.loading import load_causal_lm, load_tokenizer
from peer.training.model import TrainableModel, full_parameters
from peer.training.state import SharedState
from protocol.errors import InputError
from protocol.run_spec import Method, RunSpec

# what was seen when a configuration made sense to transformers and not to its model
_FAILED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_LEAK = 1e-4  # of the largest logit; what rounding does is far below, what attention to later tokens does far above


def count_parameters(method: Method, model_dir: Path) -> tuple[int, int]:
    """(in all, trainable), without loading any weights. Raises: InputError: as `model_check.outline` and `count`."""
    return model_check.count(model_check.outline(model_dir), method)


def untrained_tensors(method: Method, model_dir: Path) -> tuple[str, ...]:
    """What of the state stays as it is. Raises: as `count_parameters`."""
    return model_check.untrained(model_check.outline(model_dir), method)


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
    if spec.method.kind == "full":
        trainable = TrainableModel(model, full_parameters(model), tokenizer)
    else:
        adapted = adapter.add_lora(model, spec.method, spec.run.seed, spec.model.name)
        trainable = TrainableModel(adapted, adapter.adapter_parameters(adapted), tokenizer)
    _check_causal(model_dir, trainable.model)
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
    try:
        before, after = (model(input_ids=ids, use_cache=False).logits[0, :-1].float() for ids in (first_BT, second_BT))
    except _FAILED as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"{folder}: a model of the kind {model.config.model_type} that does not compute: {lines[0]}",
            "correct config.json, or choose another model",
        ) from error
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
