"""The Merkle tree of RFC 6962 (section 2.1) over SHA-256: roots, inclusion proofs and consistency proofs.

The ledger, the chunks of an update and the chunks of a state are all such trees. A leaf is hashed as
SHA-256(00 | data), two nodes as SHA-256(01 | left | right), so that no leaf can pass for a node.

    >>> leaves = [leaf_hash(entry) for entry in (b"one", b"two", b"three")]
    >>> tree = Tree(leaves)
    >>> verify_inclusion(leaves[1], 1, tree.size, tree.inclusion_proof(1), tree.root)
    >>> old = Tree(leaves[:2])
    >>> verify_consistency(old.size, tree.size, old.root, tree.root, tree.consistency_proof(old.size))
    >>> verify_inclusion(leaves[0], 1, tree.size, tree.inclusion_proof(1), tree.root)
    Traceback (most recent call last):
    ...
    protocol.errors.VerificationError: the inclusion proof does not lead to the root
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from protocol.errors import VerificationError

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()  # of a tree without leaves

Buffer: TypeAlias = bytes | bytearray | memoryview


def leaf_hash(data: Buffer) -> bytes:
    """The 32-byte hash of one leaf's data."""
    hasher = hashlib.sha256(b"\x00")
    hasher.update(data)
    return hasher.digest()


def node_hash(left: Buffer, right: Buffer) -> bytes:
    """The 32-byte hash of an inner node."""
    hasher = hashlib.sha256(b"\x01")
    hasher.update(left)
    hasher.update(right)
    return hasher.digest()


def root(leaf_hashes: Iterable[bytes]) -> bytes:
    """The root of the tree with these leaf hashes, without keeping the tree: memory grows with the tree's height."""
    peaks: list[tuple[int, bytes]] = []  # (height, hash) of complete subtrees, left to right
    for leaf in leaf_hashes:
        height, node = 0, leaf
        while peaks and peaks[-1][0] == height:
            node = node_hash(peaks.pop()[1], node)
            height += 1
        peaks.append((height, node))
    if not peaks:
        return EMPTY_ROOT
    result = peaks.pop()[1]
    while peaks:
        result = node_hash(peaks.pop()[1], result)
    return result


