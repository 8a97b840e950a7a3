"""Where the state's tensors lie in what a peer trains, what of them stays as it is, and what has no place there."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from transformers import AutoModelForCausalLM

from lab.training_fixtures import make_genesis, make_spec
from peer.training.data import load_dataset
from peer.training.layout import Layout, TensorPlace, layout_in_files
from peer.training.loading import load_causal_lm, load_tokenizer
from peer.training.model import TrainableModel, full_parameters, load_trainable
from peer.training.outer import outer_step, untrained_in
from peer.training.state import SharedState
from peer.training.work import LocalWork
from protocol.errors import InputError
from tests.kit.architectures import ARCHITECTURES, write_base
from tests.kit.journey import travel

BY_KIND = {architecture.kind: architecture for architecture in ARCHITECTURES}


def of_kind(kind: str) -> Any:
    """A model with values, not saved."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(BY_KIND[kind].config()).eval()


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> TrainableModel:
    """Its experts lie in memory as one tensor, in files each for itself."""
    base = write_base(tmp_path_factory.mktemp("mixtral"), BY_KIND["mixtral"])
    model = load_causal_lm(base)
    return TrainableModel(model, full_parameters(model), load_tokenizer(base))


def test_any_stretch_of_the_state_is_read_and_added_to_where_it_lies(mixtral: TrainableModel) -> None:
    choose, whole = random.Random(3), mixtral.read()
    assert whole.tolist() != mixtral.flat_N.tolist() and sorted(whole.tolist()) == sorted(mixtral.flat_N.tolist())
    for _ in range(40):
        start = choose.randrange(len(whole))
        part = slice(start, start + choose.choice([1, 7, 500, 9000]))
        assert torch.equal(mixtral.read(part), whole[part])
        more = torch.randn(len(whole[part]))
        whole[part] += more
        mixtral.add(more, part)
        assert torch.equal(mixtral.read(), whole)


def test_what_is_not_in_one_piece_is_read_and_written_too() -> None:
    """As the columns of a tensor that is held turned round would be."""
    flat = torch.arange(12.0)
    turned = Layout((("a", (4, 3)),), (TensorPlace((4, 3), (1, 4), 0),))
    expected = flat.view(3, 4).T.reshape(-1)
    assert torch.equal(turned.read(flat, slice(2, 9)), expected[2:9])
    turned.write(flat, torch.full((5,), 100.0), slice(3, 8), add=True)
    expected[3:8] += 100
    assert torch.equal(turned.read(flat, slice(None)), expected)


@pytest.mark.parametrize("method", ["gradient", "diloco"])
def test_an_update_is_laid_out_as_the_state(method: Literal["gradient", "diloco"], tmp_path: Path) -> None:
    """Each value of it belongs to the one in the same place of the state."""
    base = write_base(tmp_path / "base", BY_KIND["mixtral"])
    spec = make_spec(base, base / "data.txt", sync={"method": method})
    genesis = make_genesis(spec, base, tmp_path / "genesis")
    model = load_trainable(spec, tmp_path / "genesis")
    work = LocalWork(model, load_dataset(spec, model.tokenizer, base / "data.txt"), spec, "peer")
    work.begin(genesis)
    tokens = work.step().tokens
    local, gradient_N = model.read(), model.gradient_N.clone()
    vector = work.finish().vector
    if method == "diloco":
        assert vector.any() and torch.equal(vector, genesis.parameters - local)
    else:
        model.write(vector)
        assert vector.any() and torch.allclose(model.flat_N, gradient_N / tokens)


