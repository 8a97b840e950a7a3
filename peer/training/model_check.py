"""One look at a base model before anything is copied, built, tokenized or signed: what it is, and if it can be trained.

    found = check_model(folder, config.method, config.data)      raises what is wrong, in one line
    print(found)                                                  LlamaForCausalLM, 39,840 parameters, ...

`check_plan` is the part that needs no weights, so a host asks it before a hub sends them. Weights are not loaded: the
architecture is laid out on torch's meta device, and the files' headers are held against it. What is refused here is
what would crash, would train another model than the files hold, or would be understood differently by other programs.
"""

from __future__ import annotations

import inspect
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import GENERATION_CONFIG_NAME

from peer.training import adapter, adapter_check, base_files, nf4
from peer.training.base_files import FLOATS, Header
from peer.training.layout import layout_in_files
from peer.training.loading import from_folder, load_tokenizer, loading
from peer.training.model import full_parameters, positions_in
from protocol.data_spec import DataRules, DataSetRules
from protocol.errors import InputError
from protocol.run_spec import Method

# what configurations call the longest sequence, after transformers' own renaming
_POSITIONS = ("max_position_embeddings", "max_seq_len", "max_target_positions", "n_ctx", "context_length")
_QUANTIZED = ("quantization_config", "quantization", "compression_config")
_TOGETHER = "config.json and the weights must belong together: correct config.json, or save the model again"
_OWN_TOKENIZER = "take the tokenizer that belongs to the model, or add rows (transformers: `resize_token_embeddings`)"


@dataclass(frozen=True)
class ModelFacts:
    """What a base model is to this run."""

    architecture: str
    parameters: int  # in all, with the adapter; what is tied counts once
    trainable: int
    positions: int | None  # None: no bound
    embeddings: int  # rows
    tokens: int  # that the tokenizer knows
    left_out: tuple[str, ...]  # names of weight files that no loader takes
    untrained: tuple[str, ...] = ()  # tensors of the state that stay as they are

    def __str__(self) -> str:
        trained = "all trained" if self.trainable == self.parameters else f"{self.trainable:,} of them trained"
        positions = "any length" if self.positions is None else f"at most {self.positions:,} tokens"
        text = (
            f"{self.architecture}, {self.parameters:,} parameters, {trained}; sequences of {positions}; "
            f"{self.tokens:,} tokens, {self.embeddings:,} embeddings"
        )
        return text + (f"; left out: {', '.join(self.left_out)}" if self.left_out else "")


def check_model(folder: Path, method: Method, data: DataRules | DataSetRules) -> ModelFacts:
    """Look at a folder: its files, configuration, tokenizer, headers, and each weight once.

    Raises:
        InputError: this run cannot train it.
    """
    tokens = check_plan(folder, method, data)
    model = outline(folder)
    base_files.check_finite(base_files.headers(folder))
    positions, embeddings, still = _positions(model), _rows(model), untrained(model, method)
    parameters, trainable = count(model, method)  # puts an adapter on it
    return ModelFacts(
        architecture=type(model).__name__,
        parameters=parameters,
        trainable=trainable,
        positions=positions,
        embeddings=embeddings,
        tokens=tokens,
        left_out=tuple(base_files.left_out(folder)),
        untrained=still,
    )


def check_plan(folder: Path, method: Method, data: DataRules | DataSetRules) -> int:
    """Look at names, configuration and tokenizer alone; returns how many tokens there are.

    Raises:
        InputError: this run cannot train such a model, or bitsandbytes is missing for a base in 4 bits.
    """
    if method.base == "nf4":
        nf4.check_installed()
    base_files.check_names(folder)
    with loading(folder, "causal LM"):
        written, _ = PreTrainedConfig.get_config_dict(str(folder), local_files_only=True)
        own_code = "auto_map" in written and written.get("model_type") not in CONFIG_MAPPING
    if own_code:
        raise InputError(
            f"{folder}: not a causal LM that transformers can load: it brings its own code (auto_map in config.json), "
            "which is never run",
            "choose a model, or a revision of it, that `from_pretrained` loads without trust_remote_code",
        )
    with loading(folder, "causal LM"):
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    _check_kind(folder, config)
    if os.path.isfile(folder / GENERATION_CONFIG_NAME):
        with loading(folder / GENERATION_CONFIG_NAME, "file"):
            GenerationConfig.from_pretrained(str(folder), local_files_only=True)
    with loading(folder, "causal LM"), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        rows, positions = _rows(model), _positions(model)
    if positions is not None and data.sequence_length > positions:
        raise InputError(
            f"data.sequence_length is {data.sequence_length}, the model in {folder} has {positions} positions",
            f"set data.sequence_length to at most {positions}, or choose a model for longer texts",
        )
    if method.kind == "lora":
        adapter_check.check_adapter(model, method)
        count(model, method)  # what peft itself would refuse
    else:
        layout_in_files(model, full_parameters(model))
    return _check_tokenizer(folder, load_tokenizer(folder), rows, data)


