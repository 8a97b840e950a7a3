"""The auditor: replays what was drawn and shown, enters the verdict, and bans who claimed what it did not do.

It runs in a thread of its own on a model of its own, which it holds only while there is something to replay.
"""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections.abc import Collection
from pathlib import Path
from types import TracebackType

from coordinator import evidence
from coordinator.audits import BYTES, HEAD, AuditDesk, Drawn
from coordinator.bans import Bans
from coordinator.evaluator import Evaluator
from coordinator.ledger import Ledger
from coordinator.store.database import StoreError
from peer.training.judge import Judgement, begins_elsewhere, judge
from peer.training.replay import BrokenOff
from peer.training.reveal import read_revealed
from protocol.agreement import Agreement
from protocol.audit import Verdict, is_to_ban
from protocol.backoff import Backoff
from protocol.errors import FormatError, InputError, PotluckError, VerificationError
from protocol.ledger_entry import MAX_REASON_CHARS, AuditEntry
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
        self._replay_s, self._evidence = replay_s, desk.folder.with_name("evidence")
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
        before, later = self._desk.before(drawn)
        named = before.by_peer.get(by) if before is not None else None
        end = time.monotonic() + self._replay_s
        try:
            found = begins_elsewhere(claim, named, len(later)) or judge(
                lambda shown: self._evaluator.replay(shown, lambda: self._closing.is_set() or time.monotonic() > end),
                revealed,
            )
            if found.verdict == "fail":
                self._keep(drawn, folder, [*later, *([before] if before is not None else [])])
            self._enter(drawn, found, found.verdict)
        except BrokenOff as error:
            if not self._closing.is_set():
                self._enter(drawn, Judgement("fail", reason=error.message), "excused" if is_usual(drawn) else "silent")
        return True

    def _keep(self, drawn: Drawn, reveal: Path, before: Collection[Agreement]) -> None:
        try:
            place = evidence.keep(self._evidence, drawn.claim, reveal, self._evaluator, before)
        except OSError as error:
            logger.warning("the evidence against %s could not be kept: %s", drawn.row.peer_id, error)
        else:
            logger.warning("the evidence against %s: potluck verify %s", drawn.row.peer_id, place)

    def _enter(self, drawn: Drawn, found: Judgement, verdict: Verdict) -> None:
        """Enter a verdict, what it grants, and the ban that follows from it."""
        row = drawn.row
        entry = AuditEntry(
            run=drawn.claim.value.run,
            round=row.round,
            peer_id=row.peer_id,
            claim=drawn.digest,
            verdict=verdict,
            ppm=dict(found.ppm),
            limit=found.limit,
            reason=found.reason,
        )

        with self._ledger.store.reading() as tables:
            audits = tables.audits.of(row.peer_id)
        audits[verdict] = audits.get(verdict, 0) + 1
        logger.info("round %d: the audit of %s: %s %s", row.round, row.peer_id, verdict, found.reason)
        if not is_to_ban(audits) or not self._ban(entry):
            with self._ledger.writing() as write:
                write.audit(entry)
                write.grant_until(self._desk.due(write.tables))
        self._desk.drop(drawn.digest)

    def _ban(self, entry: AuditEntry) -> bool:
        """Enter a verdict and the ban that follows, with nothing granted in between; whether it can be banned."""
        why = entry.reason if entry.verdict == "fail" else "it has not shown the work that it claimed"
        try:
            reason = f"round {entry.round}: {why}"[:MAX_REASON_CHARS]
            self._bans.ban(entry.peer_id, reason, first=lambda write: write.audit(entry))
        except InputError as error:  # it is banned already, or there are too many
            logger.warning("%s could not be banned: %s", entry.peer_id, error.message)
            return False
        return True


def is_usual(drawn: Drawn) -> bool:
    """Whether a claim is about as large as the others of its round."""
    others = [made.value.tokens for made in drawn.agreement.claims if made.by != drawn.row.peer_id]
    return bool(others) and drawn.claim.value.tokens <= USUAL * statistics.median(others)
