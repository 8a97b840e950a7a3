"""Committed rounds, as peers report them: checked, put in order, credited once. `service` and `host` call it.

The rules are `branch.judge` and `audit.decide`; here they meet the store. Every peer of a group reports the same round,
so most reports say nothing new, and are answered without a look at their signatures. The others are checked once, when
they come. What cannot be decided yet waits in the store, under the state that it starts from, and is looked at again
when that state is committed; what can then follow no more is dropped.

Signatures are checked before the ledger's lock is taken. Who has too much waiting keeps the rest and sends it later.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, exists, func, select
from sqlalchemy.orm import Session

from coordinator import audit
from coordinator.branch import Verdict, judge
from coordinator.ledger import Ledger, Writing
from coordinator.store import CreditRow, ForkRow, PendingByRow, PendingRow, RoundRow
from protocol import canonical
from protocol.agreement import MAX_AGREEMENT_BYTES, Agreement, group_digest
from protocol.envelope import Envelope
from protocol.errors import FormatError, NetworkError, RefusedError
from protocol.ledger_entry import CreditEntry
from protocol.rpc import ReportAnswer
from protocol.run_card import RunCard
from protocol.statements import Vote
from protocol.succession import Last

logger = logging.getLogger(__name__)

MAX_AHEAD = 100_000  # rounds beyond the newest committed one
MAX_WAITING = 20_000  # reports of agreements, by all peers
MAX_WAITING_BYTES = 512 << 20
MAX_WAITING_PER_PEER = 100
MAX_WAITING_BYTES_PER_PEER = 16 << 20
MAX_FORKS_PER_PEER = 100  # that are recorded and logged


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
        self._deciding = (
            threading.Lock()
        )  # what is judged against the newest round is entered before there is a newer one
        self._newest = Last(0, card.genesis)

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

    def submit(self, data: bytes, reporter: str, now: float | None = None) -> ReportAnswer:
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
            value = canonical.loads(data, max_bytes=MAX_AGREEMENT_BYTES)
            said = _said(value)
            answer = self._unchecked(said, reporter, len(data)) if said else None
            if answer is not None:
                return answer
            agreement = Agreement.from_json(value, run=self._card.run, membership_key=self._card.member_key)
        except (FormatError, RefusedError) as error:
            return ReportAnswer(False, error.message)
        with self._deciding:
            answer, committed = self._decide(agreement, reporter, now)
            if committed:
                committed += self._follow(now)
        self._tell(committed)
        return answer

    def settle(self, now: float | None = None) -> None:
        """Commit what can follow now: what a host that was killed left undone. The host calls this every second."""
        with self._deciding:
            committed = self._follow(time.time() if now is None else now)
        self._tell(committed)

    def _tell(self, committed: list[CommittedRound]) -> None:
        for item in committed:
            logger.info(
                "round %d: %d tokens by %d peers, state %s…", item.round, item.tokens, item.peers, item.state[:12]
            )
            self._on_commit(item)

    def _unchecked(self, said: Vote, reporter: str, size: int) -> ReportAnswer | None:
        """The answer to what need not be checked, by what it says of itself: it is known, or there is no room for it."""
        last = self._card.spec.run.rounds
        if last and said.round > last:
            return ReportAnswer(False, f"round {said.round}: the run ends after round {last}")
        with self._ledger.reading() as session:
            tip = self._tip(session)
            if said.round > tip.round + 1:
                self._check_room(session, said.round - tip.round, reporter, size)
            elif said.round <= tip.round:
                committed = session.get(RoundRow, said.round)
                if committed is not None and committed.state == said.state:
                    return ReportAnswer(True)
                if self._forks(session, reporter) >= MAX_FORKS_PER_PEER:
                    return ReportAnswer(False, f"round {said.round}: the ledger holds another state")
        return None

    def _decide(self, agreement: Agreement, reporter: str, now: float) -> tuple[ReportAnswer, list[CommittedRound]]:
        """Decide on one checked agreement."""
        with self._ledger.reading() as session:
            tip, known = self._tip(session), session.get(RoundRow, agreement.round)
        try:
            state = known.state if known else None
            verdict = judge(agreement, tip, self._card.spec, committed_state=state, named=self._named())
        except RefusedError as error:
            return ReportAnswer(False, error.message), []
        if verdict is Verdict.KNOWN:
            return ReportAnswer(True), []
        with self._ledger.writing() as write:
            if verdict is Verdict.FORK:
                return self._fork(write.session, agreement, reporter, now), []
            if verdict is Verdict.WAIT:
                self._keep(write.session, agreement, tip, reporter, now)
                return ReportAnswer(True), []
            committed = self._commit(write, agreement, reporter, now)
        self._newest = Last.of(agreement)
        return ReportAnswer(True), [committed]

    def _follow(self, now: float) -> list[CommittedRound]:
        """Commit what has waited for its turn, round after round, and drop what can follow no more."""
        committed: list[CommittedRound] = []
        while True:
            with self._ledger.reading() as session:
                tip = self._tip(session)
                due = PendingRow.round <= tip.round + 1
                waiting = session.scalars(
                    select(PendingRow)
                    .where(PendingRow.round == tip.round + 1, PendingRow.base == tip.state)
                    .order_by(PendingRow.time)
                ).all()
                if not waiting and not session.scalar(select(exists().where(due))):
                    return committed
            follows = next(filter(None, (self._following(row, tip) for row in waiting)), None)
            with self._ledger.writing() as write:
                gone = select(PendingRow.digest).where(due)
                write.session.execute(delete(PendingByRow).where(PendingByRow.digest.in_(gone)))
                write.session.execute(delete(PendingRow).where(due))
                if follows is None:
                    return committed
                agreement, reporter = follows
                committed.append(self._commit(write, agreement, reporter, now))
            self._newest = Last.of(agreement)

    def _following(self, row: PendingRow, tip: Last) -> tuple[Agreement, str] | None:
        """A waiting agreement and who reported it, if it is the next round."""
        agreement = Agreement.stored(row.agreement)
        try:
            judge(agreement, tip, self._card.spec, committed_state=None, named=self._named())
        except RefusedError as error:
            logger.info("what %s reported does not follow: %s", row.reporter, error.message)
            return None
        return agreement, row.reporter

    def _commit(self, write: Writing, agreement: Agreement, reporter: str, now: float) -> CommittedRound:
        data = agreement.to_bytes()
        tokens = sum(agreement.weights.values())
        write.session.add(
            RoundRow(
                round=agreement.round,
                base=agreement.base,
                state=agreement.state,
                group=group_digest(agreement.claims),
                tokens=tokens,
                agreement=data,
                reporter=reporter,
                time=now,
            )
        )
        write.session.flush()
        grants = audit.decide(agreement)
        for claim in agreement.claims:
            peer_id = claim.by
            if peer_id not in grants:
                continue
            entry = CreditEntry(
                run=self._card.run,
                round=agreement.round,
                peer_id=peer_id,
                tokens=grants[peer_id].tokens,
                flops=grants[peer_id].flops,
                claim=claim.digest,
                state=agreement.state,
            )
            leaf = write.leaf(entry)
            write.session.add(
                CreditRow(
                    leaf=leaf, run=entry.run, round=entry.round, peer_id=peer_id, tokens=entry.tokens, flops=entry.flops
                )
            )
        return CommittedRound(agreement.round, agreement.state, tokens, len(agreement.claims))

    def _check_room(self, session: Session, ahead: int, reporter: str, size: int) -> None:
        """Raises: NetworkError: this peer has enough waiting."""
        mine, held = session.execute(
            select(func.count(), func.coalesce(func.sum(PendingByRow.size), 0)).where(PendingByRow.reporter == reporter)
        ).one()
        if mine >= MAX_WAITING_PER_PEER or held + size > MAX_WAITING_BYTES_PER_PEER or ahead > MAX_AHEAD:
            raise NetworkError(
                f"{ahead} rounds ahead of the ledger, and {mine} reports of yours wait already",
                "report the rounds before it first",
            )

    def _keep(self, session: Session, agreement: Agreement, tip: Last, reporter: str, now: float) -> None:
        """Let an agreement wait, in this peer's name."""
        data = agreement.to_bytes()
        digest = canonical.sha256_hex(data)
        if session.get(PendingByRow, (reporter, digest)) is not None:
            return
        self._check_room(session, agreement.round - tip.round, reporter, len(data))
        if session.get(PendingRow, digest) is None:
            session.add(
                PendingRow(
                    digest=digest,
                    round=agreement.round,
                    base=agreement.base,
                    agreement=data,
                    reporter=reporter,
                    time=now,
                )
            )
            session.flush()
        session.add(PendingByRow(reporter=reporter, digest=digest, round=agreement.round, size=len(data)))
        session.flush()
        _make_room(session)
        if session.get(PendingByRow, (reporter, digest), populate_existing=True) is None:
            raise NetworkError("too many reports wait already", "report the rounds before it first")

    def _fork(self, session: Session, agreement: Agreement, reporter: str, now: float) -> ReportAnswer:
        digest = canonical.sha256_hex(agreement.to_bytes())
        committed = session.get(RoundRow, agreement.round)
        reason = (
            f"round {agreement.round}: the ledger holds state {committed.state[:16]}…, got {agreement.state[:16]}…"
            if committed
            else f"round {agreement.round}: it starts from state {agreement.base[:16]}…, which is not in the ledger"
        )
        if session.get(ForkRow, digest) is None and self._forks(session, reporter) < MAX_FORKS_PER_PEER:
            logger.warning("fork: %s, signed by %d peers", reason, len(agreement.votes))
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
        return ReportAnswer(False, reason)

    def _forks(self, session: Session, reporter: str) -> int:
        return session.scalar(select(func.count()).where(ForkRow.reporter == reporter)) or 0

    def _tip(self, session: Session) -> Last:
        newest = session.scalar(select(func.max(RoundRow.round))) or 0
        last = self._newest
        if newest != last.round:
            row = session.scalars(select(RoundRow).where(RoundRow.round == newest)).one()
            self._newest = last = Last.of(Agreement.stored(row.agreement))
        return last


