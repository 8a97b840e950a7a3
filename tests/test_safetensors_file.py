"""safetensors files, read strictly; what the safetensors library writes is read alike."""

from __future__ import annotations

import hashlib
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from protocol import merkle
from protocol.errors import FormatError, VerificationError
from protocol.safetensors_file import FULL_FILE, Weights, all_finite
from protocol.state import STATE_CHUNK_BYTES
from tests.kit.builders import safetensors_bytes


def reference_root(tensors: dict[str, np.ndarray]) -> str:
    """As `protocol.state` words it: sorted by name, laid end to end, cut into chunks, a Merkle tree over them."""
    data = b"".join(tensors[name].astype("<f4").tobytes() for name in sorted(tensors))
    chunks = [data[start : start + STATE_CHUNK_BYTES] for start in range(0, len(data), STATE_CHUNK_BYTES)]
    return merkle.root(hashlib.sha256(b"\x00" + chunk).digest() for chunk in chunks).hex()


@pytest.mark.parametrize("sizes", [[1], [3, 5], [262144], [262143, 2], [262145, 1, 700_000], [100] * 30])
def test_the_state_root_is_that_of_the_definition(sizes: list[int], tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    # names sort otherwise than the file's order, which safetensors chooses
    tensors = {f"t{index % 7}.{index}": draw.normal(size=size).astype("f4") for index, size in enumerate(sizes)}
    save_file(tensors, tmp_path / FULL_FILE)
    weights = Weights.open(tmp_path, [FULL_FILE, "config.json"])
    assert weights.layout == tuple((name, tensors[name].shape) for name in sorted(tensors))
    assert weights.state_root() == reference_root(tensors)


def test_scalars_and_metadata_of_the_library_are_read(tmp_path: Path) -> None:
    save_file({"a": np.array(3, "f4")}, tmp_path / FULL_FILE, metadata={"format": "pt"})
    assert Weights.open(tmp_path, [FULL_FILE]).layout == (("a", ()),)


@given(st.lists(st.integers(0, 2**32 - 1), max_size=20))
def test_finite_means_what_it_means_in_ieee_754(bits: list[int]) -> None:
    data = b"".join(struct.pack("<I", value) for value in bits)
    expected = all(math.isfinite(value) for (value,) in struct.iter_unpack("<f", data))
    assert all_finite(data) == expected


@pytest.mark.parametrize("bits", ["0000807f", "000080ff", "0100807f", "ffffffff", "0000c07f"])
@pytest.mark.parametrize("position", [0, 1, 99])
def test_a_single_infinity_or_nan_is_found_anywhere(bits: str, position: int) -> None:
    values = bytearray(bytes.fromhex("ffff7fff") * 100)
    assert all_finite(bytes(values))
    values[4 * position : 4 * position + 4] = bytes.fromhex(bits)
    assert not all_finite(bytes(values))


def test_a_nan_in_the_last_chunk_is_named_with_its_tensor(tmp_path: Path) -> None:
    values = np.zeros(300_000, "f4")
    values[-1] = np.nan
    save_file({"a": np.zeros(5, "f4"), "b": values}, tmp_path / FULL_FILE)
    with pytest.raises(VerificationError, match="'b' holds the value nan"):
        Weights.open(tmp_path, [FULL_FILE]).state_root()


@pytest.mark.parametrize("dtype", ["f8", "f2", "i4", "u1", "?"])
def test_other_types_than_fp32_are_refused(dtype: str, tmp_path: Path) -> None:
    save_file({"a": np.zeros(4, dtype)}, tmp_path / FULL_FILE)
    with pytest.raises(FormatError, match="expected F32"):
        Weights.open(tmp_path, [FULL_FILE])


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 8], "x": 1}, "not described by"),
        ({"dtype": "F32", "shape": [2]}, "not described by"),
        ({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}, "no sound shape"),
        ({"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}, "no sound shape"),
        ({"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}, "no sound shape"),
        ({"dtype": "F32", "shape": [1] * 9, "data_offsets": [0, 8]}, "no sound shape"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}, "its shape says"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 16]}, "no sound shape"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}, "gap"),
        ([], "not described by"),
    ],
)
def test_a_header_entry_that_makes_no_sense_is_refused(entry, words: str, tmp_path: Path) -> None:
    (tmp_path / FULL_FILE).write_bytes(safetensors_bytes({"a": ((2,), [1.0, 2.0])}, a=entry))
    with pytest.raises(FormatError, match=words):
        Weights.open(tmp_path, [FULL_FILE])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "cut short"),
        (b"\x08\x00\x00\x00\x00\x00\x00", "cut short"),
        (b"\xff" * 8 + b"{}", "cut short or longer"),
        ((2).to_bytes(8, "little") + b"[]", "not a JSON object"),
        ((2).to_bytes(8, "little") + b"{}", "expected 1 to"),
        ((24).to_bytes(8, "little") + b'{"__metadata__":{"a":1}}', "object of strings"),
    ],
)
def test_a_file_that_is_no_safetensors_file_is_refused(data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / FULL_FILE).write_bytes(data)
    with pytest.raises(FormatError, match=words):
        Weights.open(tmp_path, [FULL_FILE])


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(safetensors_bytes({"w": ((1,), [1.0])}))
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map":{"w":"a.safetensors"}}')
    with pytest.raises(FormatError, match="two files"):
        Weights.open(tmp_path, ["a.safetensors", "b.safetensors", "model.safetensors.index.json"])


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="expected the weights in"):
        Weights.open(tmp_path, ["config.json"])
