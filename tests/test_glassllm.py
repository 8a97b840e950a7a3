"""The converted glassllm model is the original: same logits, same tokens."""

from __future__ import annotations

from pathlib import Path

import glassllm
import numpy as np
import pytest
import torch

from peer.training.glassllm import main, write_folder
from peer.training.loading import load_causal_lm, load_tokenizer
from protocol.errors import InputError


@pytest.mark.parametrize("language", ["en", "pt"])
def test_logits_equal_those_of_glassllms_own_forward(tmp_path: Path, language: str) -> None:
    original, tokenizer = glassllm.load_pretrained(language)
    ids = np.random.default_rng(0).integers(4, tokenizer.vocab_size, size=(2, original.cfg.max_len))
    model = load_causal_lm(write_folder(tmp_path, language))
    with torch.no_grad():
        logits = model(torch.from_numpy(ids)).logits.numpy()
    assert np.abs(logits - original.forward(ids).data).max() < 1e-4


def test_tokens_equal_the_originals_on_shakespeare_and_decode_to_the_text(glass_dir: Path, plays: Path) -> None:
    _, original = glassllm.load_pretrained("en")
    tokenizer, text = load_tokenizer(glass_dir), plays.read_text()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == original.encode(text)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    "text", ["", " ", "\n\n", "  two  spaces\n   three", "a▁b", "cafe\u0301 #§", "end ", "\ttab", "\r\n"]
)
def test_tokens_equal_the_originals_at_the_edges(glass_dir: Path, text: str) -> None:
    _, original = glassllm.load_pretrained("en")
    assert load_tokenizer(glass_dir)(text, add_special_tokens=False)["input_ids"] == original.encode(text)


def test_the_whole_text_of_the_demo_has_no_unknown_token(glass_dir: Path, shakespeare: Path) -> None:
    vocabulary = load_tokenizer(glass_dir).get_vocab()
    assert {character for character in shakespeare.read_text() if character not in vocabulary} == {" "}


def test_an_unknown_language_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no weights for 'tlh'"):
        write_folder(tmp_path, "tlh")


def test_the_command_writes_a_folder(tmp_path: Path) -> None:
    assert main([str(tmp_path / "model")]) == 0
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
