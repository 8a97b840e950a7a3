"""What a claim is found to be, once its author has shown its work: the one judgement of a host and of any stranger.

found = judge(replayed, revealed, named, later)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from peer.training.replay import Revealed
from protocol.audit import check_start, in_ppm, limit, passes
from protocol.errors import FormatError, VerificationError
from protocol.statements import Claim


@dataclass(frozen=True)
class Judgement:
    """What came of a replay; as it stands in the ledger (`protocol.ledger_entry.AuditEntry`)."""

    verdict: Literal["pass", "fail"]
    ppm: Mapping[str, int] = field(default_factory=dict)  # distances
    limit: int = 0  # of them
    reason: str = ""


def judge(replayed: Callable[[Revealed], Mapping[str, float]], revealed: Revealed, times: int = 2) -> Judgement:
    """Replay a claim.

    Args:
        replayed: as `peer.training.replay.replay`, on a model and data of the run.
        revealed: as `peer.training.reveal.read_revealed` has checked it.
        times: it must fail so often: a machine may err.

    Raises: InputError: this device cannot replay it, which says nothing of the claim.
    """
    trajectory = revealed.claim.trajectory
    assert trajectory is not None, "only such claims are drawn"
    most = limit(trajectory)
    try:
        for _ in range(times):
            ppm = in_ppm(replayed(revealed))
            if passes(ppm, most):
                return Judgement("pass", ppm, most)
    except FormatError as error:  # of what the claim itself has named by its digest
        return Judgement("fail", reason=error.message[:200])
    farthest = max(ppm.values(), default=0) / most
    return Judgement("fail", ppm, most, f"its work, done once more, is {farthest:.1f} times as far away as it may be")


def begins_elsewhere(claim: Claim, named: Claim | None, later: int) -> Judgement | None:
    """That a claim's work began where it may not, if it did; arguments as `protocol.audit.check_start`."""
    try:
        check_start(claim, named, later)
    except VerificationError as error:
        return Judgement("fail", reason=error.message[:200])
    return None
