"""The shape of a model by its config.json: its sizes, what autograd keeps of it, and what comes from a coordinator."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lab.training_fixtures import make_spec
from peer.link.answers import RemoteFile, parse_shape
from peer.training.adapter import add_lora
from peer.training.model_kinds import inner_kept
from peer.training.model_shape import ModelShape
from protocol.rpc import MAX_MODEL_CONFIG_BYTES
from protocol.run_spec import Method, RunSpec
from tests.kit.architectures import ARCHITECTURES, EXPERTS

LLAMA = {
    "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "vocab_size": 128_256, "hidden_act": "silu",
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 8192, "tie_word_embeddings": True,
}  # fmt: skip
GPT_2 = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50_257}
QWEN_3 = LLAMA | {
    "model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28, "vocab_size": 151_936, "head_dim": 128,
    "num_attention_heads": 16, "intermediate_size": 3072, "sliding_window": 32_768, "use_sliding_window": False,
}  # fmt: skip
GEMMA_3 = {
    "model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 34, "intermediate_size": 10_240,
    "sliding_window": 1024,
}  # fmt: skip
MIXTRAL = {
    "model_type": "mixtral", "hidden_size": 4096, "num_hidden_layers": 32, "vocab_size": 32_000, "hidden_act": "silu",
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14_336, "num_local_experts": 8,
    "num_experts_per_tok": 2, "tie_word_embeddings": False,
}  # fmt: skip
SIZES = ("queries", "keys", "inner", "gated", "tied", "experts", "heads", "activation", "window")


def shape_of(config: dict[str, Any], parameters: int = 10**9) -> ModelShape:
    found = ModelShape.from_config(config, parameters)
    assert found is not None
    return found


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "parameters", "expected"),
    [
        pytest.param(LLAMA, 1_235_814_400, (2048, 512, 8192, True, True, 0, 32, "silu", 0), id="Llama 3.2 1B"),
        pytest.param(GPT_2, 124_439_808, (768, 768, 3072, False, True, 0, 12, "gelu_new", 0), id="GPT-2"),
        pytest.param(QWEN_3, 596_049_920, (2048, 1024, 3072, True, True, 0, 16, "silu", 0), id="Qwen 3 0.6B"),
        pytest.param(
            {"model_type": "gemma3", "text_config": GEMMA_3, "vision_config": {"hidden_size": 1152}}, 4_300_079_472,
            (2048, 1024, 10_240, True, True, 0, 8, "gelu_pytorch_tanh", 1024), id="Gemma 3 4B: the text of a VLM",
        ),
        pytest.param(
            MIXTRAL, 46_702_792_704, (4096, 1024, 28_672, True, False, 2, 32, "silu", 0), id="Mixtral 8x7B",
        ),
    ],
)  # fmt: skip
def test_published_configurations_give_their_sizes(config: Any, parameters: int, expected: tuple[Any, ...]) -> None:
    shape = shape_of(config, parameters)
    assert tuple(getattr(shape, name) for name in SIZES) == expected
    if not shape.experts and "text_config" not in config:
        assert shape.linear == pytest.approx(parameters, rel=0.01)


@pytest.mark.parametrize(
    "value", [None, -1, 0, 1 << 32, 10**30, 1.5, True, "64", [64], {"size": 64}], ids=lambda value: repr(value)[:20]
)
def test_a_figure_that_is_none_is_as_if_it_were_not_there(value: Any) -> None:
    for name in ("hidden_size", "num_hidden_layers", "vocab_size"):
        assert ModelShape.from_config(LLAMA | {name: value}, 10**9) is None
    others = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "head_dim", "sliding_window")
    for name in (*others, "num_experts", "num_experts_per_tok", "qk_rope_head_dim"):
        without = {key: item for key, item in LLAMA.items() if key != name}
        assert shape_of(LLAMA | {name: value}) == shape_of(without)
    names = ("model_type", "hidden_act", "tie_word_embeddings", "text_config", "final_logit_softcapping", "multi_query")
    for name in names:
        shape = ModelShape.from_config(LLAMA | {name: value}, 10**9)
        assert shape is None or shape.kept(512, trained=True, masked=True) > 0


def test_the_largest_figures_make_a_number() -> None:
    most = (1 << 32) - 1
    shape = shape_of({key: most if type(item) is int else item for key, item in MIXTRAL.items()})
    assert shape.kept(1 << 20, trained=True, masked=True) > most**2


# ---- what autograd keeps ---------------------------------------------------------------------------------------------

TRIED = {
    "hidden_size": 128, "intermediate_size": 320, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 99,
    "num_hidden_layers": 3, "max_position_embeddings": 256,
}  # fmt: skip
KINDS = {item.kind: item for item in ARCHITECTURES}
LAYERS_OF = (
    "llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt2", "phi", "phi3", "gpt_neox", "bloom", "stablelm", "olmo",
    "olmo2", "granite", "cohere", "mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss",
)  # fmt: skip
TOKENS = 64


def tried(kind: str) -> Any:
    more = {"head_dim": 32} if kind in ("qwen3", "gemma2", "gemma3_text", "qwen3_moe", "gpt_oss") else {}
    more |= EXPERTS | {"moe_intermediate_size": 96} if kind in ("qwen2_moe", "qwen3_moe") else {}
    return KINDS[kind].config(**TRIED | more)


def kept_values(model: Any, **more: Any) -> float:
    """Values of 4 bytes that autograd keeps of the decoder's pass for each token, parameters left out."""
    own = {item.untyped_storage().data_ptr() for item in (*model.parameters(), *model.buffers())}
    found: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in own:
            found[place] = tensor
        return tensor

    decoder = (model.get_base_model() if hasattr(model, "peft_config") else model).base_model
    tokens_BT = torch.arange(TOKENS)[None]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = decoder(input_ids=tokens_BT, use_cache=False, **more)
    assert output.last_hidden_state.requires_grad
    return sum(item.untyped_storage().nbytes() for item in found.values()) / 4 / TOKENS


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("kind", LAYERS_OF)
def test_what_a_layer_keeps_is_what_autograd_keeps(kind: str, lora: bool) -> None:
    config = tried(kind)
    model: Any = AutoModelForCausalLM.from_config(config)
    shape = shape_of(config.to_dict(), sum(item.numel() for item in model.parameters()))
    merged = 0
    if lora:
        experts = [item for name, item in model.named_parameters() if "experts" in name and item.dim() == 3]
        merged = sum(item.numel() for item in experts) if shape.kind.merges_experts else 0
        model = add_lora(model, Method.model_validate({"kind": "lora", "rank": 1}), 0, "tried")
    said = shape.layers * shape.kept(TOKENS, trained=not lora, masked=False) + 2 * shape.width
    assert kept_values(model.eval()) == pytest.approx(said + merged / TOKENS, rel=0.06)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_documents_apart_cost_a_mask_and_repeated_keys(kind: str) -> None:
    config = tried(kind)
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    shape = shape_of(config.to_dict(), sum(item.numel() for item in model.parameters()))
    positions_BT = torch.cat([torch.arange(20), torch.arange(TOKENS - 20)])[None]
    more = kept_values(model, position_ids=positions_BT) - kept_values(model)
    said = [shape.kept(TOKENS, trained=True, masked=masked) for masked in (False, True)]
    assert more == pytest.approx(shape.layers * (said[1] - said[0]), rel=0.02, abs=1)


