"""The state manifest: what a state digest stands for."""

from __future__ import annotations

import json

import pytest

from protocol.errors import FormatError
from protocol.state import EMPTY_ROOT, STATE_CHUNK_BYTES, StateManifest, chunk_count

MANIFEST = StateManifest(round=3, tensors=(("a", (2, 3)), ("b", ())), parameters="1" * 64)


def test_a_manifest_reads_back_with_the_same_digest() -> None:
    again = StateManifest.from_bytes(MANIFEST.to_bytes())
    assert again == MANIFEST
    assert again.digest == MANIFEST.digest


@pytest.mark.parametrize(
    "changes",
    [
        {"round": 4},
        {"tensors": (("a", (3, 2)), ("b", ()))},
        {"tensors": (("a", (2, 3)), ("c", ()))},
        {"parameters": "2" * 64},
        {"outer": "2" * 64},
        {"outer_vectors": 1},
        {"outer_steps": 1},
    ],
)
def test_the_digest_depends_on_every_field(changes: dict) -> None:
    assert MANIFEST.model_copy(update=changes).digest != MANIFEST.digest


def test_sizes_are_those_of_fp32_values() -> None:
    manifest = MANIFEST.model_copy(update={"outer_vectors": 2})
    assert (manifest.parameter_count, manifest.parameter_bytes, manifest.outer_bytes) == (7, 28, 56)


@pytest.mark.parametrize(
    ("size", "chunks"),
    [(0, 0), (1, 1), (STATE_CHUNK_BYTES, 1), (STATE_CHUNK_BYTES + 1, 2), (10 * STATE_CHUNK_BYTES, 10)],
)
def test_the_last_chunk_may_be_short(size: int, chunks: int) -> None:
    assert chunk_count(size) == chunks


@pytest.mark.parametrize(
    "changes",
    [
        {"tensors": []},
        {"tensors": [["b", [1]], ["a", [1]]]},
        {"tensors": [["a", [1]], ["a", [1]]]},
        {"tensors": [["a", [0]]]},
        {"tensors": [["a", [-1]]]},
        {"tensors": [["", [1]]]},
        {"tensors": {"a": [1]}},
        {"parameters": "x"},
        {"outer_vectors": 3},
        {"round": -1},
        {"extra": 1},
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(changes: dict) -> None:
    value = json.loads(MANIFEST.to_bytes()) | changes
    with pytest.raises(FormatError, match="state manifest"):
        StateManifest.from_bytes(json.dumps(value).encode())


def test_no_outer_state_has_the_root_of_an_empty_tree() -> None:
    assert MANIFEST.outer == EMPTY_ROOT == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
