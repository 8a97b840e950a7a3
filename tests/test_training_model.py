"""The trainable model: one flat vector, folders that stock loaders read, and what is refused."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lab.training_fixtures import make_genesis, make_spec, write_tiny_gpt2, write_tiny_llama
from peer.training.genesis import count_parameters, load_state
from peer.training.loading import load_causal_lm, load_tokenizer
from peer.training.model import load_trainable
from peer.training.state import SharedState
from protocol.errors import FormatError, InputError
from protocol.run_spec import Method
from protocol.safetensors_file import Weights

LORA = {"kind": "lora", "rank": 4, "alpha": 8.0}
METHODS: dict[str, dict[str, Any]] = {"full": {"kind": "full"}, "lora": LORA}


@pytest.fixture(scope="module", params=["llama", "gpt2", "glass"])
def base_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, glass_dir: Path) -> Path:
    if request.param == "glass":
        return glass_dir
    write = {"llama": write_tiny_llama, "gpt2": write_tiny_gpt2}[request.param]
    return write(tmp_path_factory.mktemp(request.param), glass_dir)


def stock_load(kind: str, folder: Path, base: Path) -> Any:
    """What someone without Potluck would write."""
    if kind == "full":
        return AutoModelForCausalLM.from_pretrained(folder)
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)


TOKENS_BT = torch.arange(40).reshape(2, 20) + 10


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # peft's own, of transformers
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_saved_model_loads_with_stock_loaders_and_computes_the_same(
    kind: str, base_dir: Path, plays: Path, tmp_path: Path
) -> None:
    spec = make_spec(base_dir, plays, method=METHODS[kind])
    genesis = make_genesis(spec, base_dir, tmp_path / "genesis")
    model = load_trainable(spec, tmp_path / "genesis", base_dir)
    assert torch.equal(model.read(), genesis.parameters) and model.names_shapes == genesis.names_shapes
    model.write(genesis.parameters + 0.01 * torch.randn(genesis.parameters.shape))
    model.save_model(tmp_path / "saved")
    stock = stock_load(kind, tmp_path / "saved", base_dir)
    with torch.no_grad():
        ours, theirs = model.model(TOKENS_BT).logits, stock(TOKENS_BT).logits
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")("to be")["input_ids"]
    weights = Weights.open(tmp_path / "saved", [path.name for path in (tmp_path / "saved").iterdir()])
    state = SharedState(1, model.names_shapes, model.read())
    assert weights.layout == model.names_shapes and weights.state_root() == state.manifest().parameters


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_genesis_is_the_same_bytes_each_time(kind: str, base_dir: Path, plays: Path, tmp_path: Path) -> None:
    spec = make_spec(base_dir, plays, method=METHODS[kind])
    first, again = (make_genesis(spec, base_dir, tmp_path / name) for name in ("a", "b"))
    assert first.digest == again.digest == load_state(tmp_path / "a").digest
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_counting_agrees_with_the_loaded_model(kind: str, base_dir: Path, plays: Path, tmp_path: Path) -> None:
    spec = make_spec(base_dir, plays, method=METHODS[kind])
    make_genesis(spec, base_dir, tmp_path / "genesis")
    model = load_trainable(spec, tmp_path / "genesis", base_dir)
    assert (model.parameters_total, model.parameters_trainable) == (spec.model.parameters, spec.model.trainable)
    assert (model.parameters_total == model.parameters_trainable) == (kind == "full")
    assert model.flops(10) == 40 * spec.model.parameters + 20 * spec.model.trainable


def test_tied_weights_are_in_the_state_once(plays: Path, tmp_path: Path, glass_dir: Path) -> None:
    base = write_tiny_gpt2(tmp_path / "base", glass_dir)
    spec = make_spec(base, plays)
    state = make_genesis(spec, base, tmp_path / "genesis")
    names = [name for name, _ in state.names_shapes]
    assert "transformer.wte.weight" in names and "lm_head.weight" not in names
    assert sorted(load_file(tmp_path / "genesis" / "model.safetensors")) == names
    model = load_trainable(spec, tmp_path / "genesis")
    model.write(torch.zeros_like(state.parameters))
    assert model.model.lm_head.weight.abs().sum() == 0


def test_an_adapter_names_the_public_base_and_not_a_folder_of_the_host(
    plays: Path, tmp_path: Path, glass_dir: Path
) -> None:
    spec = make_spec(glass_dir, plays, method=LORA)
    make_genesis(spec, glass_dir, tmp_path / "genesis")
    config = json.loads((tmp_path / "genesis" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "glass" and config["target_modules"] == sorted(config["target_modules"])
    for path in (tmp_path / "genesis").iterdir():
        assert str(glass_dir).encode() not in path.read_bytes(), path.name
    assert not (tmp_path / "genesis" / "README.md").exists()


def test_lora_weights_follow_the_run_seed_and_leave_torchs_generator_alone(
    plays: Path, tmp_path: Path, glass_dir: Path
) -> None:
    digests = []
    for seed in (1, 1, 2):
        spec = make_spec(glass_dir, plays, method=LORA, run={"seed": seed})
        torch.manual_seed(seed * 17)
        before = torch.get_rng_state()
        digests.append(make_genesis(spec, glass_dir, tmp_path / str(len(digests))).digest)
        assert torch.equal(torch.get_rng_state(), before)
    assert digests[0] == digests[1] != digests[2]


def test_lora_targets_can_be_named_and_unknown_ones_are_refused(plays: Path, tmp_path: Path, glass_dir: Path) -> None:
    spec = make_spec(glass_dir, plays, method=LORA | {"targets": ["q_proj", "v_proj"]})
    state = make_genesis(spec, glass_dir, tmp_path / "genesis")
    assert {name.split(".")[-3] for name, _ in state.names_shapes} == {"q_proj", "v_proj"}
    with pytest.raises(InputError) as caught:
        make_spec(glass_dir, plays, method=LORA | {"targets": ["qproj"]})
    assert "qproj" in caught.value.message and "q_proj" in caught.value.hint


def test_a_fresh_adapter_changes_nothing(plays: Path, tmp_path: Path, glass_dir: Path) -> None:
    spec = make_spec(glass_dir, plays, method=LORA)
    make_genesis(spec, glass_dir, tmp_path / "genesis")
    adapted, base = load_trainable(spec, tmp_path / "genesis", glass_dir), load_causal_lm(glass_dir)
    with torch.no_grad():
        assert torch.allclose(adapted.model(TOKENS_BT).logits, base(TOKENS_BT).logits, atol=1e-6)


def test_the_loss_is_the_sum_over_predicted_tokens(glass_dir: Path, plays: Path, tmp_path: Path) -> None:
    spec = make_spec(glass_dir, plays)
    make_genesis(spec, glass_dir, tmp_path / "genesis")
    model = load_trainable(spec, tmp_path / "genesis")
    labels_BT = TOKENS_BT.clone()
    labels_BT[0, :7] = -100
    stock = AutoModelForCausalLM.from_pretrained(glass_dir)
    with torch.no_grad():
        expected = stock(input_ids=TOKENS_BT, labels=labels_BT).loss * (13 + 19)
        assert torch.allclose(model.loss(TOKENS_BT, labels_BT), expected, rtol=1e-5)


def test_dropout_is_off_so_that_work_can_be_repeated(plays: Path, tmp_path: Path, glass_dir: Path) -> None:
    base = write_tiny_gpt2(tmp_path / "base", glass_dir)
    spec = make_spec(base, plays)
    make_genesis(spec, base, tmp_path / "genesis")
    model = load_trainable(spec, tmp_path / "genesis")
    assert model.model.config.resid_pdrop > 0
    assert torch.equal(model.loss(TOKENS_BT, TOKENS_BT), model.loss(TOKENS_BT, TOKENS_BT))


def test_generated_text_follows_the_seed(glass_dir: Path, plays: Path, tmp_path: Path) -> None:
    spec = make_spec(glass_dir, plays)
    make_genesis(spec, glass_dir, tmp_path / "genesis")
    model = load_trainable(spec, tmp_path / "genesis")
    texts = [model.generate("KING HENRY\n", max_new_tokens=20, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2] and texts[0].startswith("KING HENRY\n")
    assert len(texts[0]) > len("KING HENRY\n")


def test_a_vector_of_another_length_is_not_written(glass_dir: Path, plays: Path, tmp_path: Path) -> None:
    spec = make_spec(glass_dir, plays)
    make_genesis(spec, glass_dir, tmp_path / "genesis")
    model = load_trainable(spec, tmp_path / "genesis")
    for bad in (torch.zeros(3), model.read().double()):
        with pytest.raises(FormatError, match="expected fp32"):
            model.write(bad)


def test_pickled_weights_are_refused_and_never_opened(tmp_path: Path, glass_dir: Path) -> None:
    folder = tmp_path / "pickle"
    shutil.copytree(glass_dir, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="a pickle, which can run code"):
        load_causal_lm(folder)


def test_remote_code_is_refused_and_never_run(tmp_path: Path, glass_dir: Path) -> None:
    folder = tmp_path / "remote"
    shutil.copytree(glass_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {k: f"evil.{k}" for k in ("AutoConfig", "AutoModelForCausalLM")}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for attempt in (load_causal_lm, lambda f: count_parameters(Method(), f)):
        with pytest.raises(InputError, match="not a causal LM"):
            attempt(folder)
    assert not (tmp_path / "ran").exists()


def test_a_base_that_lacks_weights_is_refused_and_not_filled_with_random_ones(tmp_path: Path, glass_dir: Path) -> None:
    folder = tmp_path / "lacking"
    shutil.copytree(glass_dir, folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 weights.*layers\.2\.mlp\.up_proj"):
        load_causal_lm(folder)


def test_a_checkpoint_with_missing_extra_or_misshapen_tensors_is_refused(
    tmp_path: Path, glass_dir: Path, plays: Path
) -> None:
    spec = make_spec(glass_dir, plays, method=LORA)
    make_genesis(spec, glass_dir, tmp_path / "genesis")
    path = tmp_path / "genesis" / "adapter_model.safetensors"
    good = load_file(path)
    name = sorted(good)[0]
    for bad, message in (
        ({k: v for k, v in good.items() if k != name}, "lacks the tensor"),
        (good | {"zzz": torch.zeros(1)}, "extra tensor zzz"),
        (good | {name: torch.zeros(2, 2)}, "expected shape"),
        (good | {name: good[name].half()}, "F16, expected F32"),
    ):
        save_file(bad, path)
        with pytest.raises(InputError, match=message):
            load_trainable(spec, tmp_path / "genesis", glass_dir)


def test_folders_that_are_missing_empty_or_damaged_are_refused(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    with pytest.raises(InputError, match="no such model folder"):
        load_causal_lm(tmp_path / "none")
    with pytest.raises(InputError, match=r"no \*\.safetensors file"):
        load_causal_lm(tmp_path)
    folder = tmp_path / "damaged"
    shutil.copytree(glass_dir, folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(InputError, match="damaged"):
        load_causal_lm(folder)
    with pytest.raises(InputError, match="not a tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(InputError, match="needs its base model"):
        load_trainable(make_spec(glass_dir, plays, method=LORA), glass_dir, None)


def test_a_model_folder_that_makes_no_sense_is_refused_whatever_is_wrong_with_it(
    tmp_path: Path, glass_dir: Path
) -> None:
    config = json.loads((glass_dir / "config.json").read_text())
    wrong = [{"hidden_size": "x"}, {"num_key_value_heads": 0}, {"pad_token_id": 10**6}, {"model_type": "none"}]
    files = [("config.json", json.dumps(config | change)) for change in wrong]
    files += [(name, text) for name in ("config.json", "tokenizer.json") for text in ("", "null", "[]", "{")]
    for number, (name, text) in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(glass_dir, folder)
        (folder / name).write_text(text)
        with pytest.raises(InputError, match="that transformers can load"):
            load_tokenizer(folder) if name == "tokenizer.json" else load_causal_lm(folder)
        if name == "config.json":
            with pytest.raises(InputError, match="that transformers can load"):
                count_parameters(Method(), folder)


def test_a_half_precision_base_becomes_an_fp32_genesis(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(glass_dir, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    load_tokenizer(glass_dir).save_pretrained(tmp_path / "half")
    spec = make_spec(tmp_path / "half", plays)
    make_genesis(spec, tmp_path / "half", tmp_path / "genesis")
    assert {tensor.dtype for tensor in load_file(tmp_path / "genesis" / "model.safetensors").values()} == {
        torch.float32
    }
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "genesis").dtype == torch.float32


def test_the_saved_configuration_is_the_bases(tmp_path: Path, base_dir: Path, plays: Path) -> None:
    spec = make_spec(base_dir, plays)
    make_genesis(spec, base_dir, tmp_path / "genesis")
    load_trainable(spec, tmp_path / "genesis").save_model(tmp_path / "saved")
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / "saved" / name).read_text()) == json.loads((base_dir / name).read_text())


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_local_folders_need_no_network_even_when_the_hub_is_not_switched_off(
    kind: str, tmp_path: Path, glass_dir: Path, plays: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *where, **_: asked.append(where) or [])
    monkeypatch.setattr(socket.socket, "connect", lambda _, where: asked.append(where))
    spec = make_spec(glass_dir, plays, method=METHODS[kind])
    make_genesis(spec, glass_dir, tmp_path / "genesis")
    load_trainable(spec, tmp_path / "genesis", glass_dir).save_model(tmp_path / "saved")
    assert asked == []


def test_loading_and_saving_print_nothing(
    tmp_path: Path, glass_dir: Path, plays: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = make_spec(glass_dir, plays)
    make_genesis(spec, glass_dir, tmp_path / "genesis")
    load_trainable(spec, tmp_path / "genesis").save_model(tmp_path / "saved")
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""