# ---- what stays as it is ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["gradient", "diloco"])
def test_buffers_stay_as_they_are_under_decay_momentum_and_a_lossy_codec(method: str, tmp_path: Path) -> None:
    """Of two bits none means zero."""
    sections: dict[str, Any] = {
        "sync": {"method": method, "wire": "int2", "overlap": False},
        "inner": {"weight_decay": 0.5, "lr": 1e-2},
        "outer": {"weight_decay": 0.5, "lr": 1e-2} if method == "gradient" else {"momentum": 0.9},
    }
    journey = travel(write_base(tmp_path / "base", BY_KIND["deepseek_v3"]), tmp_path, **sections)
    (name,) = journey.spec.model.untrained
    (where,) = untrained_in([name], journey.state, slice(None))
    assert journey.genesis.parameters[where].any() and where.stop - where.start == 4
    assert torch.equal(journey.state.parameters[where], journey.genesis.parameters[where])
    assert all(not vector[where].any() for vector in journey.state.outer)


def test_a_member_that_goes_on_from_what_it_sent_keeps_them_too(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", BY_KIND["deepseek_v3"])
    spec = make_spec(base, base / "data.txt")
    genesis = make_genesis(spec, base, tmp_path / "genesis")
    model = load_trainable(spec, tmp_path / "genesis")
    (where,) = untrained_in(spec.model.untrained, genesis, slice(None))
    model.add(torch.ones_like(genesis.parameters), slice(None))
    assert torch.equal(model.read(where), genesis.parameters[where])
    assert torch.equal(model.read(slice(where.stop, None)), genesis.parameters[where.stop :] + 1)


def test_a_fragment_leaves_out_what_of_it_stays() -> None:
    state = SharedState(0, (("a", (4,)), ("t.b", (3,)), ("t.c", (5,)), ("z", (2,))), torch.zeros(14))
    assert untrained_in(["t."], state, slice(None)) == [slice(4, 7), slice(7, 12)]
    assert untrained_in(["t.c"], state, slice(6, 9)) == [slice(1, 3)]
    assert untrained_in(["t.b"], state, slice(7, 14)) == untrained_in([], state, slice(None)) == []


def test_the_outer_step_takes_an_update_of_it_for_nothing(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", BY_KIND["llama"])
    spec = make_spec(base, base / "data.txt")
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"untrained": ("lm_head.weight",)})})
    genesis = make_genesis(spec, base, tmp_path / "genesis")
    (where,) = untrained_in(spec.model.untrained, genesis, slice(None))
    after = outer_step(spec, genesis, torch.ones_like(genesis.parameters)).parameters
    changed = after != genesis.parameters
    assert not changed[where].any() and int(changed.sum()) == len(after) - (where.stop - where.start)


# ---- what has no place -----------------------------------------------------------------------------------------------


def _counts(model: Any) -> None:
    model.model.register_buffer("seen", torch.zeros(3, dtype=torch.int64))


def _never_saved(model: Any) -> None:
    model._keys_to_ignore_on_save = ["lm_head.weight"]


@pytest.mark.parametrize(
    ("kind", "spoil", "told"),
    [
        ("llama", _counts, r"kind llama has whole numbers in its files \(model.seen\)"),
        ("llama", _never_saved, r"kind llama is written into files otherwise than it is trained \(lm_head.weight\)"),
        ("hrm_text", lambda model: None, r"kind hrm_text is written into files otherwise"),
    ],
)
def test_what_files_cannot_hold_as_it_is_trained_is_refused_by_name(
    kind: str, spoil: Callable[[Any], None], told: str
) -> None:
    model = of_kind(kind)
    spoil(model)
    with pytest.raises(InputError, match=told) as caught:
        layout_in_files(model, full_parameters(model))
    assert 'method.kind = "lora"' in caught.value.hint


def test_a_host_is_told_so_before_anything_is_copied(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", BY_KIND["hrm_text"])
    with pytest.raises(InputError, match="kind hrm_text is written into files otherwise"):
        travel(base, tmp_path)
    assert [path.name for path in (tmp_path / "run").iterdir() if path.is_dir()] == ["checkpoints"]


def test_a_model_that_does_not_compute_is_refused_in_one_line(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", BY_KIND["mixtral"], num_experts_per_tok=5)
    with pytest.raises(InputError, match=r"of the kind mixtral that does not compute: .*out of range") as caught:
        travel(base, tmp_path)
    assert "\n" not in caught.value.message and not list((tmp_path / "run" / "checkpoints").iterdir())