def _said(value: Any) -> Vote | None:
    """What an agreement's first vote says; nothing of it is checked. None: it does not look like one."""
    try:
        return Vote.model_validate_json(Envelope.from_bytes(canonical.dumps(value["votes"][0])).payload)
    except (FormatError, KeyError, IndexError, TypeError, ValueError):  # pydantic's are ValueErrors
        return None


def _make_room(session: Session) -> None:
    """Drop what exceeds the limits of all: the furthest ahead of whoever has most waiting, those without credit first."""
    while True:
        count, size = session.execute(select(func.count(), func.coalesce(func.sum(PendingByRow.size), 0))).one()
        if count <= MAX_WAITING and size <= MAX_WAITING_BYTES:
            return
        worked = exists().where(CreditRow.peer_id == PendingByRow.reporter)
        heaviest = session.scalars(
            select(PendingByRow.reporter)
            .group_by(PendingByRow.reporter)
            .order_by(worked, func.sum(PendingByRow.size).desc(), func.max(PendingByRow.round).desc())
            .limit(1)
        ).one()
        row = session.scalars(
            select(PendingByRow).where(PendingByRow.reporter == heaviest).order_by(PendingByRow.round.desc()).limit(1)
        ).one()
        session.delete(row)
        session.flush()
        if not session.scalar(select(exists().where(PendingByRow.digest == row.digest))):
            session.execute(delete(PendingRow).where(PendingRow.digest == row.digest))