@pytest.mark.parametrize(
    "name", ["silu", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "relu2", "gelu_python"]
)
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_what_an_activation_keeps(name: str, gated: bool) -> None:
    from transformers.activations import ACT2FN

    before, other, after = (torch.nn.Linear(*sizes, bias=False) for sizes in ((4, 512), (4, 512), (512, 4)))
    found: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape[:-1].numel() == TOKENS and tensor.shape[-1] == 512:
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    values = torch.randn(TOKENS, 4)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        inner = ACT2FN[name](before(values))
        after(inner * other(values) if gated else inner)
    assert len(found) == inner_kept(name, gated=gated)


# ---- on the way from the coordinator ---------------------------------------------------------------------------------


def listed(config: bytes, path: str) -> list[RemoteFile]:
    return [RemoteFile("other.json", "0" * 64, 1), RemoteFile(path, hashlib.sha256(config).hexdigest(), len(config))]


@pytest.fixture(scope="module")
def specs(glass_dir: Path, plays: Path) -> dict[str, RunSpec]:
    lora = {"kind": "lora", "rank": 4, "alpha": 8.0}
    return {"full": make_spec(glass_dir, plays), "lora": make_spec(glass_dir, plays, method=lora)}


def test_the_config_sent_along_is_read_where_the_signed_list_has_it(specs: dict[str, RunSpec]) -> None:
    config = json.dumps(LLAMA).encode()
    of_base, of_genesis = listed(config, "config.json"), listed(config, "model/config.json")
    assert parse_shape(config, of_genesis, [], specs["full"]) == shape_of(LLAMA)
    assert parse_shape(config, [], of_base, specs["lora"]) == shape_of(LLAMA)


def test_a_config_that_is_not_the_listed_file_is_not_believed(specs: dict[str, RunSpec]) -> None:
    config, other = json.dumps(LLAMA).encode(), json.dumps(GPT_2).encode()
    for genesis, base in (
        (listed(other, "model/config.json"), []),
        (listed(config, "config.json"), []),  # another file of the genesis
        ([], listed(config, "model/config.json")),
        ([], []),
    ):
        assert parse_shape(config, genesis, base, specs["full"]) is None
        assert parse_shape(config, genesis, base, specs["lora"]) is None or base == listed(config, "config.json")
    assert parse_shape(config, listed(config, "config.json"), [], specs["lora"]) is None


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff\xfe\x00", id="no UTF-8"),
        pytest.param(b"[" * 5000 + b"]" * 5000, id="deep"),
        pytest.param(b'{"hidden_size": 1e999}', id="infinite"),
        pytest.param(b'{"hidden_size": 1, "hidden_size": 2}', id="a key twice"),
        pytest.param(json.dumps([LLAMA]).encode(), id="a list"),
        pytest.param(b"null", id="null"),
        pytest.param(json.dumps({"text_config": {}} | LLAMA).encode(), id="a text part that says nothing"),
        pytest.param(json.dumps(LLAMA).encode().ljust(MAX_MODEL_CONFIG_BYTES + 1), id="too long"),
    ],
)
def test_hostile_bytes_give_no_shape_and_no_error(specs: dict[str, RunSpec], config: bytes) -> None:
    assert parse_shape(config, listed(config, "model/config.json"), [], specs["full"]) is None


def test_a_config_as_long_as_is_allowed_is_read(specs: dict[str, RunSpec]) -> None:
    config = json.dumps(LLAMA).encode().ljust(MAX_MODEL_CONFIG_BYTES)
    assert parse_shape(config, listed(config, "model/config.json"), [], specs["full"]) is not None
