"""What a wire codec is, and the two plain ones: fp32 and fp16. `peer.training.codecs.codec` looks codecs up by name.

Encoding happens once, on the sender; decoding on every member, with the same bits everywhere, so decoders use only
single IEEE operations, each rounded on its own. All numbers are little-endian; `n` values become

    fp32   n x f32
    fp16   n x f16, values beyond the largest one (65504) saturated

What a decoder gives is the same whoever decodes; what becomes of it is the callers' business.

    >>> fp16 = Fp16()
    >>> fp16.decode(fp16.encode(torch.tensor([2.0, 1e30])), 2).tolist()
    [2.0, 65504.0]
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch

from peer.training.vectors import check_vector, is_finite
from protocol.errors import FormatError

_FP16_MAX = 65504.0


class Codec(ABC):
    """One way to write fp32 values as bytes."""

    name: str
    # of a gradient: how much of what encoding loses goes into the next one; of local steps see `work.keeps_own`
    feedback = 0.0  # it loses next to nothing
    sparse = False  # whether a decoded 0 means "not sent"

    @abstractmethod
    def encoded_bytes(self, count: int) -> int:
        """How many bytes `count` values take; where that depends on the values, the most."""

    @abstractmethod
    def _encode(self, values: torch.Tensor) -> bytes: ...

    @abstractmethod
    def _decode(self, data: memoryview, count: int) -> tuple[torch.Tensor, bool]:
        """The values, and whether all are finite."""

    def encode(self, values: torch.Tensor) -> bytes:
        """Write flat fp32 [n] as bytes.

        Raises:
            FormatError: not flat contiguous fp32 on the CPU, or not finite.
        """
        check_vector(values, values.numel(), f"{self.name} codec")
        return self._encode(values)

    def decode(self, data: bytes | bytearray | memoryview, count: int) -> torch.Tensor:
        """Read `count` values back as flat fp32; never shares memory with `data`.

        Raises:
            FormatError: another size than `count` values take, bytes the encoder does not write, or values that are
                not finite.
        """
        self._check_size(data, count)
        values, finite = self._decode(memoryview(data), count)
        if not finite:
            raise FormatError(f"{self.name} codec: values that are not finite")
        return values

    def _check_size(self, data: bytes | bytearray | memoryview, count: int) -> None:
        """Before anything is allocated. Raises: FormatError."""
        if count < 0 or len(data) != self.encoded_bytes(count):
            expected = self.encoded_bytes(max(count, 0))
            raise FormatError(f"{self.name} codec: expected {expected} bytes for {count} values, got {len(data)}")


class Fp32(Codec):
    name = "fp32"

    def encoded_bytes(self, count: int) -> int:
        return 4 * count

    def _encode(self, values: torch.Tensor) -> bytes:
        return values.numpy().tobytes()

    def _decode(self, data: memoryview, count: int) -> tuple[torch.Tensor, bool]:
        values = read_floats(data, "<f4")
        return values, is_finite(values)


class Fp16(Codec):
    name = "fp16"

    def encoded_bytes(self, count: int) -> int:
        return 2 * count

    def _encode(self, values: torch.Tensor) -> bytes:
        return values.clamp(-_FP16_MAX, _FP16_MAX).to(torch.float16).numpy().tobytes()

    def _decode(self, data: memoryview, count: int) -> tuple[torch.Tensor, bool]:
        values = read_floats(data, "<f2").to(torch.float32)
        return values, is_finite(values)


def read_floats(data: memoryview, dtype: str) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(data, dtype=dtype).copy())
