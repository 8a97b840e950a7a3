"""LoRA on a base in bf16: half the memory, and the update of the same base in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lab.training_fixtures import (
    Bench,
    make_config,
    make_genesis,
    make_spec,
    write_llama,
    write_tiny_gpt2,
    write_tiny_llama,
)
from peer.training.adapter import LINEAR, passed_over
from peer.training.loading import load_causal_lm
from peer.training.model import TrainableModel, load_base
from peer.training.state import SharedState
from peer.training.work import LocalWork
from protocol.run_spec import Method, RunSpec
from tests.kit import base_probe
from tests.kit.architectures import Architecture, each, write_base

LORA = {"kind": "lora", "rank": 4, "alpha": 8.0}
BF16 = LORA | {"base": "bf16"}
ROOM_BYTES = 30 << 20  # what torch and peft take while a model is loaded, for a base of 121 MB
TOKENS_BT = torch.arange(40).reshape(2, 20) + 10


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def round_held(model: Any, like: Any) -> None:
    """Round what `like` holds in bf16."""
    held = {name for name, each in like.named_parameters() if each.dtype == torch.bfloat16}
    for name, parameter in model.named_parameters():
        if name in held:
            parameter.data.copy_(parameter.data.bfloat16())


def pair(tmp_path: Path, glass_dir: Path, plays: Path, base: Path, **options: Any) -> tuple[LocalWork, LocalWork]:
    """The same work on a base in bf16 and in fp32, from an adapter that does something."""
    sections = {"base": base, "sync": {"method": "gradient"}}
    held = Bench(tmp_path / "bf16", glass_dir, plays, **sections, method=BF16)
    plain = Bench(tmp_path / "fp32", glass_dir, plays, **sections, method=LORA)
    assert held.genesis.digest == plain.genesis.digest  # the same adapter, and the same names for it
    torch.manual_seed(0)
    noise = 0.02 * torch.randn(held.genesis.parameters.shape)
    adapter = SharedState(0, held.genesis.names_shapes, held.genesis.parameters + noise)
    works = held.work(**options), plain.work(**options)
    for work in works:
        work.begin(adapter)
    return works


def step(work: LocalWork) -> tuple[float, torch.Tensor]:
    loss = work.step().loss.item()
    return loss, work.finish().vector


@pytest.mark.parametrize("wanted", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("write", [write_tiny_llama, write_tiny_gpt2])
def test_an_adapter_on_a_base_in_bf16_gets_the_gradient_of_the_same_values_in_fp32(
    tmp_path: Path, glass_dir: Path, plays: Path, write: Any, wanted: str
) -> None:
    held, plain = pair(tmp_path, glass_dir, plays, write(tmp_path / "base", glass_dir), wanted=wanted)
    round_held(plain.model.model, held.model.model)
    (loss, gradient), (expected, reference) = step(held), step(plain)
    assert loss == pytest.approx(expected, rel=1e-6) and error(gradient, reference) < 1e-6


@pytest.mark.parametrize("write", [write_tiny_llama, write_tiny_gpt2, None])
def test_rounding_the_base_changes_loss_and_gradient_by_little(
    tmp_path: Path, glass_dir: Path, plays: Path, write: Any
) -> None:
    base = write(tmp_path / "base", glass_dir) if write else glass_dir
    (loss, gradient), (expected, reference) = map(step, pair(tmp_path, glass_dir, plays, base))
    assert loss == pytest.approx(expected, rel=5e-4) and error(gradient, reference) < 0.02


@pytest.mark.parametrize("architecture", each())
def test_every_architecture_computes_as_in_fp32(tmp_path: Path, architecture: Architecture) -> None:
    base = write_base(tmp_path / "base", architecture)
    held = load_base(Method.model_validate(BF16), base, "cpu")
    plain = load_causal_lm(base)
    large = {"embedding": held.get_input_embeddings().weight}
    large |= {name: module.weight for name, module in held.named_modules() if isinstance(module, LINEAR)}
    for name, weight in large.items():
        assert (weight.dtype == torch.bfloat16) == (name.rpartition(".")[2] not in passed_over(held)), name
    rest = [each for each in held.parameters() if each.dtype != torch.bfloat16]
    assert all(each.dtype == torch.float32 for each in rest)
    for name, parameter in held.named_parameters():
        if parameter.dtype == torch.float32:
            assert torch.equal(parameter, plain.get_parameter(name)), name
    round_held(plain, held)
    with torch.no_grad():
        logits, expected = (model.eval()(TOKENS_BT, use_cache=False).logits for model in (held, plain))
    # Mamba rounds what goes into its head to the head's dtype
    assert error(logits, expected) < (5e-3 if "mamba" in architecture.kind else 1e-6)


def test_a_pass_keeps_no_wide_copy_of_a_weight(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    model = Bench(tmp_path, glass_dir, plays, method=BF16).model()
    shapes = {each.shape for each in model.model.parameters() if each.dtype == torch.bfloat16}
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.loss(TOKENS_BT, TOKENS_BT)
    wide = [each for each in kept if each.dtype == torch.float32 and each.dim() > 1]
    assert kept and not [each for each in wide if {each.shape, each.mT.shape} & shapes]


def test_a_base_in_bf16_takes_half_the_memory(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    base = write_llama(tmp_path / "base", glass_dir, width=512, layers=11)
    found = {}
    for name, method in (("fp32", LORA), ("bf16", BF16)):
        folder = tmp_path / name
        spec = make_spec(base, plays, method=method)
        make_genesis(spec, base, folder / "genesis")
        (folder / "run-spec.json").write_bytes(spec.to_bytes())
        found[name] = base_probe.take(folder, base)
    whole = 4 * spec.model.parameters
    assert found["fp32"]["loaded"] == pytest.approx(whole, abs=ROOM_BYTES), found
    assert found["bf16"]["loaded"] == pytest.approx(whole / 2, abs=ROOM_BYTES), found
    assert found["bf16"]["pass"] < found["fp32"]["pass"] + ROOM_BYTES, found  # one layer's weights at a time are wide


def test_recomputing_on_a_base_in_bf16_changes_nothing(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    bench = Bench(tmp_path, glass_dir, plays, method=BF16)
    plain, recomputing = bench.work(), bench.work()
    assert recomputing.model.recompute()
    for work in (plain, recomputing):
        for _ in range(3):
            work.step()
    assert torch.equal(recomputing.finish().vector, plain.finish().vector)


def test_it_is_counted_whole_and_saved_as_any_adapter(tmp_path: Path, glass_dir: Path, plays: Path) -> None:
    bench = Bench(tmp_path, glass_dir, plays, method=BF16)
    model: TrainableModel = bench.model()
    assert model.parameters_total == bench.spec.model.parameters and model.flat_N.dtype == torch.float32
    model.save_model(tmp_path / "saved")
    assert torch.equal(model.read(), bench.genesis.parameters)


def test_only_a_lora_run_has_a_base_in_bf16_and_older_specs_keep_their_digest(glass_dir: Path, plays: Path) -> None:
    spec = make_spec(glass_dir, plays, method=BF16)
    plain = make_spec(glass_dir, plays, method=LORA)
    assert RunSpec.from_bytes(spec.to_bytes()) == spec and spec.digest != plain.digest
    assert b'"base"' in spec.to_bytes() and b'"base"' not in plain.to_bytes()
    with pytest.raises(ValueError, match="goes with kind lora"):
        make_config(glass_dir, plays, method={"kind": "full", "base": "bf16"})
