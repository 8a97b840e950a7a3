"""Which reported agreements extend the run: rules without I/O. `reports` applies them to what it has stored.

A run is a chain of states: the base of round r is the state of round r-1. Reports come from many peers, late, twice and
out of order, and an admitted peer can sign an agreement with itself alone. So

- an agreement on the next round is committed when it follows by `protocol.succession`, and refused for good when not;
- an agreement further ahead waits until the gap closes;
- one on another state for a committed round, or from another base, is a fork and is refused.
"""

from __future__ import annotations

from enum import Enum

from protocol.agreement import Agreement
from protocol.epoch import Word
from protocol.run_spec import RunSpec
from protocol.signed import Signed
from protocol.succession import Last, check_follows


class Verdict(Enum):
    COMMIT = "commit"
    KNOWN = "known"  # this round is committed with this state
    WAIT = "wait"
    FORK = "fork"


def judge(
    agreement: Agreement, last: Last, spec: RunSpec, *, committed_state: str | None, named: Signed[Word] | None = None
) -> Verdict:
    """What to do with a checked agreement.

    Args:
        last: the newest committed round.
        committed_state: of the agreement's own round, if that is committed.
        named: the coordinator's own word on who decides, `protocol.epoch`.

    Raises:
        VerificationError: it is of the next round, and does not follow.
    """
    if agreement.round <= last.round:
        return Verdict.KNOWN if agreement.state == committed_state else Verdict.FORK
    if agreement.round > last.round + 1:
        return Verdict.WAIT
    if agreement.base != last.state:
        return Verdict.FORK
    check_follows(agreement, last, spec, named)
    return Verdict.COMMIT
