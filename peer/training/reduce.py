"""What a reducer does with one chunk: decode all members' parts, make one average of them, and encode that once.

Every member, the reducer too, decodes those same bytes by `average_codec`.

    >>> import torch
    >>> from peer.training.robust import aggregator
    >>> parts = [codec("fp16").encode(torch.tensor([value])) for value in (1.0, 3.0)]
    >>> average_codec("fp16").decode(average_chunk("fp16", aggregator(0.0), parts, [1, 1], 1), 1)
    tensor([2.])
"""

from __future__ import annotations

from collections.abc import Sequence

from peer.training.aggregate import Aggregator
from peer.training.codecs.codec import average_codec, codec


def average_chunk(
    wire: str, aggregator: Aggregator, parts: Sequence[bytes], weights: Sequence[int], count: int
) -> bytes:
    """What a reducer sends for one chunk.

    Args:
        wire: the name of the run's codec.
        parts: the members' chunks, each `count` encoded values, in group order.
        weights: positive integers, one a part.

    Raises:
        FormatError: a part does not decode, or weights that are not positive integers, one a part.
    """
    coder = codec(wire)
    decoded = [coder.decode(part, count) for part in parts]
    return average_codec(wire).encode(aggregator.average(decoded, weights, sparse=coder.sparse))