def outline(folder: Path) -> PreTrainedModel:
    """A folder's model without values, on the meta device: its parameters are those that loading gives.

    Raises:
        InputError: it cannot be loaded, or the files do not fit the configuration.
    """
    model, info = from_folder(folder, {"device_map": {"": "meta"}})
    if info["unexpected_keys"]:
        extra = sorted(info["unexpected_keys"])
        raise InputError(
            f"{folder}: the weights hold {len(extra)} tensors that config.json has no place for, "
            f"{extra[0]} among them: "
            "they would be dropped",
            _TOGETHER,
        )
    found = base_files.headers(folder)
    base_files.check_index(folder, found)
    _check_dtypes(model, found)
    _tie(folder, model, found)
    return model


def count(model: PreTrainedModel, method: Method) -> tuple[int, int]:
    """(parameters in all, trainable) of an outline, which gets the method's adapter. Raises: as `adapter.add_lora`."""
    if method.kind == "lora":
        adapted = adapter.add_lora(model, method, 0, "base")
        trainable = sum(p.numel() for p in adapter.adapter_parameters(adapted).values())
        return sum(p.numel() for p in adapted.parameters()), trainable
    total = sum(tensor.numel() for tensor in full_parameters(model).values())
    return total, total


def untrained(model: PreTrainedModel, method: Method) -> tuple[str, ...]:
    """What of a full run's state is not trained, by its name there. Raises: InputError: as `layout_in_files`."""
    if method.kind == "lora":
        return ()
    return layout_in_files(model, full_parameters(model)).untrained


def _check_kind(folder: Path, config: Any) -> None:
    quantized = next((name for name in _QUANTIZED if getattr(config, name, None)), None)
    if quantized is not None:
        raise InputError(
            f"{folder}: quantized weights (config.json has {quantized}), which a run cannot start from",
            'take the model that they were made from; method.base = "nf4" holds it in 4 bits while an adapter is '
            "trained",
        )
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"{folder}: a model of the kind {kind}, an encoder with a decoder; a run trains causal language models",
            "choose a decoder-only model",
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(
            f"{folder}: not a causal LM that transformers can load: it knows none of the kind {kind}",
            "choose a decoder-only language model",
        )
    if _looks_both_ways(config):
        raise InputError(
            f"{folder}: a model of the kind {kind} that looks both ways: it would see each token that it is to predict",
            "choose a decoder-only model, or one whose config.json says that it was trained as such",
        )


def _looks_both_ways(config: Any) -> bool:
    """By the switches of those architectures that can do both; `build_genesis` tries it on the loaded model."""
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    text = config.get_text_config(decoder=True)
    if getattr(text, "is_decoder", True) is False:
        # GPT-NeoX has that switch too, and does nothing with it
        return "as a standalone, add `is_decoder=True" in inspect.getsource(sys.modules[model.__module__])
    switches = {
        "use_bidirectional_attention": (True, "all"),  # "vision": of images only
        "is_causal": (False,),
        "causal": (False,),
        "attn_type": ("bi",),
    }
    return any(getattr(text, name, None) in both_ways for name, both_ways in switches.items())


