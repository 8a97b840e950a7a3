"""The architectures that docs/architectures.md speaks of: for each a tiny random model, with a tokenizer of bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from peer.training.model import full_parameters
from peer.training.quiet import no_progress_bars
from tests.kit.data_fixtures import byte_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 283,  # an odd number, and more rows than the tokenizer has tokens
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
DEEPSEEK = {
    "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_group": 2,
    "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 8, "q_lora_rank": 12, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4,
}  # fmt: skip
TEXT = SIZES | {"head_dim": 8, "sliding_window": 32}
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
PER_LAYER = {"hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 283}


@dataclass(frozen=True)
class Architecture:
    """One of transformers' kinds of model, and how to make a tiny one."""

    title: str  # as people call it
    kind: str  # as config.json calls it
    changes: dict[str, Any] = field(default_factory=dict)  # of SIZES

    def config(self, **more: Any) -> Any:
        return AutoConfig.for_model(self.kind, **SIZES | self.changes | more)


ARCHITECTURES = (
    Architecture("Llama", "llama"),
    Architecture("Qwen 2", "qwen2", {"tie_word_embeddings": True}),
    Architecture("Qwen 3", "qwen3", {"head_dim": 8}),
    Architecture("Gemma 2", "gemma2", {"head_dim": 8}),
    Architecture("Gemma 3", "gemma3_text", {"head_dim": 8}),
    Architecture("Gemma 3 with images", "gemma3", {"text_config": TEXT, "vision_config": VISION}),
    Architecture("Gemma 4", "gemma4_text", {"head_dim": 8, "global_head_dim": 8} | PER_LAYER),
    Architecture("Mistral", "mistral"),
    Architecture("Mixtral", "mixtral", {"num_local_experts": 3}),
    Architecture("Qwen 2 MoE", "qwen2_moe", EXPERTS | {"shared_expert_intermediate_size": 24}),
    Architecture("Qwen 3 MoE", "qwen3_moe", EXPERTS | {"head_dim": 8}),
    Architecture("gpt-oss", "gpt_oss", {"num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 8}),
    Architecture("Phi", "phi"),
    Architecture("Phi 3", "phi3"),
    Architecture("GPT-2", "gpt2"),
    Architecture("GPT-NeoX", "gpt_neox"),
    Architecture("OPT", "opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    Architecture("BLOOM", "bloom"),
    Architecture("Falcon", "falcon", {"multi_query": True}),
    Architecture("StableLM", "stablelm"),
    Architecture("SmolLM3", "smollm3"),
    Architecture("OLMo", "olmo"),
    Architecture("OLMo 2", "olmo2"),
    Architecture("Granite", "granite"),
    Architecture("Cohere", "cohere"),
    Architecture("DeepSeek V2", "deepseek_v2", DEEPSEEK),
    Architecture("DeepSeek V3", "deepseek_v3", DEEPSEEK),
    Architecture("HRM", "hrm_text"),
    Architecture("Mamba", "mamba", {"state_size": 4}),
    Architecture("Mamba 2", "mamba2", {"state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8}),
)

# each of these does something of its own between its layers, or with its logits; `scripts/test -m slow` tries all
SAMPLE = ("llama", "gemma2", "mixtral", "gpt2", "opt", "granite", "cohere", "mamba")


def each() -> list[Any]:
    """All of them for `parametrize`, those beyond the sample as slow ones."""
    return [
        pytest.param(item, id=item.kind, marks=() if item.kind in SAMPLE else pytest.mark.slow)
        for item in ARCHITECTURES
    ]


def write_model(folder: Path, config: Any, seed: int = 0) -> Path:
    """A random model of a configuration, and a tokenizer that has every byte and neither pad nor BOS."""
    torch.manual_seed(seed)
    with no_progress_bars():
        model = AutoModelForCausalLM.from_config(config)
        for tensor in full_parameters(model).values():  # zeros and ones would hide what is mixed up
            tensor.data += 0.02 * torch.randn_like(tensor)
        model.save_pretrained(str(folder))
    byte_tokenizer().save_pretrained(str(folder))
    return folder


def write_base(folder: Path, architecture: Architecture, **more: Any) -> Path:
    """The same of an architecture, with some text to train it on."""
    write_model(folder, architecture.config(**more))
    (folder / "data.txt").write_text("When everyone brings wood, the fire burns high.\n" * 20)
    return folder