class Tree:
    """An append-only tree that remembers the root of every complete subtree.

    Appending costs two hashes on average, a proof O(log(size)) of them; a tree of 1e6 leaves takes 64 MB.

    Args:
        leaf_hashes: 32 bytes each.
    """

    def __init__(self, leaf_hashes: Iterable[bytes] = ()) -> None:
        self._levels: list[bytearray] = [bytearray()]  # level h: roots of the complete subtrees of 2**h leaves
        for leaf in leaf_hashes:
            self.append(leaf)

    @property
    def size(self) -> int:
        """How many leaves."""
        return len(self._levels[0]) // HASH_BYTES

    @property
    def root(self) -> bytes:
        return self.root_at(self.size)

    def append(self, leaf: bytes) -> int:
        """Add one leaf hash (32 bytes); returns its index."""
        if len(leaf) != HASH_BYTES:
            raise ValueError(f"expected a leaf hash of {HASH_BYTES} bytes, got {len(leaf)}")
        index = self.size
        self._levels[0] += leaf
        height, position = 0, index
        while position % 2 == 1:
            level = self._levels[height]
            node = node_hash(level[-2 * HASH_BYTES : -HASH_BYTES], level[-HASH_BYTES:])
            height, position = height + 1, position // 2
            if height == len(self._levels):
                self._levels.append(bytearray())
            self._levels[height] += node
        return index

    def root_at(self, size: int) -> bytes:
        """The root that the tree had when it held `size` leaves.

        Raises:
            ValueError: the tree never had that many.
        """
        self._check_size(size)
        return EMPTY_ROOT if size == 0 else self._range_root(0, size)

    def inclusion_proof(self, index: int, size: int | None = None) -> list[bytes]:
        """The audit path of leaf `index` (RFC 6962, 2.1.1), from its sibling up, in the tree of `size` leaves (default:
        now).

        Raises:
            ValueError: the tree of that size has no such leaf.
        """
        size = self.size if size is None else size
        self._check_size(size)
        if not 0 <= index < size:
            raise ValueError(f"a tree of {size} leaves has no leaf {index}")
        path: list[bytes] = []
        start, end = 0, size
        while end - start > 1:
            middle = start + _split(end - start)
            if index < middle:
                path.append(self._range_root(middle, end))
                end = middle
            else:
                path.append(self._range_root(start, middle))
                start = middle
        return path[::-1]

    def consistency_proof(self, old_size: int, size: int | None = None) -> list[bytes]:
        """The proof that the tree of `size` leaves (default: now) extends that of `old_size` (RFC 6962, 2.1.2).

        Raises:
            ValueError: not 1 <= old_size <= size <= the tree's size.
        """
        size = self.size if size is None else size
        self._check_size(size)
        if not 1 <= old_size <= size:
            raise ValueError(f"no consistency proof from {old_size} to {size} leaves")
        path: list[bytes] = []
        start, end, whole = 0, size, True  # whole: the old tree is so far a complete left part, its root is known
        while end != old_size:
            middle = start + _split(end - start)
            if old_size <= middle:
                path.append(self._range_root(middle, end))
                end = middle
            else:
                path.append(self._range_root(start, middle))
                start, whole = middle, False
        if not whole:
            path.append(self._range_root(start, end))
        return path[::-1]

    def _check_size(self, size: int) -> None:
        if not 0 <= size <= self.size:
            raise ValueError(f"expected a size of at most {self.size} leaves, got {size}")

    def _range_root(self, start: int, end: int) -> bytes:
        """The root over leaves start..end-1, where `start` is a multiple of the largest power of two in the range."""
        length = end - start
        if length & (length - 1) == 0:
            height = length.bit_length() - 1
            offset = (start >> height) * HASH_BYTES
            return bytes(self._levels[height][offset : offset + HASH_BYTES])
        middle = start + _split(length)
        return node_hash(self._range_root(start, middle), self._range_root(middle, end))


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that `leaf` is leaf `index` of the tree of `size` leaves with this root (RFC 9162, 2.1.3.2).

    Raises:
        VerificationError: it is not, or the proof proves nothing.
    """
    if not 0 <= index < size:
        raise VerificationError(f"the inclusion proof names leaf {index} of a tree of {size} leaves")
    if len(leaf) != HASH_BYTES:
        raise VerificationError(f"expected a leaf hash of {HASH_BYTES} bytes, got {len(leaf)}")
    number, last, node = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise VerificationError("the inclusion proof is longer than the tree is high")
        if number % 2 == 1 or number == last:
            node = node_hash(sibling, node)
            while number % 2 == 0 and number != 0:
                number, last = number >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        number, last = number >> 1, last >> 1
    if last != 0:
        raise VerificationError("the inclusion proof is shorter than the tree is high")
    if node != root:
        raise VerificationError("the inclusion proof does not lead to the root")


def verify_consistency(old_size: int, size: int, old_root: bytes, root: bytes, proof: Sequence[bytes]) -> None:
    """Check that the tree of `size` leaves begins with the whole tree of `old_size` (RFC 9162, 2.1.4.2).

    Raises:
        VerificationError: it does not, or the proof proves nothing (as from an empty tree).
    """
    if not 1 <= old_size <= size:
        raise VerificationError(f"no tree of {size} leaves can be shown to extend one of {old_size}")
    if old_size == size:
        if proof or old_root != root:
            raise VerificationError(f"two trees of {size} leaves have different roots, or a proof where none belongs")
        return
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)
    if not path:
        raise VerificationError("the consistency proof is empty")
    number, last = old_size - 1, size - 1
    while number % 2 == 1:
        number, last = number >> 1, last >> 1
    old_node = node = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise VerificationError("the consistency proof is longer than the tree is high")
        if number % 2 == 1 or number == last:
            old_node, node = node_hash(sibling, old_node), node_hash(sibling, node)
            while number % 2 == 0 and number != 0:
                number, last = number >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        number, last = number >> 1, last >> 1
    if last != 0:
        raise VerificationError("the consistency proof is shorter than the tree is high")
    if old_node != old_root or node != root:
        raise VerificationError("the consistency proof does not lead to both roots")


def _split(length: int) -> int:
    """The largest power of two smaller than `length` (length >= 2)."""
    return 1 << ((length - 1).bit_length() - 1)
