"""The shared state: its digest, its chunks, its file, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from peer.training.state import SharedState, StateAssembler
from protocol.errors import FormatError, InputError, VerificationError
from protocol.safetensors_file import FULL_FILE, Weights

SHAPES = (("a", (300, 1000)), ("b.weight", (7,)), ("c", ()))
COUNT = 300_008


def make_state(outer: int = 0, seed: int = 0) -> SharedState:
    generator = torch.Generator().manual_seed(seed)
    vectors = [torch.randn(COUNT, generator=generator) for _ in range(1 + outer)]
    return SharedState(5, SHAPES, vectors[0], tuple(vectors[1:]), outer_steps=3 if outer else 0)


@pytest.mark.parametrize("outer", [0, 1, 2])
def test_a_state_put_together_from_its_chunks_is_the_same(outer: int) -> None:
    state = make_state(outer)
    chunks = [state.chunk(i) for i in range(state.chunk_count)]
    assembler = StateAssembler(state.manifest(), state.leaf_hashes())
    for index, chunk in enumerate(chunks):
        assembler.put(index, bytearray(chunk))
    again = assembler.state()
    assert again.digest == state.digest and torch.equal(again.parameters, state.parameters)
    assert all(torch.equal(a, b) for a, b in zip(again.outer, state.outer, strict=True))
    assert all(len(chunk) <= 1 << 20 for chunk in chunks)


@pytest.mark.parametrize("outer", [0, 2])
def test_chunks_may_come_in_any_order_and_are_checked_one_by_one(outer: int) -> None:
    state = make_state(outer)
    assembler = StateAssembler(state.manifest(), state.leaf_hashes())
    for index in reversed(assembler.missing):
        bad = bytearray(state.chunk(index))
        bad[-1] ^= 1
        with pytest.raises(VerificationError, match=f"chunk {index}"):
            assembler.put(index, bad)
        with pytest.raises(FormatError, match="expected"):
            assembler.put(index, bad[:-1])
        assembler.put(index, state.chunk(index))
        assembler.put(index, state.chunk(index))
    assert assembler.missing == [] and assembler.state().digest == state.digest


def test_an_incomplete_or_changed_state_is_refused() -> None:
    state = make_state(1)
    leaves = state.leaf_hashes()
    assembler = StateAssembler(state.manifest(), leaves)
    for index in range(3):
        assembler.put(index, state.chunk(index))
    with pytest.raises(FormatError, match="1 of 4 chunks of the state are missing"):
        assembler.state()
    with pytest.raises(FormatError, match="chunk index"):
        assembler.put(4, b"more")
    for wrong in (leaves[:-1], leaves[::-1], [*leaves, leaves[0]], []):
        with pytest.raises(VerificationError, match="leaf hashes"):
            StateAssembler(state.manifest(), wrong)


def test_the_digest_is_that_of_the_weights_in_a_model_file(tmp_path: Path) -> None:
    state = make_state()
    sizes = [300_000, 7, 1]
    tensors = {
        name: piece.view(shape).clone()
        for (name, shape), piece in zip(SHAPES, state.parameters.split(sizes), strict=True)
    }
    save_file(tensors, tmp_path / FULL_FILE)
    weights = Weights.open(tmp_path, [FULL_FILE])
    assert weights.layout == SHAPES and weights.state_root() == state.manifest().parameters


def test_the_digest_changes_with_everything_that_it_names() -> None:
    state = make_state(1)
    others = [
        make_state(1, seed=1),
        make_state(0),
        SharedState(6, SHAPES, state.parameters, state.outer, 3),
        SharedState(5, SHAPES, state.parameters, state.outer, 4),
        SharedState(5, (("a", (1000, 300)), *SHAPES[1:]), state.parameters, state.outer, 3),
        SharedState(5, (*SHAPES[:2], ("d", ())), state.parameters, state.outer, 3),
    ]
    assert len({state.digest, *(other.digest for other in others)}) == 7


def test_a_stored_state_has_the_stored_digest() -> None:
    state = SharedState(2, (("w", (4, 2)),), torch.arange(8.0), (torch.full((8,), 0.5),), 0)
    assert state.digest == "e7c8215edebdaac0763f044939b7fff37cf53b83cb560375269fd8102d226c8d"


def test_saving_and_loading_gives_the_same_state(tmp_path: Path) -> None:
    for outer in (0, 2):
        state = make_state(outer)
        state.save(tmp_path / "sub" / "state.safetensors")
        assert SharedState.load(tmp_path / "sub" / "state.safetensors").digest == state.digest
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["state.safetensors"]


@pytest.mark.parametrize("place", [4, 40, 200, 2000, -1])
def test_a_state_file_with_one_flipped_byte_is_refused(tmp_path: Path, place: int) -> None:
    path = tmp_path / "state.safetensors"
    make_state(1).save(path)
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        SharedState.load(path)
    assert "fetched again" in caught.value.hint


def test_a_state_file_that_is_cut_missing_or_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    with pytest.raises(InputError, match="no such state file"):
        SharedState.load(path)
    make_state().save(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError, match="damaged"):
        SharedState.load(path)
    save_file({"parameters": torch.zeros(3)}, path)
    with pytest.raises(InputError, match="not a state file"):
        SharedState.load(path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_never_become_a_state(bad: float) -> None:
    vector = torch.zeros(COUNT)
    vector[COUNT // 2] = bad
    with pytest.raises(FormatError, match=r"the state's parameters: values that are not finite"):
        SharedState(0, SHAPES, vector)
    with pytest.raises(FormatError, match=r"outer\.0"):
        SharedState(0, SHAPES, torch.zeros(COUNT), (vector,))


def test_tensors_of_the_wrong_kind_or_order_never_become_a_state() -> None:
    good = torch.zeros(COUNT)
    for bad in (good[:-1], good.double(), good.view(1, -1), torch.zeros(2 * COUNT)[::2]):
        with pytest.raises(FormatError):
            SharedState(0, SHAPES, bad)
    for shapes in (SHAPES[::-1], (SHAPES[0], *SHAPES)):
        with pytest.raises(FormatError, match="sorted"):
            SharedState(0, shapes, good)
