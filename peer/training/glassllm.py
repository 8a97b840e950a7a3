"""The demo's and the tests' model: converts the weights inside the `glassllm` package to a transformers folder.

glassllm 0.1.0 (MIT) is a decoder of 0.85 M parameters with Llama's shape, written in numpy. What differs from
LlamaForCausalLM: matrices are stored transposed; rotary pairs are interleaved (0, 1), (2, 3), ... where Llama pairs the
two halves of a head; the tokenizer is a character BPE with `▁` for a space, whose chunks end at line ends.

    python -m peer.training.glassllm OUT [--language en|pt]

Used by `scripts/demo`, `scripts/bench` and the tests; needs the [demo] extra.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from peer.training.quiet import no_progress_bars
from protocol.errors import InputError, PotluckError
from protocol.installed import this_installation

_SPECIALS = ["<pad>", "<unk>", "<bos>", "<eos>"]
_CHUNK = r"\n|▁*[^▁\n]+|▁+"


def write_folder(out: Path, language: str = "en") -> Path:
    """Write config, weights and tokenizer of a glassllm model as a transformers folder; returns `out`.

    Raises:
        InputError: the glassllm package is not installed, or has no such language.
    """
    try:
        source = resources.files("glassllm") / "weights"
    except ModuleNotFoundError as error:
        raise InputError("the package glassllm is not installed", this_installation().add("demo")) from error
    weights, vocabulary = source / f"{language}.npz", source / f"{language}.tokenizer.json"
    if not weights.is_file() or not vocabulary.is_file():
        raise InputError(f"glassllm has no weights for {language!r}", "choose en or pt")
    with resources.as_file(weights) as path, np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    settings = json.loads(str(arrays.pop("__config__")))
    model = convert_model(settings, arrays)
    out.mkdir(parents=True, exist_ok=True)
    with no_progress_bars():
        model.save_pretrained(str(out))
    (out / "model.safetensors").chmod(0o644)  # safetensors makes files that only their owner may read
    convert_tokenizer(json.loads(vocabulary.read_text(encoding="utf-8")), settings["max_len"]).save_pretrained(str(out))
    for file in metadata.files("glassllm") or []:
        if file.name == "LICENSE":
            (out / file.name).write_text(file.read_text(), encoding="utf-8")
    return out


def convert_model(settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> LlamaForCausalLM:
    """The same function as glassllm's forward, as a Llama model in fp32."""
    config = LlamaConfig(
        vocab_size=settings["vocab_size"],
        hidden_size=settings["d_model"],
        intermediate_size=int(8 * settings["d_model"] / 3),
        num_hidden_layers=settings["n_layers"],
        num_attention_heads=settings["n_heads"],
        num_key_value_heads=settings["n_kv_heads"],
        max_position_embeddings=settings["max_len"],
        rms_norm_eps=settings["eps"],
        rope_parameters={"rope_type": "default", "rope_theta": settings["rope_base"]},
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    model = LlamaForCausalLM(config)
    state = {name: torch.from_numpy(array) for name, array in _llama_arrays(settings, arrays).items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    return model


def _llama_arrays(settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    source = {name: array.astype(np.float32) for name, array in arrays.items()}
    result = {"model.embed_tokens.weight": source["E"], "model.norm.weight": source["norm_f.gamma"]}
    for i in range(settings["n_layers"]):
        block, layer = f"blocks.{i}", f"model.layers.{i}"
        result[f"{layer}.input_layernorm.weight"] = source[f"{block}.norm1.gamma"]
        result[f"{layer}.post_attention_layernorm.weight"] = source[f"{block}.norm2.gamma"]
        for ours, theirs, heads in (("q", "W_Q", settings["n_heads"]), ("k", "W_K", settings["n_kv_heads"])):
            matrix = _halves(source[f"{block}.attn.{theirs}"].T, heads)
            result[f"{layer}.self_attn.{ours}_proj.weight"] = matrix
        for ours, theirs in (("self_attn.v_proj", "attn.W_V"), ("self_attn.o_proj", "attn.W_O")):
            result[f"{layer}.{ours}.weight"] = np.ascontiguousarray(source[f"{block}.{theirs}"].T)
        for ours, theirs in (("gate_proj", "W1"), ("up_proj", "W3"), ("down_proj", "W2")):
            result[f"{layer}.mlp.{ours}.weight"] = np.ascontiguousarray(source[f"{block}.ffn.{theirs}"].T)
    return result


def _halves(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Reorder each head's output rows from interleaved rotary pairs to two halves. [heads * d, width] -> the same."""
    width = matrix.shape[1]
    pairs = matrix.reshape(heads, -1, 2, width)
    return np.ascontiguousarray(pairs.transpose(0, 2, 1, 3).reshape(-1, width))


def convert_tokenizer(vocabulary: dict[str, Any], max_length: int) -> PreTrainedTokenizerFast:
    """The same tokens as glassllm's, from the `tokenizers` library."""
    merges = [(left, right) for left, right in vocabulary["merges"]]
    tokens = [*_SPECIALS, *vocabulary["alphabet"], *(left + right for left, right in merges)]
    bpe = models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, unk_token="<unk>")
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_CHUNK), behavior="isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m peer.training.glassllm", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--language", choices=["en", "pt"], default="en")
    options = parser.parse_args(arguments)
    try:
        write_folder(options.out, options.language)
    except PotluckError as error:
        sys.stderr.write(f"error: {error.message}\nhint: {error.hint}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
