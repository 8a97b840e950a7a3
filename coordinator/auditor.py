"""The auditor: replays what was drawn and shown, enters the verdict, and bans who claimed what it did not do.

It runs in a thread of its own on a model of its own, which it holds only while there is something to replay.
"""

from __future__ import annotations

import logging
import statistics
import threading
import time
from types import TracebackType

from coordinator.audits import BYTES, HEAD, AuditDesk, Drawn
from coordinator.bans import Bans
from coordinator.evaluator import Evaluator
from coordinator.ledger import Ledger, Writing
from coordinator.store.database import StoreError
from peer.training.judge import Judgement, judge
from peer.training.replay import BrokenOff
from peer.training.reveal import read_revealed
from protocol.audit import Verdict, is_to_ban
from protocol.backoff import Backoff
from protocol.errors import FormatError, InputError, PotluckError, VerificationError
from protocol.ledger_entry import AuditEntry
from protocol.parts import SupervisedThread, Told
from protocol.reveal import RevealHead

logger = logging.getLogger(__name__)

LOOK_S = 1.0
LONGEST_PAUSE_S = 60.0  # before it is started again after a failure
REPLAY_S = 3600.0  # that one claim may take
USUAL = 4  # times the median of the others' tokens in its round: who claims more is not excused when that takes longer
CLOSE_S = 10.0  # a replay under way is not waited for longer


class Auditor:
    """Audits one run while its block runs.

    Args:
        evaluator: its own; holds the run's model and data.
        told: hears when it fails by a mistake of ours; it is started again.
        replay_s: as `REPLAY_S`.
    """

    def __init__(
        self,
        ledger: Ledger,
        desk: AuditDesk,
        bans: Bans,
        evaluator: Evaluator,
        told: Told = lambda failure: None,
        replay_s: float = REPLAY_S,
    ) -> None:
        self._replay_s = replay_s
        self._ledger, self._desk, self._bans, self._evaluator = ledger, desk, bans, evaluator
        self._closing = threading.Event()
        self._thread = SupervisedThread(
            "auditor", self._run, self._closing, told, Backoff(LOOK_S, LONGEST_PAUSE_S), vital=False
        )

    def __enter__(self) -> Auditor:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._desk.wake.set()
        if not self._thread.join(CLOSE_S):
            logger.warning("a replay did not end in time; it is done again at the next start")

    def _run(self) -> None:
        pause = Backoff(LOOK_S, LONGEST_PAUSE_S)
        while not self._closing.is_set():
            self._desk.wake.clear()
            try:
                did = self.step()
                pause.worked()
            except (PotluckError, StoreError, OSError) as error:  # of this machine: the next try may go better
                logger.warning("a claim could not be replayed now: %s", error)
                self._closing.wait(pause.failed())
                continue
            if not did:
                self._evaluator.let_go()
                self._desk.wake.wait(LOOK_S)

    def step(self) -> bool:
        """Decide on one claim, if there is one to decide on. Raises: InputError: not on this machine now."""
        for drawn, no_room in self._desk.unshown():
            why = "this host had no room for what there was to show" if no_room else "nothing was shown"
            self._enter(drawn, Judgement("fail", reason=why), "excused" if no_room else "silent")
            return True
        shown = self._desk.next()
        if shown is None:
            return False
        drawn, folder = shown
        claim, by = drawn.claim.value, drawn.row.peer_id
        try:
            head = RevealHead.from_bytes((folder / HEAD).read_bytes(), claim)
            revealed = read_revealed(head, folder / BYTES, claim, by)
        except (FormatError, VerificationError) as error:
            logger.warning(
                "round %d: what %s has shown is not what it claimed with: %s", claim.round, by, error.message
            )
            self._desk.drop(drawn.digest)
            return True
        earlier = [made.value for agreement in self._desk.earlier(drawn) for made in agreement.claims if made.by == by]
        end = time.monotonic() + self._replay_s
        try:
            found = judge(
                lambda shown: self._evaluator.replay(shown, lambda: self._closing.is_set() or time.monotonic() > end),
                revealed,
                earlier,
            )
            self._enter(drawn, found, found.verdict)
        except BrokenOff as error:
            if not self._closing.is_set():
                self._enter(drawn, Judgement("fail", reason=error.message), "excused" if is_usual(drawn) else "silent")
        return True

    def _enter(self, drawn: Drawn, finding: Judgement, verdict: Verdict) -> None:
        """Enter a verdict, what it grants, and the ban that follows from it."""
        row = drawn.row
        entry = AuditEntry(
            run=drawn.claim.value.run,
            round=row.round,
            peer_id=row.peer_id,
            claim=drawn.digest,
            verdict=verdict,
            ppm=dict(finding.ppm),
            limit=finding.limit,
            reason=finding.reason,
        )

        def write(write: Writing) -> None:
            write.audit(entry)
            write.grant_until(self._desk.due(write.tables))

        with self._ledger.store.reading() as tables:
            audits = tables.audits.of(row.peer_id)
        audits[verdict] = audits.get(verdict, 0) + 1
        logger.info("round %d: the audit of %s: %s %s", row.round, row.peer_id, verdict, finding.reason)
        if is_to_ban(audits):
            why = finding.reason if verdict == "fail" else "it has not shown the work that it claimed"
            try:
                self._bans.ban(row.peer_id, f"round {row.round}: {why}"[:200], first=write)
            except InputError as error:  # it is banned already, or there are too many
                logger.warning("%s could not be banned: %s", row.peer_id, error.message)
                with self._ledger.writing() as writing:
                    write(writing)
        else:
            with self._ledger.writing() as writing:
                write(writing)
        self._desk.drop(drawn.digest)


def is_usual(drawn: Drawn) -> bool:
    """Whether a claim is about as large as the others of its round."""
    others = [made.value.tokens for made in drawn.agreement.claims if made.by != drawn.row.peer_id]
    return bool(others) and drawn.claim.value.tokens <= USUAL * statistics.median(others)
