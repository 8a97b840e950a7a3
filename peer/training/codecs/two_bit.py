"""int2: a sign and one of two sizes for each value. Of `n` values come

    sizes   for each block of 256 neighbours 2 x bf16, the smaller first: the means of its small and of its large values
    2n bits the signs (1: negative), then which of the two sizes, in whole bytes; least significant bit first

which is 2.125 bits a value. What it loses (relative L2 error 0.35 of normal values) stays in its sender's own model,
and comes with a later update (`peer.training.work`). There is no zero: one is written as the smaller size.

Where a block is cut in two is found in three passes, from its mean size on (Lloyd 1982): as good as the best cut for
normal values.

    >>> int2 = Int2()
    >>> data = int2.encode(torch.tensor([1.0, -4.0, 1.0, 4.0]))
    >>> data.hex(), int2.decode(data, 4)
    ('803f8040a2', tensor([ 1., -4.,  1.,  4.]))
"""

from __future__ import annotations

import numpy as np
import torch

from peer.training.codecs.block import in_blocks, read_bf16, write_bf16
from peer.training.codecs.dense import Codec
from protocol.errors import FormatError

BLOCK = 256
_PASSES = 3
_MOST = torch.tensor(0x7F7F << 16, dtype=torch.int32).view(torch.float32)  # the largest bf16


class Int2(Codec):
    name = "int2"
    feedback = 1.0

    def encoded_bytes(self, count: int) -> int:
        return 4 * -(-count // BLOCK) + -(-2 * count // 8)

    def _encode(self, values: torch.Tensor) -> bytes:
        count = values.numel()
        if not count:
            return b""
        blocks = in_blocks(values.abs().clamp_(max=_MOST), BLOCK)
        filled = torch.full((blocks.shape[0], 1), float(BLOCK))
        filled[-1] = count - (blocks.shape[0] - 1) * BLOCK
        scaled = torch.mul(blocks, 1.0 / BLOCK)  # a sum of the largest values would not be finite
        total = _row_sums(scaled)
        small = large = cut = torch.div(total, filled / BLOCK)
        for _ in range(_PASSES):
            is_large = torch.gt(blocks, cut).to(torch.float32)
            many, above = is_large.sum(dim=1, keepdim=True), _row_sums(is_large * scaled)
            large = torch.where(many > 0, above / (many.clamp(min=1) / BLOCK), large)
            few = filled - many
            small = torch.where(few > 0, (total - above).clamp_(min=0) / (few.clamp(min=1) / BLOCK), small)
            cut = small * 0.5 + large * 0.5
        large = torch.maximum(small, large)
        bits = torch.cat([(values < 0), (blocks > cut).view(-1)[:count]]).numpy()
        sizes = torch.cat([small, large], dim=1).clamp_(max=_MOST).view(-1)
        return write_bf16(sizes) + np.packbits(bits, bitorder="little").tobytes()

    def _decode(self, data: memoryview, count: int) -> tuple[torch.Tensor, bool]:
        if count == 0:
            return torch.zeros(0), True
        split = 4 * -(-count // BLOCK)
        sizes = read_bf16(data[:split], "int2 codec: a size").view(-1, 2)
        if (sizes[:, 0] > sizes[:, 1]).any():
            raise FormatError("int2 codec: a smaller size that is the larger one")
        bits = np.unpackbits(np.frombuffer(data[split:], dtype=np.uint8), bitorder="little")
        if bits[2 * count :].any():
            raise FormatError("int2 codec: bits set after the last value")
        flags, raw = torch.from_numpy(bits).to(torch.int32), sizes.view(torch.int32)
        small, differs = raw[:, :1], raw[:, :1] ^ raw[:, 1:]
        # on the bits of the sizes: torch.where takes nine times as long
        values = (in_blocks(flags[count : 2 * count].neg(), BLOCK) & differs).bitwise_xor_(small).view(-1)[:count]
        values.bitwise_xor_(flags[:count].bitwise_left_shift_(31))
        return values.view(torch.float32), True


def _row_sums(rows: torch.Tensor) -> torch.Tensor:
    """[r, 256] -> [r, 1]; one half and the other, and so on: torch's own sum takes another order elsewhere."""
    while rows.shape[1] > 1:
        first, second = rows.chunk(2, dim=1)
        rows = first + second
    return rows
