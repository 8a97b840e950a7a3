"""A frozen base in bf16: 2 bytes a parameter instead of 4, and computed as one in fp32.

Held so are the linear layers and the embedding, which are nearly all of a model; norms, biases, the adapter and
whatever else there is stay fp32. Each layer is computed as wide as what comes (`widened`), so nothing is rounded but
the weights, once; and those that are published in bf16 not at all.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedModel

from peer.training import base_files
from peer.training.adapter import LINEAR, passed_over
from peer.training.widened import widen_embedding, widen_linear

# Mamba's head and a few more round what goes into them to their weight's dtype; norms and convolutions stay fp32
_LOOKS_AT_DTYPE = re.compile(r"\bhidden_states\.to\((?:dtype=)?self\.(?!\w*(?:norm|conv))\w+\.weight\.dtype\)")


def changes_nothing(folder: Path) -> bool:
    """Whether a model computes on a base held so as on one in fp32: its files hold bf16, and no layer asks for that.

    The folder has been found to be a model that can be trained. Raises: InputError: a damaged file.
    """
    found = [header for header in base_files.headers(folder).values() if len(header.shape) > 1]
    floats = {header.dtype for header in found if header.dtype in base_files.FLOATS}
    config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    module = sys.modules[MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__module__]
    return floats == {"BF16"} and _LOOKS_AT_DTYPE.search(inspect.getsource(module)) is None


def from_pretrained(folder: str, **options: Any) -> Any:
    """As `AutoModelForCausalLM.from_pretrained` with dtype float32, but those weights are read as bf16 at once."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]

    def plan(model: Any, dtype: torch.dtype) -> dict[str, torch.dtype]:
        held = {id(weight) for weight in _held(model)}
        names = [re.escape(name) for name, each in model.named_parameters(remove_duplicate=False) if id(each) in held]
        strict: dict[str, torch.dtype] = kind._get_dtype_plan(model, dtype)
        return strict | {f"^({'|'.join(names)})$": torch.bfloat16}  # patterns of names

    # transformers asks a model itself which of its weights are to have another dtype than the rest
    asked: Any = type(kind.__name__, (kind,), {"__module__": kind.__module__, "_get_dtype_plan": plan})
    loaded = asked.from_pretrained(folder, **options)
    (loaded[0] if isinstance(loaded, tuple) else loaded).__class__ = kind
    return loaded


def prepare(model: PreTrainedModel) -> PreTrainedModel:
    """Freeze a model that was loaded so, and make it compute as one in fp32, with and without autocast; the same."""
    model.requires_grad_(False)
    held = {id(weight) for weight in _held(model)}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in held:
            tensor.data = tensor.data.clone()  # it may be a view of its mapped file, which is as large as the model
    for module in model.modules():
        if isinstance(module, LINEAR) and id(module.weight) in held:
            widen_linear(module)
    embedding = model.get_input_embeddings()
    if id(embedding.weight) in held:
        widen_embedding(embedding)
    return model


def _held(model: Any) -> list[torch.Tensor]:
    """The weights to hold in bf16: of layers that are only ever called, never looked into."""
    others = passed_over(model)
    weights = [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, LINEAR) and name.rpartition(".")[2] not in others
    ]
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if isinstance(embedding, torch.nn.Embedding) and (head is None or isinstance(head, LINEAR)):
        weights.append(embedding.weight)
    return weights
