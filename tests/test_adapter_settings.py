"""What `[method]` takes over from peft: rsLoRA, DoRA, modules trained whole, chosen layers; what of it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from peer.training.model_check import check_model
from protocol.canonical import sha256_hex
from protocol.errors import InputError, RunSpecError
from protocol.run_spec import Method, RunSpec, validated
from tests.kit.architectures import ARCHITECTURES, write_base
from tests.kit.base_models import data
from tests.kit.builders import make_spec
from tests.kit.journey import stock_logits, travel

BY_KIND = {architecture.kind: architecture for architecture in ARCHITECTURES}
TOKENS_BT = (torch.arange(24) * 7 % 270).view(2, 12)
WIDTH, ROWS = 32, 283


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {kind: write_base(folder / kind, BY_KIND[kind]) for kind in ("llama", "qwen2", "gpt2", "mixtral", "mamba")}


SETTINGS: dict[str, tuple[dict[str, Any], int, dict[str, int]]] = {
    # settings -> tensors in the state, and how many of some kinds; a tiny Llama has 7 linear layers in each of 2
    "rslora": ({"use_rslora": True}, 28, {"lora_A": 14}),
    "dora": ({"use_dora": True}, 42, {"magnitude": 14}),
    "head": ({"modules_to_save": ["lm_head"]}, 29, {"lm_head.weight": 1}),
    "both": ({"modules_to_save": ["embed_tokens", "lm_head"], "targets": ["q_proj"]}, 6, {"embed_tokens.weight": 1}),
    "one norm": ({"modules_to_save": ["model.norm"]}, 29, {"norm.weight": 1}),
    "second layer": ({"layers_to_transform": [1]}, 14, {"layers.0": 0}),
    "all": ({"use_rslora": True, "use_dora": True, "modules_to_save": ["lm_head"], "layers_to_transform": [0]}, 22, {}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_with_this_setting_ends_in_what_peft_loads(name: str, bases: dict[str, Path], tmp_path: Path) -> None:
    settings, tensors, kinds = SETTINGS[name]
    journey = travel(bases["llama"], tmp_path, method={"kind": "lora", "rank": 2} | settings)
    names = [tensor for tensor, _ in journey.layout]
    assert len(names) == tensors
    assert {kind: sum(kind in tensor for tensor in names) for kind in kinds} == kinds
    written = json.loads((journey.checkpoint / "model" / "adapter_config.json").read_text())
    given = journey.spec.method
    assert (written["use_rslora"], written["use_dora"]) == (given.use_rslora, given.use_dora)
    assert written["modules_to_save"] == (list(given.modules_to_save) or None)
    assert torch.equal(journey.logits(TOKENS_BT), stock_logits(journey, TOKENS_BT))
    moved = journey.state.parameters != journey.genesis.parameters
    assert all(piece.any() for piece in moved.split([torch.Size(shape).numel() for _, shape in journey.layout]))


def test_dora_goes_on_gpt2s_turned_layers_too(bases: dict[str, Path], tmp_path: Path) -> None:
    journey = travel(bases["gpt2"], tmp_path, method={"kind": "lora", "rank": 2, "use_dora": True})
    assert torch.equal(journey.logits(TOKENS_BT), stock_logits(journey, TOKENS_BT)) and len(journey.layout) == 24


def test_rslora_counts_by_the_root_of_the_rank(bases: dict[str, Path], tmp_path: Path) -> None:
    """With rank 4 and half the alpha it is what plain LoRA is with all of it."""
    lora = {"kind": "lora", "rank": 4}
    plain = travel(bases["llama"], tmp_path / "a", method=lora | {"alpha": 8.0})
    rooted = travel(bases["llama"], tmp_path / "b", method=lora | {"alpha": 4.0, "use_rslora": True})
    assert torch.equal(plain.state.parameters, rooted.state.parameters)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "told"),
    [
        ("llama", {"modules_to_save": ["lm_haed"]}, "method.modules_to_save: no module is called 'lm_haed'"),
        ("llama", {"modules_to_save": ["norm"]}, "norm is also the end of model.layers.0.input_layernorm"),
        ("llama", {"modules_to_save": ["act_fn"]}, "act_fn has no weights"),
        ("llama", {"modules_to_save": ["self_attn", "k_proj"]}, "one lies within the other"),
        ("llama", {"modules_to_save": ["k_proj", "self_attn"]}, "one lies within the other"),
        ("llama", {"layers_to_transform": [0, 2]}, "there is no layer 2, this model has 2"),
        ("qwen2", {"modules_to_save": ["lm_head"]}, "lm_head shares its weight with model.embed_tokens.weight"),
        ("gpt2", {"modules_to_save": ["wte"]}, "shares its weight"),
        ("mixtral", {"use_dora": True}, "method.use_dora: the experts of this model are held as one tensor"),
        ("mixtral", {"modules_to_save": ["experts"]}, "method.modules_to_save: peft refuses"),
        ("mamba", {"targets": ["in_proj", "dt_proj"]}, "an adapter on dt_proj of a mamba model would not count"),
    ],
)
def test_a_setting_that_means_nothing_or_cannot_be_loaded_is_refused(
    kind: str, settings: dict[str, Any], told: str, bases: dict[str, Path]
) -> None:
    method = validated(Method, {"kind": "lora", "rank": 2} | settings, "run.toml")
    with pytest.raises(InputError, match=told) as caught:
        check_model(bases[kind], method, data(length=16))
    assert "\n" not in caught.value.message and caught.value.hint


def test_a_module_with_a_buffer_in_its_files_is_not_trained_whole(tmp_path: Path) -> None:
    base = write_base(tmp_path, BY_KIND["deepseek_v3"])
    method = Method(kind="lora", targets=("o_proj",), modules_to_save=("mlp.gate",))
    with pytest.raises(InputError, match=r"what is not trained \(model.layers.1.mlp.gate.e_score_correction_bias\)"):
        check_model(base, method, data(length=16))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"use_rslora": True}, "use_rslora goes with kind lora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save goes with kind lora"),
        ({"kind": "lora", "base": "nf4", "use_dora": True}, "use_dora and base nf4 do not go together"),
        ({"kind": "lora", "base": "nf4", "modules_to_save": ["lm_head"]}, "modules_to_save and base nf4"),
        ({"kind": "lora", "layers_to_transform": [1, 1]}, "layers_to_transform names one twice"),
        ({"kind": "lora", "layers_to_transform": [-1]}, "layers_to_transform"),
        ({"kind": "lora", "use_dorra": True}, "unknown key 'use_dorra'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(RunSpecError, match=told):
        validated(Method, settings, "run.toml")


def test_a_spec_without_them_is_the_bytes_that_it_was() -> None:
    spec = make_spec(method="lora")
    assert b'"method":{"alpha":32,"kind":"lora","rank":16,"targets":[]}' in spec.to_bytes()
    assert b"untrained" not in spec.to_bytes()
    chosen = spec.model_copy(update={"method": Method(kind="lora", layers_to_transform=(0,), modules_to_save=("a",))})
    again = RunSpec.from_bytes(chosen.to_bytes())
    assert again == chosen and again.digest == sha256_hex(chosen.to_bytes()) != spec.digest
