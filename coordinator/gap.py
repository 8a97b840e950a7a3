"""Who is asked for rounds that the ledger lacks, when no report of them comes any more; `service` calls this.

Every member of a round reports it, and keeps the report until it is answered. So a member that stands beyond the ledger
is nothing to look at, for seconds; when the ledger stays where it is for longer, all who were in the next round have
lost what they had to say of it, or the host has lost what it was told. Members keep the agreements of the last rounds
to show others how the run got where it is, as far as they fit, and the ledger takes these.

One member is asked at a time; whoever has credit is asked first, since an identity costs nothing and may send nothing.

    >>> gap = Gap()
    >>> [gap.ask("alice", stands_at=9, ledger_round=3, now=now, worked=True) for now in (0.0, 29.0, 30.0, 31.0)]
    [False, False, True, False]
    >>> gap.ask("bob", stands_at=9, ledger_round=3, now=40.0, worked=True), gap.ask("bob", 9, 8, now=50.0, worked=True)
    (True, False)
"""

from __future__ import annotations

import threading

MISSING_S = 30.0  # that the next round is missing, though a member stands beyond the ledger, before one is asked
NEWCOMERS_S = 30.0  # longer for members without credit
NEXT_S = 10.0  # from one member that is asked to the next
AGAIN_S = 600.0  # until a member is asked once more for what follows the same round


class Gap:
    """Whom to ask; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ledger_round = -1
        self._since: float | None = None  # somebody stands beyond the ledger
        self._asked: dict[str, float] = {}  # peer id -> when, of those that were asked lately

    def ask(self, peer_id: str, stands_at: int, ledger_round: int, now: float, *, worked: bool) -> bool:
        """Whether to ask this member now for the agreements of the rounds after `ledger_round`.

        Args:
            stands_at: its newest round, by its own word.
            ledger_round: the newest in the ledger.
            now: seconds, monotonic.
            worked: it has credit.
        """
        with self._lock:
            if ledger_round != self._ledger_round:
                self._ledger_round, self._since, self._asked = ledger_round, None, {}
            if stands_at <= ledger_round:
                return False
            if self._since is None:
                self._since = now
            if now - self._since < MISSING_S + (0.0 if worked else NEWCOMERS_S):
                return False
            self._asked = {peer: at for peer, at in self._asked.items() if now - at < AGAIN_S}
            if peer_id in self._asked or any(now - at < NEXT_S for at in self._asked.values()):
                return False
            self._asked[peer_id] = now
            return True
