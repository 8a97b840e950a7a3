"""Models near the size of a machine's memory: loaded, taken over and saved without a second copy of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lab.training_fixtures import Bench, make_genesis, make_spec, write_llama
from peer.training import weights
from peer.training.tensor_file import read_pieces, write_pieces
from protocol.errors import FormatError
from protocol.run_spec import RunSpec
from tests.kit import loading_probe


@pytest.fixture(scope="module")
def run_of_30_m(tmp_path_factory: pytest.TempPathFactory, glass_dir: Path, plays: Path) -> tuple[Path, RunSpec]:
    """A run's folder with a model of 30 M parameters."""
    folder = tmp_path_factory.mktemp("large")
    model = write_llama(folder / "base", glass_dir, width=512, layers=11)
    spec = make_spec(model, plays, data={"sequence_length": 32, "held_out_sequences": 4})
    make_genesis(spec, model, folder / "genesis")
    (folder / "run-spec.json").write_bytes(spec.to_bytes())
    return folder, spec


def test_loading_a_model_takes_no_second_copy_of_it(run_of_30_m: tuple[Path, RunSpec], plays: Path) -> None:
    folder, spec = run_of_30_m
    found = loading_probe.take("load", folder, plays)
    assert found["load"] < 1.5 * 4 * spec.model.trainable, found


def test_publishing_takes_no_more_memory_than_evaluating(run_of_30_m: tuple[Path, RunSpec], plays: Path) -> None:
    folder, spec = run_of_30_m
    found = loading_probe.take("publish", folder, plays)
    room = 0.5 * 4 * spec.model.trainable  # pieces, and what is imported to write a configuration
    assert max(found["take over"], found["save"]) < found["evaluate"] + room, found
    assert found["save alone"] < room, "where a member measures, no model is loaded"


def test_a_file_written_in_pieces_is_the_librarys_byte_for_byte(tmp_path: Path) -> None:
    tensors = {"b.weight": torch.randn(3, 5), "a": torch.randn(7), "层": torch.randn(1)}
    save_file(tensors, tmp_path / "theirs.safetensors", {"format": "pt"})
    ordered = sorted(tensors.items())
    flat = torch.cat([tensor.flatten() for _, tensor in ordered])
    layout = [(name, tuple(tensor.shape)) for name, tensor in ordered]
    write_pieces(tmp_path / "ours.safetensors", layout, flat.split(4))
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_values_that_end_too_soon_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "values"
    path.write_bytes(torch.arange(6.0).numpy().tobytes())
    assert torch.equal(torch.cat([piece.clone() for piece in read_pieces(path, 4, 5)]), torch.arange(1.0, 6.0))
    with pytest.raises(FormatError, match="cut short"):
        list(read_pieces(path, 8, 5))


def test_a_state_is_taken_over_however_it_is_cut_and_no_other_length(
    tmp_path: Path, glass_dir: Path, plays: Path
) -> None:
    model = Bench(tmp_path, glass_dir, plays).model()
    flat = torch.randn(model.parameters_trainable)
    model.write_pieces(flat.split(1000))
    assert torch.equal(model.read(), flat)
    for wrong in (flat[:-1], torch.cat([flat, flat[:1]])):
        with pytest.raises(FormatError, match="expected"):
            model.write_pieces(wrong.split(1000))
    model.save_model(tmp_path / "saved")
    assert len(weights.read_flat(tmp_path / "saved", model.names_shapes)) == len(flat)
