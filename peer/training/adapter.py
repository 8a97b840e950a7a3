"""LoRA: puts the run's adapter on a base model, and writes it as a folder that peft loads.

The adapter's settings come from the run spec alone; what stands in a folder's adapter_config.json is for others.
peft is imported when it is needed: that takes seconds, and a full run does without it.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.pytorch_utils import Conv1D

from peer.training import nf4
from protocol.errors import InputError
from protocol.run_spec import Method

if TYPE_CHECKING:
    from peft import PeftModel

LINEAR = (torch.nn.Linear, Conv1D)

# Linear layers that are not used as such. Mamba's weights are read by kernels, so that an adapter would not count; a
# router gives more than a product. Kind of model, as config.json calls it -> their names.
_PASSED_OVER = {
    "falcon_h1": ("out_proj",),
    "falcon_mamba": ("dt_proj", "out_proj"),
    "mamba": ("dt_proj", "out_proj"),
    "mamba2": ("out_proj",),
    "nemotron_h": ("out_proj",),
    "phimoe": ("router",),
}


def add_lora(model: Any, method: Method, seed: int, base_name: str) -> PeftModel:
    """Freeze a model and put a fresh adapter on it, the same for the same seed and version of torch.

    Args:
        model: a transformers causal LM.
        base_name: what adapter_config.json calls the base model; "owner/name@commit" becomes name and revision.

    Raises:
        InputError: the model has no modules of the names in `method.targets`, or peft cannot do to it what the method
            asks for; or bitsandbytes is missing for a base in 4 bits. A host learns that before its run has begun.
    """
    if method.base == "nf4":
        nf4.check_installed()
    from peft import LoraConfig, get_peft_model

    text = text_part(model)
    config = LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,  # type: ignore[arg-type]  # peft computes alpha / rank; floats are fine
        use_rslora=method.use_rslora,
        use_dora=method.use_dora,
        target_modules=sorted(method.targets) or _all_linear(model, method),
        modules_to_save=list(method.modules_to_save) or None,
        exclude_modules=None if method.targets or text is None else rf"(?!{re.escape(text)}\.).*",
        layers_to_transform=list(method.layers_to_transform) or None,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # peft 0.21 asks transformers 5 by the old name of a property; nobody here can do anything about it
            warnings.filterwarnings(
                "ignore", message=".is_gradient_checkpointing. is deprecated", category=FutureWarning
            )
            # of a pattern for fused experts that peft itself has set, and looks for among modules only
            warnings.filterwarnings(
                "ignore", message="The following (rank|alpha)_pattern keys", category=RuntimeWarning
            )
            torch.manual_seed(seed)
            adapted: PeftModel = get_peft_model(model, config)  # type: ignore[assignment]
    except (ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        names = f"this model has {', '.join(linear_names(model))}"
        if "use_dora" in reason:
            raise InputError(
                "method.use_dora: the experts of this model are held as one tensor, which DoRA cannot be put on",
                f"name the layers in method.targets; {names}",
            ) from error
        if "modules_to_save" in reason:
            raise InputError(f"method.modules_to_save: peft refuses: {reason}", names) from error
        raise InputError(f"method.targets: {reason}", names) from error
    saved = adapted.peft_config["default"]
    saved.base_model_name_or_path, _, revision = base_name.partition("@")
    saved.revision = revision or None
    return adapted


def linear_names(model: torch.nn.Module) -> list[str]:
    """What the linear layers of a model are called, without the path to them; each once."""
    return sorted({name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, LINEAR)})


def passed_over(model: Any) -> tuple[str, ...]:
    """Linear layers of a model that an adapter must not be put on, by name."""
    return _PASSED_OVER.get(model.config.model_type, ())


def text_part(model: Any) -> str | None:
    """Of a model with towers for images or sound, the path to what reads text; None: all of it does."""
    config = getattr(model, "config", None)
    if config is None or config.get_text_config(decoder=True) is config:
        return None
    decoder = model.get_decoder()
    return next((name for name, module in model.named_modules() if module is decoder and name), None)


def _all_linear(model: Any, method: Method) -> list[str] | str:
    """All linear layers that an adapter may be put on, save the head, as peft has it."""
    if not method.layers_to_transform and not passed_over(model):
        return "all-linear"
    head = model.get_output_embeddings()
    others = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if module is head}
    return [name for name in linear_names(model) if name not in others | set(passed_over(model))]


def adapter_parameters(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    """The adapter's parameters under the names that they have in a peft folder."""
    by_storage = {parameter.data_ptr(): parameter for parameter in model.parameters() if parameter.requires_grad}
    from peft import get_peft_model_state_dict

    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    if model.device.type == "meta":  # no storage to tell them by, and nobody asks for their names
        return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: by_storage[tensor.data_ptr()] for name, tensor in saved.items()}


def save_config(model: PeftModel, folder: Path) -> None:
    """Write adapter_config.json, the same bytes for the same adapter."""
    config = model.peft_config["default"]
    inference_mode, config.inference_mode = config.inference_mode, True
    config.save_pretrained(str(folder))
    config.inference_mode = inference_mode
    path = folder / "adapter_config.json"
    value = json.loads(path.read_text())
    if isinstance(value.get("target_modules"), list):
        value["target_modules"].sort()  # peft keeps a set, whose order differs between processes
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
