"""Which agreements extend the run: rules without I/O. `reports` applies them to what it has stored.

A run is a chain of states: the base of round r is the state of round r-1. Reports come from many peers, late, twice and
out of order, and an admitted peer can sign an agreement with itself alone. So

- an agreement on the next round is committed at once when its voters hold a majority of the last round's weight;
- one without that majority (peers left, or somebody works apart from the rest) is committed only if no other comes
  while the rest could have made a round (`patience_s`): of two branches the heavier is the run;
- an agreement further ahead waits until the gap closes;
- one on another state for a committed round, or from another base, is a fork and is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from protocol.claim import Agreement

LEAST_WAIT_S = 30.0
LONGEST_WAIT_S = 3600.0


class Verdict(Enum):
    COMMIT = "commit"
    KNOWN = "known"  # this round is committed with this state
    WAIT = "wait"
    FORK = "fork"


@dataclass(frozen=True)
class Tip:
    """The newest committed round."""

    round: int  # 0: genesis
    state: str  # state digest
    weights: Mapping[str, int]  # of that round; empty for genesis


def patience_s(commit_times: Sequence[float]) -> float:
    """How long a minority's round waits: three times as long as a round has lately taken, and some more.

    Args:
        commit_times: of the last rounds, Unix seconds, oldest first.

    >>> patience_s([]), patience_s([100.0, 140.0, 160.0]), patience_s([0.0, 9999.0])
    (30.0, 150.0, 3600.0)
    """
    longest = max((after - before for before, after in itertools.pairwise(commit_times)), default=0.0)
    return min(LEAST_WAIT_S + 3 * longest, LONGEST_WAIT_S)


def judge(
    agreement: Agreement, tip: Tip, committed_state: str | None, waited_s: float, patience_s: float = LEAST_WAIT_S
) -> Verdict:
    """What to do with a checked agreement.

    Args:
        committed_state: of the agreement's own round, if that is committed.
        waited_s: how long the coordinator has known this agreement.
        patience_s: how long an agreement without a majority of the last round's weight waits.

    Raises:
        VerificationError: its weights do not follow from the round before.
    """
    if agreement.round <= tip.round:
        return Verdict.KNOWN if agreement.state == committed_state else Verdict.FORK
    if agreement.round > tip.round + 1:
        return Verdict.WAIT
    if agreement.base != tip.state:
        return Verdict.FORK
    agreement.check_against(tip.weights)
    if agreement.has_majority_of(tip.weights) or waited_s >= patience_s:
        return Verdict.COMMIT
    return Verdict.WAIT
