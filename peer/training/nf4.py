"""QLoRA's base: the frozen linear layers in 4 bits, by bitsandbytes (Dettmers et al. 2023, sections 3.1 to 3.3).

Values are 4-bit NormalFloat in blocks of 64, the blocks' scales quantized again: 0.52 bytes a parameter instead of 4.
Embedding and head are held in bf16, in which models are published; norms, biases and the adapter in fp32. bitsandbytes
is optional, and imported when a run asks for it (`method.base = "nf4"`): it makes the import of peft slower.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from protocol.errors import InputError
from protocol.installed import this_installation


def check_installed() -> None:
    """Raises: InputError: bitsandbytes is missing, or does not work here."""
    try:
        import bitsandbytes  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:  # what it raises where its own library cannot be loaded
        raise InputError(
            f"this run's base model is held in 4 bits, for which bitsandbytes is needed: {error}",
            this_installation().add("qlora"),
        ) from error


def loading_options(device: str | torch.device) -> dict[str, Any]:
    """For `from_pretrained`: quantize while loading, tensor by tensor, so that the whole is never there in fp32.

    Raises:
        InputError: bitsandbytes is missing.
    """
    check_installed()
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    return {"dtype": torch.bfloat16, "quantization_config": config, "device_map": {"": str(device)}}


def prepare(model: Any) -> Any:
    """Make a model that was loaded so compute as one in fp32 does, with and without autocast; the same model."""
    from bitsandbytes.nn import Linear4bit

    from peer.training.widened import widen_embedding, widen_linear

    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    large = {id(module.weight) for module in (embedding, head) if module is not None}
    for parameter in model.parameters():
        if parameter.is_floating_point() and id(parameter) not in large:
            parameter.data = parameter.data.float()
    model.requires_grad_(False)
    widen_embedding(embedding)
    if head is not None:
        widen_linear(head)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # 0.50 would repack the weights when they are used without gradients on such a CPU, for a kernel that has no
            # backward: after an evaluation nothing could be trained
            module.support_avx512bf16_for_cpu = False
            module.compute_type_is_set = True
            module.register_forward_pre_hook(_compute_as_autocast)
    return model


def _compute_as_autocast(module: Any, inputs: tuple[torch.Tensor]) -> None:
    """bitsandbytes' kernels do not know autocast."""
    kind = inputs[0].device.type
    module.compute_dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32


def count(parameter: torch.Tensor) -> int:
    """How many values a parameter stands for; one in 4 bits holds two in each byte."""
    packed = getattr(parameter, "quant_state", None)
    return parameter.numel() if packed is None else math.prod(packed.shape)
