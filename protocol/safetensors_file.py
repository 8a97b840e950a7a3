"""Weights in safetensors files, read strictly, in a fixed order, without numpy or torch.

    8 bytes   little-endian length n of the header
    n bytes   JSON: {"name": {"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}, …, "__metadata__": {…}}
    the rest  the tensors' bytes, without gaps or overlaps

The safetensors library accepts duplicate keys, NaN and infinities; this reader refuses them, and everything that is
not fp32. The verifier holds `Weights.state_root` against the members' agreement (see `protocol.state`).
"""

from __future__ import annotations

import functools
import hashlib
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from protocol import canonical, merkle
from protocol.errors import FormatError, VerificationError
from protocol.files import open_regular, read_bounded
from protocol.state import STATE_CHUNK_BYTES

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 8
MAX_INDEX_BYTES = 16 << 20
FULL_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class Tensor:
    """Where one fp32 tensor lies."""

    name: str
    shape: tuple[int, ...]
    path: Path
    start: int  # bytes from the beginning of the file
    size_bytes: int


def read_header(file: BinaryIO, path: Path) -> list[Tensor]:
    """The tensors of one safetensors file, in the order of their bytes.

    Args:
        file: opened for reading bytes.
        path: named in errors and in the result.

    Raises:
        FormatError: not a safetensors file, a tensor that is not fp32, or tensors that overlap or leave gaps.
    """
    size = file.seek(0, 2)
    file.seek(0)
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > MAX_HEADER_BYTES or 8 + length > size:
        raise FormatError(f"{path.name}: the header is cut short or longer than {MAX_HEADER_BYTES} bytes")
    raw = file.read(length)
    if not raw.startswith(b"{"):
        raise FormatError(f"{path.name}: the header is not a JSON object")
    header = canonical.loads(raw, max_bytes=MAX_HEADER_BYTES)
    _check_metadata(header.pop("__metadata__", {}), path)
    if not 1 <= len(header) <= MAX_TENSORS:
        raise FormatError(f"{path.name}: expected 1 to {MAX_TENSORS} tensors, got {len(header)}")
    tensors = [_tensor(name, entry, path, 8 + length) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.size_bytes))
    position = 8 + length
    for tensor in tensors:
        if tensor.start != position:
            raise FormatError(f"{path.name}: the tensor {tensor.name[:80]!r} overlaps another, or leaves a gap")
        position += tensor.size_bytes
    if position != size:
        raise FormatError(f"{path.name}: the tensors end at byte {position}, the file at byte {size}")
    return tensors