def _positions(model: PreTrainedModel) -> int | None:
    """The longest sequence that a model is made for, scaled RoPE included; None: no bound."""
    text: Any = model.config.get_text_config(decoder=True)
    learned = positions_in(model)
    if learned is not None:
        return learned
    stated = [getattr(text, name, None) for name in _POSITIONS]
    bound = next((value for value in stated if isinstance(value, int) and value > 0), None)
    if bound is None or getattr(text, "alibi", False):
        return None
    rope = getattr(text, "rope_parameters", None) or {}
    scaled = [bound]
    for values in (rope, *rope.values()):  # one set, or one for each kind of layer
        if isinstance(values, dict) and isinstance(values.get("factor"), int | float):
            scaled.append(int((values.get("original_max_position_embeddings") or bound) * values["factor"]))
    return max(scaled)


def _rows(model: PreTrainedModel) -> int:
    """How many tokens have an embedding, and a place in what the model predicts."""
    layers: tuple[Any, ...] = (model.get_input_embeddings(), model.get_output_embeddings())
    return min(layer.weight.shape[0] for layer in layers if layer is not None)


def _check_tokenizer(folder: Path, tokenizer: Any, rows: int, data: DataRules | DataSetRules) -> int:
    """Only what any text may come to: tokens that were added for images, say, may lie beyond the embeddings.

    Whether the data have one of those, `TrainableModel.check_fits` asks.
    """
    backend = tokenizer.backend_tokenizer
    if max(backend.get_vocab(with_added_tokens=False).values(), default=-1) >= rows:
        raise InputError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model {rows} rows of embeddings", _OWN_TOKENIZER
        )
    template = tokenizer.chat_template
    named = template.values() if isinstance(template, dict) else [template] if template else []
    if not all(isinstance(text, str) for text in named):
        raise InputError(f"{folder}: the tokenizer's chat template is not text", "correct tokenizer_config.json")
    if "chat" in data.kinds and not template:
        hint = "use data.kind jsonl or text, or an instruct model"
        raise InputError(f"{folder}: the tokenizer has no chat template", hint)
    if "jsonl" in data.kinds and tokenizer.eos_token_id is None:
        hint = "use data.kind text, or a tokenizer that has one"
        raise InputError(f"{folder}: the tokenizer has no end-of-sequence token, which jsonl records need", hint)
    set_in = backend.encode("", add_special_tokens=True).ids + [tokenizer.eos_token_id] * ("jsonl" in data.kinds)
    beyond = max(set_in, default=-1)
    if beyond >= rows:
        token = tokenizer.convert_ids_to_tokens(beyond)
        raise InputError(
            f"{folder}: the tokenizer sets token {beyond} ({token}), the model has {rows} rows of embeddings",
            _OWN_TOKENIZER,
        )
    return len(tokenizer)


def _check_dtypes(model: PreTrainedModel, found: dict[str, Header]) -> None:
    """Parameters are held as floats, whose values mean what they are."""
    for parameter, _ in model.named_parameters():
        name = _name_in(found, parameter)
        if name is not None and found[name].dtype not in FLOATS:
            raise InputError(
                f"{found[name].path}: the tensor {name} is held as {found[name].dtype}: quantized, or no weights",
                f"save the model in one of {', '.join(FLOATS)}",
            )


def _tie(folder: Path, model: PreTrainedModel, found: dict[str, Header]) -> None:
    """Tie the outline as loading ties values: what lies in the files twice must be the same twice."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for target, source in (model.all_tied_weights_keys or {}).items():
        if parameters.get(target) is parameters.get(source):
            continue
        first, second = _name_in(found, target), _name_in(found, source)
        if first is None or second is None or not base_files.same((first, found[first]), (second, found[second])):
            raise InputError(
                f"{folder}: config.json ties {target} to {source}, and the weights hold another {target}",
                "set tie_word_embeddings to false in config.json to train both, or take it out of the weights; "
                "as it is, programs differ in which of the two they believe",
            )
    model.tie_weights()


def _name_in(found: dict[str, Header], parameter: str) -> str | None:
    """A parameter's name in the files, where the base model's prefix may be missing, or be there in addition."""
    if parameter in found:
        return parameter
    fits = (name for name in found if parameter.endswith(f".{name}") or name.endswith(f".{parameter}"))
    return next(fits, None)
