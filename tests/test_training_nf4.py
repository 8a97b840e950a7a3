"""LoRA on a base in 4 bits: what is computed, what is held, and what is said where bitsandbytes is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.training_fixtures import Bench, make_config, make_spec, write_tiny_gpt2, write_tiny_llama
from peer.training.evaluate import held_out_loss
from peer.training.memory import memory_needed_bytes
from peer.training.model import TrainableModel, load_trainable
from peer.training.state import SharedState
from peer.training.work import LocalWork
from protocol.errors import InputError, RunSpecError
from protocol.installed import this_installation
from protocol.run_spec import Method, RunSpec

LORA = {"kind": "lora", "rank": 4, "alpha": 8.0}
NF4 = LORA | {"base": "nf4"}


def train(work: LocalWork, steps: int) -> torch.Tensor:
    for _ in range(steps):
        work.step()
    return work.finish().vector


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


# ---- without bitsandbytes --------------------------------------------------------------------------------------------


def test_a_run_from_before_there_was_a_choice_keeps_its_digest(glass_dir: Path, plays: Path) -> None:
    plain = make_spec(glass_dir, plays, method=LORA)
    assert "base" not in json.loads(plain.to_bytes())["method"]
    assert RunSpec.from_bytes(plain.to_bytes()).method.base == "fp32"
    nf4 = plain.model_copy(update={"method": Method.model_validate(NF4)})
    assert RunSpec.from_bytes(nf4.to_bytes()) == nf4 and nf4.digest != plain.digest
    stated = json.loads(plain.to_bytes())
    stated["method"]["base"] = "fp32"
    with pytest.raises(RunSpecError, match="canonical"):
        RunSpec.from_bytes(json.dumps(stated, sort_keys=True, separators=(",", ":")).encode())


def test_only_a_lora_run_can_have_a_base_in_4_bits(glass_dir: Path, plays: Path) -> None:
    with pytest.raises(ValueError, match="goes with kind lora"):
        make_config(glass_dir, plays, method={"kind": "full", "base": "nf4"})


def test_where_bitsandbytes_is_missing_host_and_volunteer_are_told(
    tmp_path: Path, glass_dir: Path, plays: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, glass_dir, plays, method=LORA)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # import fails as if it were not there
    with pytest.raises(InputError, match="bitsandbytes is needed") as host:
        make_spec(glass_dir, plays, method=NF4)
    assert host.value.hint == this_installation().add("qlora")
    spec = bench.spec.model_copy(update={"method": Method.model_validate(NF4)})
    with pytest.raises(InputError, match="bitsandbytes is needed"):
        load_trainable(spec, bench.folder, bench.base_dir)


def test_an_adapter_of_7_b_parameters_is_said_to_fit_8_gb_on_a_base_in_4_bits(glass_dir: Path, plays: Path) -> None:
    plain = make_spec(glass_dir, plays, method=LORA, data={"sequence_length": 512})
    sizes = plain.model.model_copy(update={"parameters": 7_000_000_000, "trainable": 40_000_000})
    plain = plain.model_copy(update={"model": sizes})
    nf4 = plain.model_copy(update={"method": Method.model_validate(NF4)})
    assert memory_needed_bytes(nf4) < 8 << 30 < 28 << 30 < memory_needed_bytes(plain)


# ---- with it ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def bitsandbytes() -> Any:
    return pytest.importorskip("bitsandbytes", reason="optional: the extra qlora")


def dequantized(model: TrainableModel, bitsandbytes: Any) -> list[torch.Tensor]:
    """The base's linear weights as they count, in the order of the modules."""
    packed = [module.weight for module in model.model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    return [bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state) for weight in packed]


@pytest.mark.parametrize("gpt2", [False, True])
def test_an_adapter_on_a_base_in_4_bits_trains_as_on_the_same_base_unpacked(
    tmp_path: Path, glass_dir: Path, plays: Path, bitsandbytes: Any, gpt2: bool
) -> None:
    base = (write_tiny_gpt2 if gpt2 else write_tiny_llama)(tmp_path / "base", glass_dir)
    bench = Bench(tmp_path, glass_dir, plays, base=base, method=NF4, sync={"method": "gradient"})
    plain = Bench(tmp_path / "plain", glass_dir, plays, base=base, method=LORA, sync={"method": "gradient"})
    assert bench.genesis.digest == plain.genesis.digest  # the same adapter, and the same names for it
    work, reference = bench.work(), plain.work()
    unpacked = dequantized(work.model, bitsandbytes)
    for parameter in reference.model.model.parameters():
        parameter.data.copy_(parameter.data.bfloat16())  # in which a 4-bit base is read
    layers = [module.base_layer for module in reference.model.model.modules() if hasattr(module, "base_layer")]
    assert len(layers) == len(unpacked) == (8 if gpt2 else 14)
    for layer, values in zip(layers, unpacked, strict=True):
        layer.weight.data.copy_(values.T if gpt2 else values)  # GPT-2's are stored the other way round
    torch.manual_seed(0)
    noise = 0.02 * torch.randn(bench.genesis.parameters.shape)
    adapter = SharedState(0, bench.genesis.names_shapes, bench.genesis.parameters + noise)
    work.begin(adapter)
    reference.begin(adapter)
    losses = [held_out_loss(each.model, bench.dataset).loss for each in (work, reference)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    # after an evaluation, which must leave it trainable; in the backward pass bitsandbytes unpacks to bf16
    assert error(train(work, 4), train(reference, 4)) < 3e-3


def test_a_base_in_4_bits_is_counted_whole_and_held_in_a_fraction(
    tmp_path: Path, glass_dir: Path, plays: Path, bitsandbytes: Any
) -> None:
    bench = Bench(tmp_path, glass_dir, plays, base=glass_dir, method=NF4)
    model, plain = bench.model(), make_spec(glass_dir, plays, method=LORA)
    assert model.parameters_total == bench.spec.model.parameters == plain.model.parameters
    layer = model.model.get_submodule("base_model.model.model.layers.0.mlp.up_proj.base_layer")
    assert layer.weight.nbytes * 2 == layer.in_features * layer.out_features
    model.save_model(tmp_path / "saved")
    assert "nf4" not in (tmp_path / "saved" / "adapter_config.json").read_text()


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
def test_recomputing_on_a_base_in_4_bits_changes_nothing(
    tmp_path: Path, glass_dir: Path, plays: Path, bitsandbytes: Any, wanted: str
) -> None:
    bench = Bench(tmp_path, glass_dir, plays, method=NF4)
    plain, recomputing = bench.work(wanted=wanted), bench.work(wanted=wanted)
    assert recomputing.model.recompute()
    before = held_out_loss(plain.model, bench.dataset).loss
    assert torch.equal(train(recomputing, 12), train(plain, 12))
    assert held_out_loss(plain.model, bench.dataset).loss < before


def test_bf16_passes_on_a_base_in_4_bits_come_close_to_fp32(
    tmp_path: Path, glass_dir: Path, plays: Path, bitsandbytes: Any
) -> None:
    bench = Bench(tmp_path, glass_dir, plays, sync={"method": "gradient"}, method=NF4)
    assert error(train(bench.work(wanted="bf16"), 2), train(bench.work(wanted="fp32"), 2)) < 0.02
