"""Makes one average of a group's updates, the same bits on every machine. Knows nothing of how they travel.

A reducer gives an `Aggregator` one chunk of all members' updates at a time, as decoded (`peer.training.reduce`). Each
product and each sum is rounded on its own and taken in the order in which the parts are given, so the result depends
neither on threads nor on the processor.

    mean      the weighted mean
    clipped   the same, after each part that is longer than so many times the group's usual length was made that long:
              what one member can do to the average is bounded, whatever it sends (`sync.clip` of the run spec)

Others, and which one a run has: `peer.training.robust`.

    >>> parts = [torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([-40.0])]
    >>> Mean().average(parts, [1, 1, 2])
    tensor([-19.5000])
    >>> ClippedMean(2.0).average(parts, [1, 1, 2])
    tensor([-0.5000])
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from peer.training.vectors import fp32
from protocol.errors import FormatError

_LONGEST = 2.0**120  # of a part: a weighted sum of such parts is finite, whatever the weights
_SHORTEST_FACTOR = 2.0**-126  # smaller numbers lose bits in fp32: what must shrink so much is as good as nothing
_EXACT_BITS = 53  # of a float64
_ROUGH_FROM = 2.0**-80  # from this sum of squares on, those that fp32 has no room for do not count


class Aggregator(ABC):
    """One way to make one average of many parts."""

    @abstractmethod
    def average(self, parts: Sequence[torch.Tensor], weights: Sequence[int], *, sparse: bool = False) -> torch.Tensor:
        """The average of one chunk.

        Args:
            parts: fp32 [n], finite, in group order; may be overwritten.
            weights: positive integers, one a part.
            sparse: a 0 means "not sent".

        Returns:
            fp32 [n].

        Raises:
            FormatError: no parts, shapes or counts that differ, another dtype, or a weight that is not positive.
        """


class Mean(Aggregator):
    """The weighted mean of what was sent."""

    def average(self, parts: Sequence[torch.Tensor], weights: Sequence[int], *, sparse: bool = False) -> torch.Tensor:
        return senders_mean(parts, weights) if sparse else weighted_mean(parts, weights)


class ClippedMean(Mean):
    """The weighted mean of parts of which none is longer than `clip` times the group's usual length of that chunk.

    By chunk, because a reducer has no more of an update than some of its chunks, and because a sender could hide what
    it does to a few values in the length of all. The usual length is a weighted median (`usual_length`), so whoever
    wants to raise it needs half of the weight, as for a vote. A sender is not told: what was cut off is lost, also for
    error feedback.

    Args:
        clip: how many times the usual length; positive.
    """

    def __init__(self, clip: float) -> None:
        self._clip = clip

    def average(self, parts: Sequence[torch.Tensor], weights: Sequence[int], *, sparse: bool = False) -> torch.Tensor:
        shorten(parts, weights, self._clip)
        return super().average(parts, weights, sparse=sparse)


def shorten(parts: Sequence[torch.Tensor], weights: Sequence[int], clip: float) -> None:
    """Make each part that is longer than `clip` times the group's usual length that long, in place.

    Without a clip, 0, only values beyond any sense are made smaller, for sums and differences to be finite.

    Raises:
        FormatError: as `Aggregator.average`.
    """
    _check(parts, weights)
    if not clip:
        for part in parts:
            part.clamp_(-_LONGEST, _LONGEST)
    elif not _surely_short(parts, weights, clip):
        lengths = [length(part) for part in parts]
        limit = min(clip * usual_length(lengths, weights), _LONGEST)
        for part, own in zip(parts, lengths, strict=True):
            if own > limit:
                part.mul_(fp32(shrinking(own, limit)))


def _surely_short(parts: Sequence[torch.Tensor], weights: Sequence[int], clip: float) -> bool:
    """Whether all parts are short enough by so much that no exact length is needed to tell.

    It takes an eighth of the time.

    The sums of squares, in whatever order this machine takes them, are off by a share of 2**-24 for each value at most,
    and exact lengths by half of that. The answer may differ between machines, the average cannot: after a yes, exact
    lengths would change nothing.
    """
    squares = [torch.dot(part, part).item() for part in parts]
    slack = 4 * parts[0].numel() * 2.0**-24
    if slack > 0.25 or min(squares) < _ROUGH_FROM or not math.isfinite(max(squares)):
        return False
    return max(squares) < (1 - slack) * clip**2 * usual_length(squares, weights)


def shrinking(own: float, limit: float) -> float:
    """What to multiply a part of this length by, so that it is no longer than `limit`."""
    if own <= limit:
        return 1.0
    factor = limit / own
    return factor if factor >= _SHORTEST_FACTOR else 0.0


def length(part: torch.Tensor) -> float:
    """The Euclidean norm of finite fp32 [n]: the same float64 on every machine, whatever its kernels' order and width.

    Values are rounded to integers, the largest to 18 bits for 65536 values: so few that no sum of squares, partial ones
    included, leaves the integers that float64 holds exactly. What is rounded off is below 2**-10 of the norm at most.
    """
    peak = part.abs().max().item() if part.numel() else 0.0
    if not peak:
        return 0.0
    bits = (_EXACT_BITS - (part.numel() - 1).bit_length()) // 2
    shift = bits - math.frexp(peak)[1]
    integers = part.to(torch.float64).mul_(math.ldexp(1.0, shift)).round_()
    return math.ldexp(math.sqrt(torch.dot(integers, integers).item()), -shift)


def usual_length(lengths: Sequence[float], weights: Sequence[int]) -> float:
    """The weighted lower median of the lengths that are not 0; 0 when all are.

    A length of 0 is no member's word on how long a part is: where less than half of the group has trained some chunk
    (the embeddings of rare words, an adapter's first step), a median with the zeros would throw all of that away. The
    lower of two, because it is the higher one that could do harm. Each counts by its weight, but for no more than all
    others together, so that no member's length is the measure of its own, however much weight it has.
    """
    present = sorted((own, weight) for own, weight in zip(lengths, weights, strict=True) if own)
    total = sum(weight for _, weight in present)
    votes = [(own, min(weight, total - weight)) for own, weight in present]
    cast, seen = sum(vote for _, vote in votes), 0
    for own, vote in votes:
        seen += vote
        if 2 * seen >= cast:
            return own
    return 0.0


def weighted_mean(parts: Sequence[torch.Tensor], weights: Sequence[int]) -> torch.Tensor:
    """sum(weight_i * part_i) / sum(weight_i).

    Args:
        parts: fp32, all of one shape, in group order.
        weights: positive integers, one a part.

    Returns:
        fp32, of the same shape; never one of `parts` itself.

    Raises:
        FormatError: no parts, shapes or counts that differ, another dtype, or a weight that is not positive.
    """
    _check(parts, weights)
    total = sum(weights)
    mean = torch.mul(parts[0], fp32(weights[0] / total))
    scaled = torch.empty_like(mean)
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        torch.mul(part, fp32(weight / total), out=scaled)  # apart from the sum: torch.add(alpha=) may fuse the two
        torch.add(mean, scaled, out=mean)
    return mean


def senders_mean(parts: Sequence[torch.Tensor], weights: Sequence[int]) -> torch.Tensor:
    """For each value the weighted mean over the parts where it is not 0.

    For sparse updates, in which 0 means "not sent": no zero of that member. A value of one part alone is one member's
    word only, and is shrunk to that part's share of all weight. (Four simulated workers, docs/benchmarks.md, with all
    of the residual: 3.367; halved instead 3.412, not shrunk at all 3.636.)

    Args:
        parts: fp32, all of one shape, in group order.
        weights: positive integers, one a part.

    Returns:
        fp32, of the same shape; never one of `parts` itself.

    Raises:
        FormatError: as `weighted_mean`.
    """
    mean = weighted_mean(parts, weights)
    total = sum(weights)
    senders, share = torch.zeros_like(mean), torch.zeros_like(mean)
    for part, weight in zip(parts, weights, strict=True):
        sent = (part != 0).to(torch.float32)
        torch.add(senders, sent, out=senders)
        torch.add(share, torch.mul(sent, fp32(weight / total)), out=share)
    return torch.div(mean, torch.where(senders > 1, share, fp32(1.0)))


def _check(parts: Sequence[torch.Tensor], weights: Sequence[int]) -> None:
    if not parts or len(parts) != len(weights):
        raise FormatError(f"expected one weight for each part, got {len(weights)} for {len(parts)}")
    for part, weight in zip(parts, weights, strict=True):
        if part.dtype != torch.float32 or part.shape != parts[0].shape:
            raise FormatError(f"expected fp32 parts of shape {tuple(parts[0].shape)}, got {tuple(part.shape)}")
        if isinstance(weight, bool) or not isinstance(weight, int) or weight <= 0:
            raise FormatError(f"a weight is a positive integer, got {weight!r}")
