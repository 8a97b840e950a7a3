"""Averages that a minority cannot pull far, whatever it sends; the same bits on every machine, as `aggregate` has them.

    trimmed     for each value the mean of the middle: of all weight, a third at either end does not count
    centered    the mean of how far each part is from the middle one, none of these ways longer than so many times the
                usual one; several times around (Karimireddy, He and Jaggi, "Learning from history", 2021, who begin at
                the last average instead of the median)

Before either, parts that are too long are shortened as for a clipped mean, if the run has a clip: of what only one
member has sent there is no middle. Sorting, sums of integers and single operations on fp32 and float64 have one result;
a norm is `aggregate.length`.

    >>> parts = [torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([3.0]), torch.tensor([-4000.0])]
    >>> TrimmedMean().average(parts, [1, 1, 1, 1])
    tensor([1.5000])
    >>> TrimmedMean().average(parts, [2, 2, 2, 1])  # a third of 7 is 2, counted in whole tokens
    tensor([1.6667])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch

from peer.training.aggregate import Aggregator, ClippedMean, Mean, length, shorten, shrinking, usual_length
from peer.training.vectors import fp32

TRIMMED = 3  # one of so many parts of the weight, at either end
TIMES = 3  # around the centre
Kind: TypeAlias = Literal["mean", "centered", "trimmed"]
_COLUMNS = 8192  # that are sorted at once: 64 members' take 12 MB


class TrimmedMean(Aggregator):
    """For each value the weighted mean of what lies in the middle third of the weight.

    Whoever has less than a third of the weight cannot move a value beyond what the others have sent. Of two parts of
    the same weight both count; a part at the edge counts with what of it is inside.

    Args:
        clip: how many times the usual length a part may be, before that; 0: as long as it is.
    """

    def __init__(self, clip: float = 0.0) -> None:
        self._clip = clip

    def average(self, parts: Sequence[torch.Tensor], weights: Sequence[int], *, sparse: bool = False) -> torch.Tensor:
        shorten(parts, weights, self._clip)
        return _middle(parts, weights, lambda total: total.div(TRIMMED, rounding_mode="floor"), sparse=sparse)


class CenteredClip(Aggregator):
    """What the parts have in common, found by going around a centre.

    Args:
        clip: how many times the usual distance from the centre a part may be; positive.
    """

    def __init__(self, clip: float) -> None:
        self._clip = clip

    def average(self, parts: Sequence[torch.Tensor], weights: Sequence[int], *, sparse: bool = False) -> torch.Tensor:
        shorten(parts, weights, self._clip)
        total = sum(weights)
        centre = _middle(parts, weights, lambda total: (total - 1).div(2, rounding_mode="floor"), sparse=sparse)
        for _ in range(TIMES):
            ways = [torch.sub(part, centre) for part in parts]
            if sparse:
                for way, part in zip(ways, parts, strict=True):
                    way[part == 0] = 0.0
            lengths = [length(way) for way in ways]
            limit = self._clip * usual_length(lengths, weights)
            step = torch.zeros_like(centre)
            for way, own, weight in zip(ways, lengths, weights, strict=True):
                way.mul_(fp32(shrinking(own, limit))).mul_(fp32(weight / total))
                torch.add(step, way, out=step)
            centre = torch.add(centre, step)
        return centre


def aggregator(clip: float, kind: Kind = "mean") -> Aggregator:
    """The one that a run wants.

    Args:
        clip: `sync.clip` of its spec; 0: never shorten a part.
        kind: `sync.aggregate` of its spec.
    """
    if kind == "trimmed":
        return TrimmedMean(clip)
    if kind == "centered":
        return CenteredClip(clip)
    return ClippedMean(clip) if clip else Mean()


def _middle(
    parts: Sequence[torch.Tensor],
    weights: Sequence[int],
    cut: Callable[[torch.Tensor], torch.Tensor],
    *,
    sparse: bool,
) -> torch.Tensor:
    """For each value the mean of the weight that is left when `cut(total)` of it is taken away at either end.

    Args:
        cut: int64 [n] -> int64 [n], of all weight that has sent something there; less than half.
        sparse: a 0 means "not sent": it has no weight. A value of one part alone is shrunk as in a mean.
    """
    whole = sum(weights)
    own = torch.tensor(weights, dtype=torch.int64).unsqueeze(1)
    columns = []
    for start in range(0, max(1, parts[0].numel()), _COLUMNS):
        values, order = torch.stack([part[start : start + _COLUMNS] for part in parts]).sort(dim=0, stable=True)
        held = own.expand(-1, values.shape[1]).gather(0, order)
        if sparse:
            held = held * (values != 0)
        until = held.cumsum(0)
        total = until[-1]
        away = cut(total)
        inside = torch.minimum(until, total - away) - torch.maximum(until - held, away)
        inside.clamp_(min=0)
        kept = inside.sum(0).clamp_(min=1)
        mean = torch.zeros_like(values[0])
        for value, share in zip(values, inside, strict=True):
            scaled = torch.mul(value, share.to(torch.float64).div_(kept).to(torch.float32))
            torch.add(mean, scaled, out=mean)
        if sparse:
            alone = (held > 0).sum(0) == 1
            mean = torch.where(alone, mean * total.to(torch.float64).div_(whole).to(torch.float32), mean)
        columns.append(mean)
    return torch.cat(columns)
