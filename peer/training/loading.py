"""Reads models and tokenizers from local folders: safetensors, no remote code, no hub.

What transformers raises over a broken folder becomes one error for people.

Its loaders raise nearly everything over a config.json that makes no sense; to a host all of it means the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from peer.training import base_files
from peer.training.quiet import no_progress_bars, no_reports
from protocol.errors import InputError

# what was seen when each value of each file was changed in turn
_RAISED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)


@contextmanager
def loading(folder: Path, what: str) -> Iterator[None]:
    """Load something from `folder` inside the block, without progress bars.

    Args:
        what: "causal LM", say; names it in the error.

    Raises:
        InputError: the loader failed.
    """
    try:
        with no_progress_bars():
            yield
    except _RAISED as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"{folder}: not a {what} that transformers can load: {' '.join(line.strip() for line in lines[:2])}",
            "give a folder that `from_pretrained` loads without trust_remote_code",
        ) from error


def load_causal_lm(folder: Path, options: dict[str, Any] | None = None) -> PreTrainedModel:
    """A causal LM from a local folder, fp32, on the CPU.

    Args:
        options: for `from_pretrained`, `nf4.loading_options` say.

    Raises:
        InputError: missing, damaged, a pickle, needs remote code, or lacks weights that the architecture has.
    """
    return from_folder(folder, options or {})[0]


def on_device(device: str | torch.device) -> dict[str, Any]:
    """For `from_pretrained`: each tensor goes from its file straight to the device, without a copy in main memory."""
    return {"device_map": {"": str(device)}}


def from_folder(
    folder: Path, options: dict[str, Any], from_pretrained: Any = AutoModelForCausalLM.from_pretrained
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The same, and what transformers says of the names in the files.

    Args:
        from_pretrained: of transformers, or `bf16.from_pretrained`.

    Raises:
        InputError: as `load_causal_lm`.
    """
    base_files.check_names(folder)
    base_files.headers(folder)
    with loading(folder, "causal LM"), no_reports():
        model, info = from_pretrained(
            str(folder),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **{"dtype": torch.float32} | options,
        )
    if info["mismatched_keys"]:
        name, held, wanted = sorted(info["mismatched_keys"])[0]
        raise InputError(
            f"{folder}: {name} has the shape {tuple(held)}, by config.json it is {tuple(wanted)}",
            "config.json and the weights must belong together",
        )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise InputError(
            f"{folder}: lacks {len(missing)} weights of the architecture, {missing[0]} among them",
            "config.json and the weights must belong together; is tie_word_embeddings right?",
        )
    return model, info


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer in a folder.

    Raises:
        InputError: there is none, or it needs remote code.
    """
    with loading(folder, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    for option in ("is_local", "local_files_only"):  # how it was loaded, which transformers would save along with it
        tokenizer.init_kwargs.pop(option, None)
    if not tokenizer.is_fast:
        raise InputError(f"{folder}: the tokenizer has no tokenizer.json", "save it with transformers >= 5 first")
    return tokenizer
