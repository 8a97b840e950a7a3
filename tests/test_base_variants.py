"""Bases as people have them: tied or not, odd sizes, missing tokens, bf16, shards, odd settings; each through a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from peer.training.model_check import check_model
from protocol.errors import InputError
from protocol.run_spec import Method
from tests.kit.architectures import ARCHITECTURES, write_base
from tests.kit.base_models import change_weights, configure, data
from tests.kit.data_fixtures import CHAT, byte_tokenizer
from tests.kit.journey import Journey, stock_logits, travel

BY_KIND = {architecture.kind: architecture for architecture in ARCHITECTURES}
TOKENS_BT = (torch.arange(24) * 7 % 270).view(2, 12)
MARKED = CHAT.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}")
METHODS = pytest.mark.parametrize("method", [{"kind": "full"}, {"kind": "lora", "rank": 2}], ids=["full", "lora"])


def _generation(folder: Path, **values: Any) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _without(*names: str) -> Callable[[Path], None]:
    """Special tokens that the tokenizer does not have, and the configuration does not name."""

    def spoil(folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for name in names:
            setattr(tokenizer, f"{name}_token", None)
        tokenizer.save_pretrained(folder)
        configure(folder, **{f"{name}_token_id": None for name in names})
        _generation(folder, **{f"{name}_token_id": None for name in names})

    return spoil


def _in(dtype: torch.dtype) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        change_weights(folder, lambda tensors: tensors.update({name: w.to(dtype) for name, w in tensors.items()}))
        configure(folder, dtype=str(dtype).removeprefix("torch."))

    return spoil


def _shards(folder: Path) -> None:
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("model-*.safetensors"))) > 2


def _old_names(folder: Path) -> None:
    """As a model without its head names what it holds, GPT-2's on its hub say."""
    tensors = load_file(folder / "model.safetensors")
    renamed = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})


def _template(text: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        byte_tokenizer(text).save_pretrained(folder)
        lines = []
        for number in range(40):
            asked = {"role": "user", "content": f"Who brings log {number}?"}
            lines.append(json.dumps({"messages": [asked, {"role": "assistant", "content": f"Guest {number}."}]}))
        (folder / "data.txt").write_text("\n".join(lines) + "\n")

    return spoil


VARIANTS: dict[str, tuple[str, dict[str, Any], Callable[[Path], Any]]] = {
    "head tied": ("llama", {"tie_word_embeddings": True}, lambda folder: None),
    "head of its own": ("gpt2", {"tie_word_embeddings": False}, lambda folder: None),
    "prime number of rows": ("llama", {"vocab_size": 353}, lambda folder: None),
    "no pad": ("llama", {}, _without("pad")),
    "no special tokens": ("llama", {}, _without("pad", "bos", "eos")),
    "bf16": ("llama", {}, _in(torch.bfloat16)),
    "fp16, experts": ("mixtral", {}, _in(torch.float16)),
    "shards": ("qwen3", {}, _shards),
    "shards, experts": ("qwen3_moe", {}, _shards),
    "names without prefix": ("gpt2", {}, _old_names),
    "generation for sampling, switched off": ("llama", {}, lambda at: _generation(at, temperature=0.3, top_p=0.5)),
    "generation with unknown": ("llama", {}, lambda at: _generation(at, of_the_makers_own=7)),
    "no generation": ("llama", {}, lambda at: (at / "generation_config.json").unlink()),
    "sampling in config.json": ("llama", {}, lambda at: configure(at, temperature=0.3, do_sample=False, top_k=5)),
}


def check(journey: Journey) -> None:
    ours, theirs = journey.logits(TOKENS_BT), stock_logits(journey, TOKENS_BT)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6 * float(ours.abs().max()))


@METHODS
@pytest.mark.parametrize("name", VARIANTS)
def test_such_a_base_goes_through_a_run(name: str, method: dict[str, Any], tmp_path: Path) -> None:
    kind, changes, spoil = VARIANTS[name]
    base = write_base(tmp_path / "base", BY_KIND[kind], **changes)
    spoil(base)
    journey = travel(base, tmp_path, method=method)
    check(journey)
    folder = journey.checkpoint / "model"
    if (base / "generation_config.json").exists() and method["kind"] == "full":
        given, kept = (GenerationConfig.from_pretrained(at).to_dict() for at in (base, folder))
        given.pop("transformers_version"), kept.pop("transformers_version")
        assert kept == given
    assert AutoTokenizer.from_pretrained(folder).eos_token == AutoTokenizer.from_pretrained(base).eos_token


@pytest.mark.parametrize("template", [CHAT, MARKED], ids=["plain", "marked"])
def test_a_chat_template_travels_to_the_checkpoint_as_it_is(template: str, tmp_path: Path) -> None:
    """With marks of what the model is to say, which jinja alone does not know, or without."""
    base = write_base(tmp_path / "base", BY_KIND["llama"])
    _template(template)(base)
    journey = travel(base, tmp_path, data={"kind": "chat", "sequence_length": 48, "held_out": 0.2})
    check(journey)
    assert AutoTokenizer.from_pretrained(journey.checkpoint / "model").chat_template == template


def test_a_base_whose_names_have_no_prefix_is_published_under_its_kinds_own(tmp_path: Path) -> None:
    """So that members who load the genesis, and the host who loaded the base, hold one layout."""
    base = write_base(tmp_path / "base", BY_KIND["gpt2"])
    whole = travel(Path(shutil.copytree(base, tmp_path / "copy")), tmp_path / "a")
    _old_names(base)
    journey = travel(base, tmp_path / "b")
    assert journey.layout == whole.layout and journey.genesis.digest == whole.genesis.digest


def test_experts_that_a_base_holds_as_one_tensor_are_published_each_for_itself(tmp_path: Path) -> None:
    """As its kind's files have them: transformers 5 can write both, other programs read the one."""
    base = write_base(tmp_path / "base", BY_KIND["mixtral"])
    apart = set(load_file(base / "model.safetensors"))
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(base, save_original_format=False)
    assert set(load_file(base / "model.safetensors")) != apart
    journey = travel(base, tmp_path)
    check(journey)
    assert {name for name, _ in journey.layout} == apart


@pytest.mark.parametrize("text", ["[", '{"early_stopping": "maybe"}'])
def test_a_generation_config_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", BY_KIND["llama"])
    (base / "generation_config.json").write_text(text)
    with pytest.raises(InputError, match=r"generation_config\.json: not a file that transformers can load"):
        check_model(base, Method(), data(length=16))
