"""A round's average, kept as it travelled: who missed a round makes the new state from it, without fetching that whole.

So does who starts again: most rounds are on disk as their averages (`peer.disk.kept_states`).

An int4 average is an eighth of the state's size, an int2 one of a sixth of the values a ninetieth. Nobody signs it.
What it leads to is signed: if that is not the agreed state, it is thrown away, and the state itself is fetched.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from peer.training.codecs.codec import CHUNK_VALUES, average_codec, chunk_sizes
from peer.training.outer import outer_step
from peer.training.state import SharedState
from peer.training.tensor_file import write_tensors
from protocol.errors import FormatError, InputError
from protocol.run_spec import RunSpec


@dataclass(frozen=True, eq=False)
class Average:
    """What a group averaged.

    Args:
        codec: its name.
        values: fp32 values.
        chunks: of `CHUNK_VALUES` values each, as the reducers sent them.
    """

    codec: str
    values: int
    chunks: tuple[bytes, ...]

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.chunks))

    def decode(self) -> torch.Tensor:
        """Flat fp32 [values]. Raises: FormatError: bytes that no reducer writes."""
        coder, vector = average_codec(self.codec), torch.empty(self.values)
        for part, data in zip(vector.split(CHUNK_VALUES), self.chunks, strict=True):
            part.copy_(coder.decode(data, part.numel()))
        return vector

    def applied_to(self, spec: RunSpec, base: SharedState) -> SharedState:
        """The state that it leads to from `base`, hashed: compare its digest with the agreed one.

        Raises:
            FormatError: bytes that no reducer writes, or another number of values.
            RoundAborted: values that are not finite.
        """
        state = outer_step(spec, base, self.decode())
        _ = state.digest
        return state

    def save(self, path: Path) -> None:
        """Write it to a file, whole or not at all.

        Raises:
            InputError: the disk is full, or the folder cannot be written.
        """
        tensors = {
            "data": torch.frombuffer(bytearray(b"".join(self.chunks)), dtype=torch.uint8),
            "sizes": torch.tensor([len(chunk) for chunk in self.chunks]),
        }
        write_tensors(path, tensors, {"codec": self.codec, "values": str(self.values)})

    @classmethod
    def load(cls, path: Path) -> Average:
        """Read what `save` wrote. Raises: InputError: unreadable, or damaged so that it shows."""
        try:
            with safe_open(path, framework="pt") as file:
                about, data, sizes = file.metadata() or {}, file.get_tensor("data"), file.get_tensor("sizes").tolist()
            name, values = about["codec"], int(about["values"])
            fits = len(sizes) == len(chunk_sizes(values, CHUNK_VALUES)) and min(sizes) >= 0 and sum(sizes) == len(data)
            if not fits:
                raise FormatError("its chunks are not those of so many values")
            whole = data.numpy().tobytes()
            ends = list(itertools.accumulate(sizes))
            return cls(name, values, tuple(whole[end - size : end] for end, size in zip(ends, sizes, strict=True)))
        except (SafetensorError, OSError, KeyError, ValueError, FormatError) as error:
            raise InputError(f"{path}: not an average, or it is damaged: {error}") from error


def is_small(codec_name: str) -> bool:
    """Whether averages of this codec are worth keeping: at most half as large as what they lead to."""
    return average_codec(codec_name).encoded_bytes(CHUNK_VALUES) <= 2 * CHUNK_VALUES