class Weights:
    """All tensors of a model folder: one file, an adapter, or shards with their index.

    >>> import tempfile
    >>> from safetensors.numpy import save_file
    >>> import numpy
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({"b": numpy.ones(3, "f4"), "a": numpy.ones((2, 2), "f4")}, Path(folder) / FULL_FILE)
    ...     Weights.open(Path(folder), [FULL_FILE]).layout
    (('a', (2, 2)), ('b', (3,)))
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = sorted(tensors, key=lambda tensor: tensor.name)

    @classmethod
    def open(cls, folder: Path, names: list[str]) -> Weights:
        """Read the headers of a model folder's weight files.

        Args:
            folder: the model folder.
            names: relative paths of all files in it.

        Raises:
            FormatError: a file that cannot be read as safetensors, or an index that does not match its shards.
            VerificationError: no weights, or weight files that no rule puts together.
        """
        files = sorted(name for name in names if name.endswith(".safetensors"))
        # Loaders prefer the one file over shards, so the two must not stand side by side.
        sharded = INDEX_FILE in names and files and not {FULL_FILE, ADAPTER_FILE} & set(files)
        if not sharded and (INDEX_FILE in names or files not in ([FULL_FILE], [ADAPTER_FILE])):
            raise VerificationError(
                f"expected the weights in {FULL_FILE}, in {ADAPTER_FILE}, or in shards with an index; got {files[:5]}"
            )
        found: dict[str, Tensor] = {}
        places: dict[str, str] = {}
        for name in files:
            with open_regular(folder / name) as file:
                for tensor in read_header(file, folder / name):
                    if tensor.name in found:
                        raise FormatError(f"the tensor {tensor.name[:80]!r} stands in two files")
                    found[tensor.name], places[tensor.name] = tensor, name
        if sharded:
            _check_index(read_bounded(folder / INDEX_FILE, MAX_INDEX_BYTES), places)
        return cls(list(found.values()))

    @property
    def layout(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """(name, shape), sorted by name: as in a state manifest."""
        return tuple((tensor.name, tensor.shape) for tensor in self.tensors)

    def state_root(self) -> str:
        """Hex Merkle root of the parameters' 1 MiB chunks, as in a state manifest.

        Raises:
            VerificationError: a value is NaN or infinite, or a file shrank meanwhile.
        """
        return merkle.root(self._chunk_hashes()).hex()

    def _chunk_hashes(self) -> Iterator[bytes]:
        hasher, filled = hashlib.sha256(b"\x00"), 0
        for tensor in self.tensors:
            with open_regular(tensor.path) as file:
                file.seek(tensor.start)
                left = tensor.size_bytes
                while left:
                    piece = file.read(min(left, STATE_CHUNK_BYTES - filled))
                    if not piece or len(piece) % 4:
                        raise VerificationError(f"{tensor.path.name}: the file changed while it was read")
                    if not all_finite(piece):
                        value = next(value for (value,) in struct.iter_unpack("<f", piece) if not math.isfinite(value))
                        raise VerificationError(f"the tensor {tensor.name!r} holds the value {value}")
                    hasher.update(piece)
                    left, filled = left - len(piece), filled + len(piece)
                    if filled == STATE_CHUNK_BYTES:
                        yield hasher.digest()
                        hasher, filled = hashlib.sha256(b"\x00"), 0
        if filled:
            yield hasher.digest()


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same bytes, read a piece at a time; their shapes may differ."""
    if one.size_bytes != other.size_bytes:
        return False
    with open_regular(one.path) as first, open_regular(other.path) as second:
        first.seek(one.start)
        second.seek(other.start)
        left = one.size_bytes
        while left:
            size = min(left, STATE_CHUNK_BYTES)
            piece = first.read(size)
            if len(piece) < size or piece != second.read(size):
                return False
            left -= size
    return True


def all_finite(values: bytes) -> bool:
    """Whether little-endian fp32 values hold neither NaN nor an infinity.

    All values are looked at together, as one long integer: adding one to an exponent of all ones carries into the
    (cleared) sign bit, and nothing else does. About 250 MB/s without numpy.

    >>> all_finite(bytes.fromhex("0000803f ffff7f7f")), all_finite(bytes.fromhex("0000803f 0000c0ff"))
    (True, False)
    """
    exponent, one_more, sign = _masks(len(values) // 4)
    return ((int.from_bytes(values, "little") & exponent) + one_more) & sign == 0


@functools.lru_cache(maxsize=8)
def _masks(count: int) -> tuple[int, int, int]:
    """All exponent bits, the lowest exponent bit, and the sign bit, of `count` fp32 values."""
    exponent, one_more, sign = (bytes.fromhex(mask) * count for mask in ("0000807f", "00008000", "00000080"))
    return int.from_bytes(exponent, "little"), int.from_bytes(one_more, "little"), int.from_bytes(sign, "little")


def _tensor(name: str, entry: Any, path: Path, offset: int) -> Tensor:
    where = f"{path.name}: the tensor {name[:80]!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{where} is not described by dtype, shape and data_offsets")
    if entry["dtype"] != "F32":
        raise FormatError(f"{where} is {str(entry['dtype'])[:20]}, expected F32")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _is_counts(shape, MAX_DIMENSIONS) or not _is_counts(offsets, 2) or len(offsets) != 2:
        raise FormatError(f"{where} has no sound shape or offsets")
    start, end = offsets
    if end - start != 4 * math.prod(shape):
        raise FormatError(f"{where} has {end - start} bytes, its shape says {4 * math.prod(shape)}")
    return Tensor(name, tuple(shape), path, offset + start, end - start)


def _is_counts(value: Any, at_most: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= at_most
        and all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value)
    )


def _check_metadata(value: Any, path: Path) -> None:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise FormatError(f"{path.name}: __metadata__ is not an object of strings")


def _check_index(data: bytes, places: dict[str, str]) -> None:
    index = canonical.loads(data, max_bytes=MAX_INDEX_BYTES)
    if not isinstance(index, dict) or index.get("weight_map") != places:
        raise FormatError(f"{INDEX_FILE} does not name each of the {len(places)} tensors and the shard that holds it")
