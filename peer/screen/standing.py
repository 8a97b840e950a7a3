"""How a peer stands, as JSON: what the control socket's `status` answers, and what the screen draws.

Told by the peer's threads as things happen; asked for by the socket's thread and the screen's.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from peer.limits.rates import LineRates
from peer.round.report import STAGES, RoundReport
from peer.round.state import View
from peer.sync.shelf import Head
from peer.trainer import WorkReport
from protocol.credit_book import due_until
from protocol.run_spec import RunSpec

KEPT_LOSSES = 120  # rounds
SHOWN_MEMBERS = 64
_AVERAGING = STAGES[STAGES.index("group") : STAGES.index("kept")]  # what is said when "kept" comes: the round is over


class PeerStanding:
    """What is remembered of one peer of one run.

    Args:
        me: this peer's id.
        reduce_only: nothing is trained here.
    """

    def __init__(
        self,
        spec: RunSpec,
        me: str,
        rates: LineRates,
        *,
        reduce_only: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._spec, self._me, self._rates, self._clock = spec, me, rates, clock
        self._reduce_only = reduce_only
        self._work: WorkReport | None = None
        self._report: RoundReport | None = None
        self._left_out: RoundReport | None = None  # the newest that left somebody out
        self._losses: deque[float] = deque(maxlen=KEPT_LOSSES)
        self._pending: dict[int, tuple[int, float]] = {}  # round -> tokens that are agreed, and when
        self._reason, self._is_paused = "", False
        self._is_averaging = False
        self.tokens_per_s = 0.0

    def working(self, report: WorkReport) -> None:
        """How the work goes."""
        self._work, self.tokens_per_s = report, report.tokens_per_s
        if report.loss is not None and math.isfinite(report.loss):
            self._losses.append(report.loss)

    def committed(self, head: Head, report: RoundReport) -> None:
        """A round is made."""
        self._report = report
        if report.left_out:
            self._left_out = report
        own = head.agreement.weights.get(self._me, 0) if head.agreement is not None else 0
        if own:
            self._pending[head.round] = own, self._clock()

    def waiting(self, reason: str, *, paused: bool = False) -> None:
        """Why no round is made, in English; `paused`: and why no step is done."""
        self._reason, self._is_paused = reason, paused
        if paused:
            self.tokens_per_s = 0.0

    def stage(self, name: str) -> None:
        """Where in the round this peer is: one of `STAGES`."""
        self._is_averaging = name in _AVERAGING

    def to_json(
        self, round: int, others: list[View], credit: tuple[int, int, int], granted_at: float | None
    ) -> dict[str, Any]:
        """How it stands.

        Args:
            round: the newest that is made.
            others: who else is here.
            credit: tokens, rounds and the newest of them, by the receipts.
            granted_at: when the newest receipt came, seconds of the clock.
        """
        work, report, left_out, up, down = self._work, self._report, self._left_out, self._rates.up, self._rates.down
        for number in [number for number in list(self._pending) if number <= credit[2]]:
            self._pending.pop(number, None)
        pending = dict(self._pending)
        overdue = due_until(round, hold=self._spec.credit.hold_rounds, last=self._spec.run.rounds)
        own = work.tokens if work is not None and work.round > round else 0
        done = own + sum(view.said.tokens for view in others if view.said.round > round)
        return {
            "name": self._spec.run.name,
            "peer": self._me,
            "reduce_only": self._reduce_only,
            "round": round,
            "rounds": self._spec.run.rounds,
            "round_tokens": done,
            "round_goal": self._spec.sync.round_tokens,
            "tokens": own,
            "tokens_per_s": _tenth(self.tokens_per_s),
            "losses": list(self._losses),
            "rates": str(work.rates) if work is not None else "",
            "averaging": self._is_averaging,
            "waiting": self._reason,
            "waiting_paused": self._is_paused,
            "members": report.members if report is not None else None,
            "here": [{"peer": view.peer, "tokens": view.said.tokens} for view in others[:SHOWN_MEMBERS]],
            "waited_s": report.waited_s if report is not None else None,
            "left_out": [list(item) for item in left_out.left_out] if left_out else [],
            "left_out_round": left_out.round if left_out else None,
            "sent_bytes": up.total,
            "received_bytes": down.total,
            "sent_bytes_s": _tenth(up.bytes_s),
            "received_bytes_s": _tenth(down.bytes_s),
            "credit": {
                "tokens": credit[0],
                "rounds": credit[1],
                "newest": credit[2],
                "pending": sum(tokens for tokens, _ in pending.values()),
                "pending_since": min((at for number, (_, at) in pending.items() if number <= overdue), default=None),
                "granted_at": granted_at,
            },
        }


def _tenth(number: float) -> float:
    return round(number, 1)
