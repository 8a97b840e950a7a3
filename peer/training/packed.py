"""Documents that share a sequence and do not see each other: positions that begin anew, and whether a model heeds them.

    tokens      the cat sat </s> a dog </s>
    positions   0   1   2   3    0 1   2

transformers takes positions that begin anew, without an attention mask, for documents packed together, and masks
attention between them (`masking_utils.find_packed_sequence_indices`). Not every architecture does: state-space models
carry on what they have read, and some attention ignores it. So it is tried on the model itself, once when it is loaded.

Legend: T tokens in a sequence, B sequences, D documents in one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

_TOKENS = 24  # of a sequence to try it on
_LEAK = 0.1  # of what the other document does where nothing is kept apart; rounding, of 4 bits too, is far below


def positions_of(starts_D: np.ndarray, tokens: int) -> np.ndarray:
    """Positions in a sequence, int64 [T].

    Args:
        starts_D: where documents begin, ascending, 0 the first.

    >>> positions_of(np.array([0, 4]), 7).tolist()
    [0, 1, 2, 3, 0, 1, 2]
    """
    places_T = np.arange(tokens)
    found: np.ndarray = places_T - starts_D[np.searchsorted(starts_D, places_T, side="right") - 1]
    return found


@torch.no_grad()
def keeps_apart(model: Any, longest: int = _TOKENS) -> bool:
    """Whether a model says of a document in a sequence what it says of the document alone.

    Four passes of some tokens: two sequences of two documents each, with and without positions that begin anew, and
    the second document of each alone.

    Args:
        model: a transformers or peft model.
        longest: tokens that it has positions for; 8 or more.
    """
    weight = model.get_input_embeddings().weight
    count = min(_TOKENS, longest)
    tokens_BT = (torch.arange(2 * count, device=weight.device) % weight.shape[0]).view(2, count)
    second = count // 3, count - count // 3  # where the second document begins
    positions_BT = torch.from_numpy(np.stack([positions_of(np.array([0, start]), count) for start in second]))

    def logits(of: torch.Tensor, **more: Any) -> torch.Tensor:
        found: torch.Tensor = model(input_ids=of, use_cache=False, **more).logits.float()
        return found

    joined_BTV = logits(tokens_BT)
    try:
        packed_BTV = logits(tokens_BT, position_ids=positions_BT.to(weight.device))
    except TypeError:  # it takes no positions
        return False
    leak, effect = 0.0, 0.0
    for row, start in enumerate(second):
        alone_TV = logits(tokens_BT[row : row + 1, start:])[0]
        leak = max(leak, float((packed_BTV[row, start:] - alone_TV).abs().max()))
        effect = max(effect, float((joined_BTV[row, start:] - alone_TV).abs().max()))
    return leak <= _LEAK * effect
