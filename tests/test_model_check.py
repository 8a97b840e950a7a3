"""One look at a base model: what it is, and what is refused before anything is copied, built or signed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from coordinator.model_source import prepare_model
from coordinator.run_config import ModelSource
from lab.training_fixtures import CHAT_TEMPLATE, make_genesis, make_spec, write_tiny_gpt2, write_tiny_llama
from peer.training.data import Dataset, Sequences
from peer.training.genesis import build_genesis
from peer.training.loading import load_causal_lm, load_tokenizer
from peer.training.model import load_trainable
from peer.training.model_check import _check_tokenizer, check_model, check_plan
from protocol.errors import InputError
from protocol.run_spec import Method
from tests.kit.base_models import FULL, LORA, change_weights, configure, data, refused
from tests.kit.hub_server import Hub, serve

SIZES = {
    "vocab_size": 1024,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, glass_dir: Path) -> Path:
    """A tiny Llama whose head is its own: 64 positions, 1024 rows of embeddings, as many tokens."""
    return write_tiny_llama(tmp_path_factory.mktemp("made"), glass_dir)


@pytest.fixture
def base(made: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(made, tmp_path / "base"))


def test_a_sound_model_is_described_in_one_line(base: Path) -> None:
    found = check_model(base, FULL, data())
    assert (found.parameters, found.positions, found.embeddings, found.tokens) == (86_176, 64, 1024, 1024)
    assert str(found).startswith("LlamaForCausalLM, 86,176 parameters, all trained") and "\n" not in str(found)
    assert check_model(base, LORA, data()).trainable == 2 * 2 * 2 * (32 + 32)


def test_a_model_is_loaded_without_compiled_kernels_from_a_hub(base: Path) -> None:
    model = load_causal_lm(base)
    assert not getattr(model, "use_kernels", False)  # of transformers 5.25 and later


@pytest.mark.parametrize("tied_twice", [False, True])
def test_what_is_counted_is_what_is_trained(tied_twice: bool, base: Path, plays: Path, tmp_path: Path) -> None:
    """Some files hold a tied head a second time, the same; it counts once."""
    if tied_twice:
        configure(base, tie_word_embeddings=True)
        change_weights(base, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    spec = make_spec(base, plays)
    state = make_genesis(spec, base, tmp_path / "genesis")
    assert spec.model.parameters == spec.model.trainable == state.parameters.numel() == 86_176 - tied_twice * 32 * 1024


# ---- configuration and weights ---------------------------------------------------------------------------------------


def test_a_head_that_config_says_is_tied_is_refused_when_the_file_has_another(base: Path) -> None:
    told = refused(configure(base, tie_word_embeddings=True))
    assert "ties lm_head.weight to model.embed_tokens.weight" in told.message and "tie_word_embeddings" in told.hint


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"num_hidden_layers": 1}, r"9 tensors that config.json has no place for, model.layers.1.*dropped"),
        ({"num_hidden_layers": 3}, r"lacks 9 weights of the architecture, model.layers.2"),
        ({"hidden_size": 48}, r"lm_head.weight has the shape \(1024, 32\), by config.json it is \(1024, 48\)"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantized weights"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, r"quantized weights"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, r"quantized weights"),
        ({"quantization": {"bits": 4}}, r"quantized weights"),
        ({"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}}, r"its own code \(auto_map in config.json\)"),
        ({"model_type": "none"}, r"not a causal LM that transformers can load"),
        ({"is_causal": False}, r"looks both ways"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(change: dict[str, Any], told: str, base: Path) -> None:
    configure(base, **change)
    assert re.search(told, refused(base).message)


@pytest.mark.parametrize("where", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_weights_that_are_no_numbers_are_named(where: str, value: str, base: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[where].view(-1)[-3] = float(value)

    change_weights(base, spoil)
    told = refused(base, LORA).message
    assert f"model.safetensors: the tensor {where} holds {'NaN' if value == 'nan' else 'an infinity'}" in told


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8])
def test_weights_that_are_not_held_as_floats_are_refused(dtype: torch.dtype, base: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    change_weights(base, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    assert f"the tensor {name} is held as" in refused(base).message


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_in_other_floats_are_taken(dtype: torch.dtype, base: Path) -> None:
    change_weights(base, lambda tensors: tensors.update({name: w.to(dtype) for name, w in tensors.items()}))
    assert check_model(base, FULL, data()).parameters == 86_176


# ---- what kind of model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_an_encoder_is_refused_unless_it_is_used_as_a_decoder(kind: str, tmp_path: Path, glass_dir: Path) -> None:
    for decoder, auto in ((False, AutoModelForMaskedLM), (True, AutoModelForCausalLM)):
        folder = tmp_path / str(decoder)
        auto.from_config(AutoConfig.for_model(kind, is_decoder=decoder, **SIZES)).save_pretrained(folder)
        load_tokenizer(glass_dir).save_pretrained(folder)
        if decoder:
            assert check_model(folder, FULL, data()).positions == {"roberta": 510}.get(kind, 512)
        else:
            assert "looks both ways" in refused(folder).message


def test_an_encoder_with_a_decoder_is_refused(tmp_path: Path, glass_dir: Path) -> None:
    sizes = {"vocab_size": 1024, "d_model": 32, "d_ff": 64, "num_layers": 1, "num_heads": 2, "d_kv": 16}
    AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", **sizes)).save_pretrained(tmp_path)
    load_tokenizer(glass_dir).save_pretrained(tmp_path)
    assert "of the kind t5, an encoder with a decoder" in refused(tmp_path).message


def test_a_model_that_sees_later_tokens_is_found_out_whatever_it_says_of_itself(
    tmp_path: Path, glass_dir: Path, plays: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = AutoConfig.for_model("bert", **SIZES)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    load_tokenizer(glass_dir).save_pretrained(tmp_path / "base")
    spec = make_spec(tmp_path / "base", plays)
    with pytest.raises(InputError, match="depends on those that follow"):
        build_genesis(spec, tmp_path / "base", tmp_path / "genesis")
    assert not (tmp_path / "genesis").exists()


# ---- lengths and targets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rope", "most"),
    [
        ({}, 64),
        ({"rope_type": "linear", "factor": 2.0}, 128),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}, 64),
    ],
)
def test_sequences_are_as_long_as_the_positions_reach(rope: dict[str, Any], most: int, base: Path) -> None:
    if rope:
        configure(base, rope_scaling=rope)
    assert check_model(base, FULL, data(length=most)).positions == most
    told = refused(base, FULL, data(length=most + 1))
    assert f"data.sequence_length is {most + 1}" in told.message and f"at most {most}" in told.hint


def test_learned_positions_are_a_bound_too(tmp_path: Path, glass_dir: Path) -> None:
    folder = write_tiny_gpt2(tmp_path, glass_dir)
    assert check_model(folder, FULL, data(length=64)).positions == 64
    assert "has 64 positions" in refused(folder, FULL, data(length=65)).message


@pytest.mark.parametrize("targets", [("q_proj", "v_porj"), ("v_porj", "q_proj"), (".*_proj",), ("all-linear",), ("q",)])
def test_every_target_must_be_the_name_of_a_module(targets: tuple[str, ...], base: Path) -> None:
    told = refused(base, Method(kind="lora", rank=2, targets=targets))
    assert f"no module is called {next(t for t in targets if t != 'q_proj')!r}" in told.message
    assert "q_proj, up_proj, v_proj" in told.hint and "without targets, all linear layers" in told.hint


@pytest.mark.parametrize("target", ["self_attn", "input_layernorm"])
def test_a_target_that_no_adapter_fits_on_is_refused(target: str, base: Path) -> None:
    assert f"{target} is a Llama" in refused(base, Method(kind="lora", targets=("q_proj", target))).message


@pytest.mark.parametrize("targets", [(), ("layers.1.self_attn.q_proj",), ("q_proj", "lm_head")])
def test_targets_that_are_there_are_taken(targets: tuple[str, ...], base: Path) -> None:
    assert check_model(base, Method(kind="lora", rank=2, targets=targets), data()).trainable > 0


def test_a_run_that_began_with_a_misspelt_target_goes_on(base: Path, plays: Path, tmp_path: Path) -> None:
    spec = make_spec(base, plays, method={"kind": "lora", "rank": 2, "targets": ["q_proj", "v_porj"]})
    make_genesis(spec, base, tmp_path / "genesis")
    assert load_trainable(spec, tmp_path / "genesis", base).parameters_trainable == 2 * 2 * (32 + 32)


# ---- the tokenizer ---------------------------------------------------------------------------------------------------


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(base: Path) -> None:
    change_weights(
        base, lambda w: w.update({name: w[name][:900].clone() for name in list(w) if w[name].shape[0] == 1024})
    )
    told = refused(configure(base, vocab_size=900))
    assert "the tokenizer has 1024 tokens, the model 900 rows of embeddings" in told.message


def test_a_token_that_was_added_beyond_the_embeddings_is_refused_once_the_data_need_it(
    base: Path, plays: Path, tmp_path: Path
) -> None:
    """Many a tokenizer has such a token, for padding or images, and no text ever comes to it."""
    tokenizer = load_tokenizer(base)
    tokenizer.add_special_tokens({"pad_token": "<more>"})
    tokenizer.save_pretrained(base)
    assert check_model(base, FULL, data("jsonl")).tokens == 1025
    spec = make_spec(base, plays)
    make_genesis(spec, base, tmp_path / "genesis")
    model = load_trainable(spec, tmp_path / "genesis")
    row = torch.full((1, 8), 7, dtype=torch.int32)
    sound = Sequences(row, torch.ones(1, 8, dtype=torch.bool), (8,))
    model.check_fits(Dataset(sound, sound))
    beyond = Sequences(row + torch.tensor([0] * 7 + [1017], dtype=torch.int32), sound.loss_ST, (8,))
    for dataset in (Dataset(beyond, sound), Dataset(sound, beyond)):
        with pytest.raises(InputError, match=r"token 1024 \(<more>\), the model has 1024 rows of embeddings"):
            model.check_fits(dataset)
    tokenizer.add_special_tokens({"eos_token": "<more>"})
    tokenizer.save_pretrained(base)
    assert check_model(base, FULL, data("text")).tokens == 1025
    assert "sets token 1024 (<more>)" in refused(base, FULL, data("jsonl")).message


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # hivemind's way to find p2pd
def test_a_volunteer_is_told_of_such_data_before_it_trains(base: Path, tmp_path: Path) -> None:
    from peer.participation import PeerConfig
    from peer.screen.json_lines import JsonScreen
    from peer.volunteer import load_work

    tokenizer = load_tokenizer(base)
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(base)
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 99 + "<more>\n" * 99)
    spec = make_spec(base, tmp_path / "text.txt")
    make_genesis(spec, base, tmp_path / "genesis" / "model")
    files = SimpleNamespace(genesis=tmp_path / "genesis", base_model=None, data=tmp_path / "text.txt")
    admitted: Any = SimpleNamespace(card=SimpleNamespace(spec=spec), files=files)
    with pytest.raises(InputError, match=r"token 1024 \(<more>\), the model has 1024 rows of embeddings"):
        load_work(admitted, "me", PeerConfig(tmp_path), JsonScreen(), tmp_path / "sizes.json", pytest.fail)


def test_a_sequence_beyond_learned_positions_is_an_error_and_no_crash(
    tmp_path: Path, glass_dir: Path, plays: Path
) -> None:
    folder = write_tiny_gpt2(tmp_path / "base", glass_dir)
    spec = make_spec(folder, plays)
    make_genesis(spec, folder, tmp_path / "genesis")
    rows = torch.zeros(1, 65, dtype=torch.int32)
    long = Sequences(rows, torch.ones(1, 65, dtype=torch.bool), (65,))
    with pytest.raises(InputError, match="a sequence of 65 tokens, the model has 64 positions"):
        load_trainable(spec, tmp_path / "genesis").check_fits(Dataset(long, long))


def test_a_tokenizer_without_what_the_data_need_is_refused(base: Path) -> None:
    assert "no chat template" in refused(base, FULL, data("chat")).message
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template, tokenizer.eos_token = {"default": 1}, None
    with pytest.raises(InputError, match="chat template is not text"):
        _check_tokenizer(base, tokenizer, 1024, data())
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(base)
    assert check_model(base, FULL, data("chat")).tokens == 1024
    assert "no end-of-sequence token" in refused(base, FULL, data("jsonl")).message


# ---- before the download ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sound", [True, False])
def test_a_hub_is_asked_for_weights_only_when_the_rest_fits(
    sound: bool, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # this hub is on loopback
    hub = Hub("owner/tiny", "a" * 40, base)
    source = ModelSource(hub="owner/tiny", revision="a" * 40, license="MIT")
    wanted = data(length=64 if sound else 65)

    def prepare() -> Path:
        return prepare_model(
            source, tmp_path, tmp_path / "cache", hub.url, lambda plan: check_plan(plan, FULL, wanted) and None
        )

    with serve(hub):
        if sound:
            assert check_model(prepare(), FULL, wanted).parameters == 86_176
        else:
            with pytest.raises(InputError, match="has 64 positions"):
                prepare()
    assert ("model.safetensors" in hub.served()) == sound and "config.json" in hub.served()
