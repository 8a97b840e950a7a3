"""Committed rounds, as peers report them: checked, put in order, credited once. `service` and `host` call it.

The rules are `branch.judge` and `audit.decide`; here they meet the store. Every peer of a group reports the same round,
so most reports say nothing new. What cannot be decided yet is kept in the store and looked at again when the gap closes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator import audit
from coordinator.branch import Verdict, judge
from coordinator.ledger import Ledger, Writing
from coordinator.store import CreditRow, ForkRow, PendingRow, RoundRow
from protocol import canonical
from protocol.claim import Agreement, group_digest
from protocol.errors import FormatError, NetworkError, RefusedError
from protocol.ledger_entry import CreditEntry
from protocol.run_card import RunCard
from protocol.succession import Last

logger = logging.getLogger(__name__)

MAX_AHEAD = 100_000  # rounds beyond the newest committed one
MAX_PENDING = 20_000  # agreements, of all peers
MAX_PENDING_PER_PEER = 5_000
MAX_PENDING_BYTES = 1 << 30
MAX_FORKS_PER_PEER = 100  # that are recorded and logged


@dataclass(frozen=True)
class Answer:
    """What a report comes to; a refusal is final."""

    accepted: bool
    reason: str = ""


@dataclass(frozen=True)
class CommittedRound:
    """One round that has just entered the ledger."""

    round: int
    state: str
    tokens: int
    peers: int


class Reports:
    """Takes reports for one run.

    Args:
        ledger: where credit goes.
        card: the run.
        on_commit: called after each newly committed round, outside the transaction.
        named: gives this coordinator's word on who begins, once it is given; None: any that its key has signed will do.
    """

    def __init__(
        self,
        ledger: Ledger,
        card: RunCard,
        on_commit: Callable[[CommittedRound], None],
        named: Callable[[], bytes | None] = lambda: None,
    ) -> None:
        self._ledger, self._card, self._on_commit, self._named = ledger, card, on_commit, named

    def tip(self) -> Last:
        """The newest committed round."""
        with self._ledger.reading() as session:
            return self._tip(session)

    def agreement(self, round: int) -> bytes:
        """The agreement of a committed round, 0: of the newest; empty when there is none."""
        with self._ledger.reading() as session:
            newest = select(RoundRow.agreement).order_by(RoundRow.round.desc()).limit(1)
            wanted = newest.where(RoundRow.round == round) if round else newest
            return session.scalars(wanted).first() or b""

    def submit(self, data: bytes, reporter: str, now: float | None = None) -> Answer:
        """Take one reported agreement.

        Args:
            data: canonical JSON as the peer sent it.
            reporter: peer id of the member that sent it.
            now: Unix seconds.

        Raises:
            NetworkError: no room for more undecided agreements now; the peer keeps it and tries again.
        """
        now = time.time() if now is None else now
        try:
            agreement = Agreement.from_bytes(data, run=self._card.run, membership_key=self._card.member_key)
        except (FormatError, RefusedError) as error:
            return Answer(False, error.message)
        if self._card.spec.run.rounds and agreement.round > self._card.spec.run.rounds:
            return Answer(False, f"round {agreement.round}: the run ends after round {self._card.spec.run.rounds}")
        with self._ledger.writing() as write:
            answer, committed = self._take(write, agreement, reporter, now, received=now)
            if committed:
                committed += self._take_pending(write, now)
        self._tell(committed)
        return answer

    def settle(self, now: float | None = None) -> None:
        """Look again at what waits; the host calls this every few seconds."""
        now = time.time() if now is None else now
        with self._ledger.reading() as session:
            if not session.scalar(select(func.count()).select_from(PendingRow)):
                return
        with self._ledger.writing() as write:
            committed = self._take_pending(write, now)
        self._tell(committed)

    def _tell(self, committed: list[CommittedRound]) -> None:
        for item in committed:
            logger.info(
                "round %d: %d tokens by %d peers, state %s…", item.round, item.tokens, item.peers, item.state[:12]
            )
            self._on_commit(item)

    def _take(
        self, write: Writing, agreement: Agreement, reporter: str, now: float, received: float
    ) -> tuple[Answer, list[CommittedRound]]:
        """Decide on one agreement inside a transaction."""
        session = write.session
        known = session.get(RoundRow, agreement.round)
        try:
            state = known.state if known else None
            verdict = judge(agreement, self._tip(session), self._card.spec, committed_state=state, named=self._named())
        except RefusedError as error:
            return Answer(False, error.message), []
        if verdict is Verdict.COMMIT:
            return Answer(True), [self._commit(write, agreement, reporter, now)]
        if verdict is Verdict.FORK:
            return self._fork(session, agreement, reporter, now), []
        if verdict is Verdict.WAIT:
            self._keep(session, agreement, reporter, received)
        return Answer(True), []

    def _take_pending(self, write: Writing, now: float) -> list[CommittedRound]:
        """Commit what has waited for its turn, round after round, and drop what the branch has left behind."""
        committed: list[CommittedRound] = []
        session = write.session
        while True:
            upcoming = self._tip(session).round + 1
            waiting = session.scalars(
                select(PendingRow).where(PendingRow.round <= upcoming).order_by(PendingRow.round, PendingRow.time)
            ).all()
            before = len(committed)
            for row in waiting:
                agreement = Agreement.from_bytes(
                    row.agreement, run=self._card.run, membership_key=self._card.member_key
                )
                session.delete(row)  # if it must wait on, `_take` keeps it again
                session.flush()
                committed += self._take(write, agreement, row.reporter, now, received=row.time)[1]
            if len(committed) == before:
                return committed

    def _commit(self, write: Writing, agreement: Agreement, reporter: str, now: float) -> CommittedRound:
        data = agreement.to_bytes()
        tokens = sum(agreement.weights.values())
        write.session.add(
            RoundRow(
                round=agreement.round,
                base=agreement.base,
                state=agreement.state,
                group=group_digest(list(agreement.claim_envelopes)),
                tokens=tokens,
                agreement=data,
                reporter=reporter,
                time=now,
            )
        )
        write.session.flush()
        grants = audit.decide(agreement)
        for envelope in agreement.claim_envelopes:
            peer_id = envelope.keyid
            if peer_id not in grants:
                continue
            entry = CreditEntry(
                run=self._card.run,
                round=agreement.round,
                peer_id=peer_id,
                tokens=grants[peer_id].tokens,
                flops=grants[peer_id].flops,
                claim=envelope.digest,
                state=agreement.state,
            )
            leaf = write.leaf(entry)
            write.session.add(
                CreditRow(
                    leaf=leaf, run=entry.run, round=entry.round, peer_id=peer_id, tokens=entry.tokens, flops=entry.flops
                )
            )
        return CommittedRound(agreement.round, agreement.state, tokens, len(agreement.claims))

    def _keep(self, session: Session, agreement: Agreement, reporter: str, received: float) -> None:
        data = agreement.to_bytes()
        digest = canonical.sha256_hex(data)
        if session.get(PendingRow, digest) is not None:
            return
        count, size = session.execute(
            select(func.count(), func.coalesce(func.sum(func.length(PendingRow.agreement)), 0))
        ).one()
        mine = session.scalar(select(func.count()).where(PendingRow.reporter == reporter)) or 0
        ahead = agreement.round - self._tip(session).round
        if (
            count >= MAX_PENDING
            or mine >= MAX_PENDING_PER_PEER
            or size + len(data) > MAX_PENDING_BYTES
            or ahead > MAX_AHEAD
        ):
            raise NetworkError(
                f"round {agreement.round}: {ahead} rounds ahead of the ledger, and {count} reports wait already",
                "report the rounds before it first",
            )
        session.add(
            PendingRow(
                digest=digest,
                round=agreement.round,
                base=agreement.base,
                agreement=data,
                reporter=reporter,
                time=received,
            )
        )

    def _fork(self, session: Session, agreement: Agreement, reporter: str, now: float) -> Answer:
        digest = canonical.sha256_hex(agreement.to_bytes())
        committed = session.get(RoundRow, agreement.round)
        reason = (
            f"round {agreement.round}: the ledger holds state {committed.state[:16]}…, got {agreement.state[:16]}…"
            if committed
            else f"round {agreement.round}: it starts from state {agreement.base[:16]}…, which is not in the ledger"
        )
        mine = session.scalar(select(func.count()).where(ForkRow.reporter == reporter)) or 0
        if session.get(ForkRow, digest) is None and mine < MAX_FORKS_PER_PEER:
            logger.warning("fork: %s, signed by %d peers", reason, len(agreement.vote_envelopes))
            session.add(
                ForkRow(
                    digest=digest,
                    round=agreement.round,
                    state=agreement.state,
                    tokens=sum(agreement.weights.values()),
                    reporter=reporter,
                    time=now,
                )
            )
        return Answer(False, reason)

    def _tip(self, session: Session) -> Last:
        row = session.scalars(select(RoundRow).order_by(RoundRow.round.desc()).limit(1)).first()
        if row is None:
            return Last(0, self._card.genesis)
        value = canonical.loads(row.agreement, max_bytes=len(row.agreement))  # checked when it came
        return Last(row.round, row.state, dict(value["weights"]), dict(value.get("newcomers", {})), row.base)
