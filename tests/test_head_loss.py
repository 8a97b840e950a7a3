"""The loss in chunks of tokens: the value and the gradient of the one that has all logits at once, of each model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from lab.training_fixtures import Bench
from peer.training import head_loss, precision
from peer.training.data import NO_LOSS
from peer.training.loading import load_causal_lm
from tests.kit.architectures import Architecture, each, write_base

TOKENS_BT = (torch.arange(40) * 7 % 270).view(2, 20)
LORA = {"kind": "lora", "rank": 4, "alpha": 8.0}


def chat_labels() -> torch.Tensor:
    """Of two sequences of 20: one with a prompt of 7, one with padding from 15 on."""
    labels_BT = TOKENS_BT.clone()
    labels_BT[0, :7] = labels_BT[1, 15:] = NO_LOSS
    return labels_BT


def targets_of(labels_BT: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(labels_BT[:, 1:], (0, 1), value=NO_LOSS)


def gradient(model: Any, loss: torch.Tensor) -> tuple[float, torch.Tensor]:
    """The loss, and all gradients in a row."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    found = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return loss.item(), torch.cat(found)


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


class Head:
    """Counts the tokens that go through a head, a number for each time."""

    def __init__(self, model: Any) -> None:
        self.rows: list[int] = []
        model.get_output_embeddings().register_forward_pre_hook(self._count)

    def _count(self, module: Any, inputs: tuple[torch.Tensor]) -> None:
        self.rows.append(inputs[0].shape[:-1].numel())


@pytest.fixture(autouse=True)
def chunks_of_five(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_loss, "LOGITS_BYTES", 4 * 283 * 5)


@pytest.mark.parametrize("architecture", each())
def test_every_architecture_has_the_loss_and_the_gradient_of_all_logits_at_once(
    tmp_path: Path, architecture: Architecture
) -> None:
    model = load_causal_lm(write_base(tmp_path / "base", architecture)).eval()
    model.get_output_embeddings().weight.data *= 30  # so that soft caps and scales do something
    targets_BT = targets_of(chat_labels())
    expected, reference = gradient(model, head_loss.plain(model, TOKENS_BT, targets_BT))
    in_chunks = head_loss.find(model)
    assert in_chunks is not None
    loss, found = gradient(model, in_chunks(TOKENS_BT, targets_BT))
    assert loss == pytest.approx(expected, rel=1e-5) and error(found, reference) < 1e-4
    rows = Head(model).rows
    in_chunks(TOKENS_BT, targets_BT).backward()
    assert sorted(rows) == 2 * [2] + 10 * [5], "13 and 14 of 40 tokens, there and back"


@pytest.mark.parametrize("base", ["fp32", "bf16"])
@pytest.mark.parametrize("used", ["fp32", "bf16"])
@pytest.mark.parametrize("more", [{}, {"kind": "full"}, {"modules_to_save": ["lm_head"]}], ids=["lora", "full", "head"])
def test_adapters_and_autocast_get_the_same_gradient(
    tmp_path: Path, glass_dir: Path, plays: Path, base: str, used: Any, more: dict[str, Any]
) -> None:
    if more and base == "bf16":
        pytest.skip("not to be had together")
    model = Bench(tmp_path, glass_dir, plays, method=LORA | {"base": base} | more).model()
    model.flat_N += 0.02 * torch.randn(model.flat_N.shape, generator=torch.Generator().manual_seed(0))

    def taken(loss: Any, *of: Any) -> tuple[float, torch.Tensor]:
        model.gradient_N.zero_()
        with precision.autocast(model.device, used):
            value = loss(*of)
        value.backward()
        return value.item(), model.gradient_N.clone()

    expected, reference = taken(head_loss.plain, model.model, TOKENS_BT, targets_of(chat_labels()))
    exact = used == "fp32"  # in bf16 each chunk's gradient of the hidden states is rounded the same, sums are not
    for _ in range(2):
        loss, found = taken(model.loss, TOKENS_BT, chat_labels())
        assert loss == pytest.approx(expected, rel=1e-5 if exact else 1e-3)
        assert error(found, reference) < (1e-4 if exact else 2e-2)
        model.recompute()


def test_a_batch_that_predicts_nothing_has_no_loss_and_no_gradient(
    tmp_path: Path, glass_dir: Path, plays: Path
) -> None:
    model = Bench(tmp_path, glass_dir, plays).model()
    loss = model.loss(TOKENS_BT, torch.full_like(TOKENS_BT, NO_LOSS))
    loss.backward()
    assert loss.item() == 0 and not model.gradient_N.any()


def test_evaluation_takes_the_chunks_too_and_leaves_the_model_as_it_was(
    tmp_path: Path, glass_dir: Path, plays: Path
) -> None:
    model = Bench(tmp_path, glass_dir, plays).model()
    assert model.recompute()
    expected = head_loss.plain(model.model, TOKENS_BT, targets_of(chat_labels())).item()
    before = {name: vars(module).get("forward") for name, module in model.model.named_modules()}
    rows = Head(model.model).rows
    with torch.no_grad():
        assert model.loss(TOKENS_BT, chat_labels()).item() == pytest.approx(expected, rel=1e-5)
    assert max(rows[2:]) <= 5, "after the two of the probe"
    assert before == {name: vars(module).get("forward") for name, module in model.model.named_modules()}


class Scaled(LlamaForCausalLM):
    """Does something to the hidden states that the decoder knows nothing of, by way of what is given to it."""

    def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
        embedded_BTD = 2 * self.get_input_embeddings()(input_ids)
        return super().forward(inputs_embeds=embedded_BTD, **options)


class Together(LlamaForCausalLM):
    """The logits of a token depend on those of the others."""

    def forward(self, *inputs: Any, **options: Any) -> Any:
        output = super().forward(*inputs, **options)
        output.logits = output.logits - output.logits.mean(1, keepdim=True)
        return output


@pytest.mark.parametrize("kind", [Scaled, Together])
def test_a_model_that_the_chunks_would_get_wrong_is_computed_at_once(
    tmp_path: Path, glass_dir: Path, plays: Path, kind: type[Any], caplog: pytest.LogCaptureFixture
) -> None:
    model = Bench(tmp_path, glass_dir, plays).model()
    model.model.__class__ = kind
    expected = head_loss.plain(model.model, TOKENS_BT, targets_of(chat_labels()))
    with caplog.at_level("INFO"):
        assert model.loss(TOKENS_BT, chat_labels()).item() == expected.item()
        assert model.loss(TOKENS_BT, chat_labels()).item() == expected.item()
    assert [record.message for record in caplog.records] == [f"{kind.__name__}: the loss takes all logits at once"]
