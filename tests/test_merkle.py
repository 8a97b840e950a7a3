"""The Merkle tree: the published vectors, the definition itself, and proofs of every shape."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import merkle
from protocol.errors import VerificationError

VECTORS = Path(__file__).resolve().parents[2] / "shared" / "vectors" / "merkle" / "vectors.json"


def _vectors(kind: str) -> list:
    if not VECTORS.is_file():
        return [pytest.param(None, id="vectors-absent")]
    vectors = json.loads(VECTORS.read_text())
    return [pytest.param(value, id=name) for name, value in vectors.items() if name.startswith(kind + "/")]


def _require(vector: dict | None) -> dict:
    if vector is None:
        pytest.skip("the transparency-dev vectors (../shared/vectors/merkle/vectors.json) are absent")
    return vector


def _check(vector: dict, verify) -> None:
    if vector["wantErr"]:
        with pytest.raises(VerificationError):
            verify()
    else:
        verify()


@pytest.mark.parametrize("vector", _vectors("inclusion"))
def test_published_inclusion_vector_holds(vector: dict | None) -> None:
    vector = _require(vector)
    proof = [base64.b64decode(item) for item in vector["proof"] or []]
    leaf, root = base64.b64decode(vector["leafHash"]), base64.b64decode(vector["root"])
    _check(vector, lambda: merkle.verify_inclusion(leaf, vector["leafIdx"], vector["treeSize"], proof, root))


@pytest.mark.parametrize("vector", _vectors("consistency"))
def test_published_consistency_vector_holds(vector: dict | None) -> None:
    vector = _require(vector)
    proof = [base64.b64decode(item) for item in vector["proof"] or []]
    old_root, root = base64.b64decode(vector["root1"]), base64.b64decode(vector["root2"])
    _check(vector, lambda: merkle.verify_consistency(vector["size1"], vector["size2"], old_root, root, proof))


def test_every_published_vector_is_run() -> None:
    if not VECTORS.is_file():
        pytest.skip("the transparency-dev vectors (../shared/vectors/merkle/vectors.json) are absent")
    assert len(_vectors("inclusion")) + len(_vectors("consistency")) == 196


def _reference_root(leaves: list[bytes]) -> bytes:
    """RFC 6962, 2.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + _reference_root(leaves[:k]) + _reference_root(leaves[k:])).digest()


def _leaves(count: int) -> list[bytes]:
    return [merkle.leaf_hash(str(index).encode()) for index in range(count)]


@pytest.mark.parametrize("size", range(0, 70))
def test_root_is_that_of_the_definition(size: int) -> None:
    leaves = _leaves(size)
    assert merkle.Tree(leaves).root == merkle.root(leaves) == _reference_root(leaves)


def test_every_proof_of_every_small_tree_verifies() -> None:
    leaves = _leaves(40)
    tree = merkle.Tree(leaves)
    for size in range(1, 41):
        root = tree.root_at(size)
        assert root == _reference_root(leaves[:size])
        for index in range(size):
            merkle.verify_inclusion(leaves[index], index, size, tree.inclusion_proof(index, size), root)
        for old in range(1, size + 1):
            proof = tree.consistency_proof(old, size)
            merkle.verify_consistency(old, size, tree.root_at(old), root, proof)


@given(st.integers(1, 300), st.data())
def test_a_proof_for_another_leaf_or_with_a_flipped_bit_is_refused(size: int, data: st.DataObject) -> None:
    leaves = _leaves(size)
    tree = merkle.Tree(leaves)
    index = data.draw(st.integers(0, size - 1))
    proof = tree.inclusion_proof(index)
    with pytest.raises(VerificationError):
        merkle.verify_inclusion(merkle.leaf_hash(b"another"), index, size, proof, tree.root)
    if proof:
        position = data.draw(st.integers(0, len(proof) - 1))
        bit = data.draw(st.integers(0, 255))
        flipped = int.from_bytes(proof[position], "big") ^ (1 << bit)
        proof[position] = flipped.to_bytes(32, "big")
        with pytest.raises(VerificationError):
            merkle.verify_inclusion(leaves[index], index, size, proof, tree.root)


@given(st.binary(max_size=40), st.integers(-2, 2**66), st.integers(-2, 2**66), st.lists(st.binary(max_size=40)))
def test_random_proofs_are_refused_and_never_crash(leaf: bytes, index: int, size: int, proof: list[bytes]) -> None:
    with pytest.raises(VerificationError):
        merkle.verify_inclusion(leaf, index, size, proof, b"\xff" * 32)
    if index != size:
        with pytest.raises(VerificationError):
            merkle.verify_consistency(index, size, b"\xff" * 32, b"\xfe" * 32, proof)


def test_a_leaf_hash_of_another_length_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        merkle.Tree([b"short"])


def test_proofs_that_the_tree_cannot_give_are_a_mistake_of_ours() -> None:
    tree = merkle.Tree(_leaves(3))
    for call in (lambda: tree.inclusion_proof(3), lambda: tree.consistency_proof(0), lambda: tree.root_at(4)):
        with pytest.raises(ValueError, match="lea"):
            call()
