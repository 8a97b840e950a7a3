"""One look at a base model: what it is, and what is refused before anything is copied, built or signed."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from coordinator.base_model import copy_model
from coordinator.model_source import prepare_model
from coordinator.run_config import DataSource, ModelSource
from lab.training_fixtures import CHAT_TEMPLATE, make_genesis, make_spec, write_tiny_gpt2, write_tiny_llama
from peer.training.data import Dataset, Sequences
from peer.training.genesis import build_genesis, count_parameters
from peer.training.model import load_causal_lm, load_tokenizer, load_trainable
from peer.training.model_check import _check_tokenizer, check_model, check_plan
from protocol.errors import InputError
from protocol.invite import Invite
from protocol.run_spec import Method
from tests.kit.hub_server import Hub, serve

FULL, LORA = Method(), Method(kind="lora", rank=2, targets=("q_proj", "v_proj"))
SIZES = {
    "vocab_size": 1024,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def data(kind: str = "text", length: int = 64) -> DataSource:
    return DataSource(path="data", license="MIT", kind=kind, sequence_length=length)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, glass_dir: Path) -> Path:
    """A tiny Llama whose head is its own: 64 positions, 1024 rows of embeddings, as many tokens."""
    return write_tiny_llama(tmp_path_factory.mktemp("made"), glass_dir)


@pytest.fixture
def base(made: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(made, tmp_path / "base"))


def configure(folder: Path, **values: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def shard(folder: Path) -> Path:
    """The same model in several files."""
    whole = folder / "model.safetensors"
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="100KB")
    whole.unlink(missing_ok=True)
    return folder


def refused(folder: Path, method: Method = FULL, wanted: DataSource | None = None) -> InputError:
    with pytest.raises(InputError) as caught:
        check_model(folder, method, wanted or data())
    assert "\n" not in caught.value.message and caught.value.hint, "one line, and what to do"
    return caught.value


def test_a_sound_model_is_described_in_one_line(base: Path) -> None:
    found = check_model(base, FULL, data())
    assert (found.parameters, found.positions, found.embeddings, found.tokens) == (86_176, 64, 1024, 1024)
    assert str(found).startswith("LlamaForCausalLM, 86,176 parameters, all trained") and "\n" not in str(found)
    assert check_model(base, LORA, data()).trainable == 2 * 2 * 2 * (32 + 32)


@pytest.mark.parametrize("tied_twice", [False, True])
def test_what_is_counted_is_what_is_trained(tied_twice: bool, base: Path, plays: Path, tmp_path: Path) -> None:
    """Some files hold a tied head a second time, the same; it counts once."""
    if tied_twice:
        configure(base, tie_word_embeddings=True)
        change_weights(base, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    spec = make_spec(base, plays)
    state = make_genesis(spec, base, tmp_path / "genesis")
    assert spec.model.parameters == spec.model.trainable == state.parameters.numel() == 86_176 - tied_twice * 32 * 1024


# ---- the files -------------------------------------------------------------------------------------------------------


def _adapter(folder: Path) -> None:
    """As trainers leave one beside its base."""
    config = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "base_model_name_or_path": str(folder)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({"base_model.model.lora_A.weight": torch.zeros(2, 32)}, folder / "adapter_model.safetensors")


def _adapter_alone(folder: Path) -> None:
    _adapter(folder)
    (folder / "config.json").unlink()
    (folder / "model.safetensors").unlink()


def _into_cache(folder: Path) -> None:
    inside = folder / "snapshots" / ("a" * 40)
    inside.mkdir(parents=True)
    for path in folder.glob("*.*"):
        path.rename(inside / path.name)


def _lost_shard(folder: Path) -> None:
    (shard(folder) / "model-00002-of-00003.safetensors").unlink()


def _lost_index(folder: Path) -> None:
    (shard(folder) / "model.safetensors.index.json").unlink()


def _index(folder: Path, change: Callable[[dict[str, str]], None]) -> None:
    path = shard(folder) / "model.safetensors.index.json"
    value = json.loads(path.read_text())
    change(value["weight_map"])
    path.write_text(json.dumps(value))


def _link(name: str, to: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(to)

    return make


def _rename(to: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "model.safetensors").rename(folder / to) and None


SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "adapter beside": (_adapter, r"holds an adapter \(adapter_config.json\) beside a whole model"),
    "adapter alone": (_adapter_alone, r"an adapter .*not a whole model"),
    "lost shard": (_lost_shard, r"names 1 of 3 files that are not there, model-00002-of-00003.safetensors among"),
    "lost index": (_lost_index, r"3 weight files, .* and no model.safetensors.index.json"),
    "index of no tensor": (
        lambda folder: _index(folder, lambda names: names.update({"more.weight": min(names.values())})),
        r"lacks the tensor more.weight, which model.safetensors.index.json says it holds",
    ),
    "index of a far file": (
        lambda folder: _index(folder, lambda names: names.update({"more.weight": "../x.safetensors"})),
        r"index.json: names other files than safetensors beside it",
    ),
    "index of nonsense": (
        lambda folder: (shard(folder) / "model.safetensors.index.json").write_text("[]"),
        r"not an index of weight files",
    ),
    "other name": (_rename("weights.safetensors"), r"in model.safetensors, got weights.safetensors"),
    "pickle": (_rename("pytorch_model.bin"), r"a pickle, which can run code"),
    "other format": (_rename("model-q4.gguf"), r"only model-q4.gguf, a format that is not for training"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), r"no config.json"),
    "hub cache": (_into_cache, r"a hub's cache, not a model folder"),
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        r"not a tokenizer that transformers can load",
    ),
    "link to nothing": (_link("tokenizer.json", "nowhere"), r"tokenizer.json: a link to a file that is not there"),
    "weights linked to nothing": (_link("model.safetensors", "../blobs/0"), r"a link to a file that is not there"),
    "pointer": (
        lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid 0\n"),
        r"model.safetensors: a Git LFS pointer",
    ),
    "cut short": (lambda folder: os.truncate(folder / "model.safetensors", 5000), r"model.safetensors: damaged"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_folder_that_is_no_sound_model_is_refused_by_name(how: str, base: Path) -> None:
    spoil, told = SPOILED[how]
    spoil(base)
    assert re.search(told, refused(base).message)


@pytest.mark.parametrize("how", ["adapter beside", "adapter alone", "lost shard", "pointer"])
def test_a_volunteer_is_told_the_same_of_such_a_folder(how: str, base: Path) -> None:
    spoil, told = SPOILED[how]
    spoil(base)
    with pytest.raises(InputError, match=told):
        load_causal_lm(base)


def test_shards_and_links_make_the_same_model(base: Path, made: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in shard(base).iterdir():
        (linked / path.name).symlink_to(path)
    assert str(check_model(linked, FULL, data())) == str(check_model(made, FULL, data()))
    assert count_parameters(FULL, linked) == count_parameters(FULL, made)


def test_weights_that_no_loader_takes_are_named_and_not_copied(base: Path, tmp_path: Path) -> None:
    shutil.copy(base / "model.safetensors", base / "consolidated.safetensors")
    assert str(check_model(base, FULL, data())).endswith("left out: consolidated.safetensors")
    copy_model(base, tmp_path / "copy")
    assert [path.name for path in (tmp_path / "copy").glob("*.safetensors")] == ["model.safetensors"]


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
    from peer.screen.json_lines import JsonScreen
    from peer.volunteer import PeerConfig, Volunteer
    from protocol.leaving import Leaving

    tokenizer = load_tokenizer(base)
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(base)
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 99 + "<more>\n" * 99)
    spec = make_spec(base, tmp_path / "text.txt")
    make_genesis(spec, base, tmp_path / "genesis" / "model")
    files = SimpleNamespace(genesis=tmp_path / "genesis", base_model=None, data=tmp_path / "text.txt")
    invite = Invite(addresses=("127.0.0.1:1",), run="a" * 64, tls="b" * 64, root="c" * 64)
    volunteer = Volunteer(invite, PeerConfig(tmp_path), JsonScreen(), Leaving(lambda: None))
    admission: Any = SimpleNamespace(card=SimpleNamespace(spec=spec), files=files)
    with pytest.raises(InputError, match=r"token 1024 \(<more>\), the model has 1024 rows of embeddings"):
        volunteer._prepare(admission, tmp_path / "sizes.json")


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
