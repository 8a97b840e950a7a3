"""Committed rounds, as peers report them: checked, put in order, credited once. `service` and `host` call it.

The rules are `branch.judge` and `protocol.credit_book`; here they meet the store. Every peer of a group reports the
same round, so most reports say nothing new, and are answered without a look at their signatures. The others are checked
once, when they come. What cannot be decided yet waits in the store (`waiting`), under the state that it starts from,
and is looked at again when that state is committed; what can then follow no more is dropped.

Where a round is missing for good, because all who were in it have lost their reports, a member that has the agreements
sends them as a chain (`gap` says who is asked): each is the next round by the same rule, or the chain ends there.

Signatures are checked before the ledger's lock is taken.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from coordinator import waiting
from coordinator.branch import Verdict, judge
from coordinator.ledger import Ledger, Writing
from coordinator.lots import LotChain
from coordinator.store.database import Tables
from coordinator.store.rows import PendingRow
from protocol import canonical
from protocol.agreement import MAX_AGREEMENT_BYTES, Agreement
from protocol.credit_book import due_to_draw, due_until, granted
from protocol.envelope import Envelope
from protocol.epoch import Word
from protocol.errors import FormatError, NetworkError, RefusedError
from protocol.ledger_entry import ClaimEntry, CreditEntry, LotEntry, RoundEntry
from protocol.rpc import ReportAnswer
from protocol.run_card import RunCard
from protocol.signed import Signed
from protocol.statements import Vote
from protocol.succession import Last

logger = logging.getLogger(__name__)

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
        named: gives this coordinator's word on who decides, once it is given; None: any that its key signed will do.
        chain: where work is audited: what lots are drawn by.
    """

    def __init__(
        self,
        ledger: Ledger,
        card: RunCard,
        on_commit: Callable[[CommittedRound], None],
        named: Callable[[], Signed[Word] | None] = lambda: None,
        chain: LotChain | None = None,
    ) -> None:
        self._ledger, self._store, self._card = ledger, ledger.store, card
        self._on_commit, self._named, self._chain = on_commit, named, chain
        self._deciding = threading.Lock()  # what is judged by the newest round is entered before there is a newer one
        self._newest = Last(0, card.genesis)

    def tip(self) -> Last:
        """The newest committed round."""
        with self._store.reading() as tables:
            return self._tip(tables)

    def agreement(self, round: int) -> bytes:
        """The agreement of a committed round, 0: of the newest; empty when there is none."""
        with self._store.reading() as tables:
            return tables.rounds.agreement(round) or b""

    def submit(self, data: bytes, reporter: str, now: float | None = None) -> ReportAnswer:
        """Take one reported agreement.

        Args:
            data: canonical JSON as the peer sent it.
            reporter: peer id of the member that sent it.
            now: Unix seconds.

        Raises:
            NetworkError: no room for more undecided agreements now; the peer keeps it and tries again.
        """
        try:
            value = canonical.loads(data, max_bytes=MAX_AGREEMENT_BYTES)
        except FormatError as error:
            return ReportAnswer(False, error.message)
        return self._submit(value, _said(value), len(data), reporter, time.time() if now is None else now)

    def submit_chain(self, chain: Sequence[bytes], reporter: str, now: float | None = None) -> ReportAnswer:
        """Take the rounds that the ledger lacks, oldest first; what it has already is passed over.

        The first that is not the next round ends it, before any signature of it is looked at; those before it stay.

        Others: as `submit`.
        """
        now = time.time() if now is None else now
        for data in chain:
            try:
                value = canonical.loads(data, max_bytes=MAX_AGREEMENT_BYTES)
            except FormatError as error:
                return ReportAnswer(False, error.message)
            said, tip = _said(value), self.tip()
            if said is None or said.run != self._card.run:
                return ReportAnswer(False, "a chain is made of agreements of this run")
            if said.round > tip.round and (said.round, said.base) != (tip.round + 1, tip.state):
                return ReportAnswer(False, f"round {said.round} does not follow round {tip.round} of the ledger")
            answer = self._submit(value, said, len(data), reporter, now)
            if not answer.accepted:
                return answer
        return ReportAnswer(True)

    def settle(self, now: float | None = None) -> None:
        """Commit what can follow now: what a host that was killed left undone. The host calls this every second."""
        with self._deciding:
            committed = self._follow(time.time() if now is None else now)
        self._tell(committed)

    def _submit(self, value: Any, said: Vote | None, size_bytes: int, reporter: str, now: float) -> ReportAnswer:
        try:
            answer = self._unchecked(said, reporter, size_bytes) if said else None
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

    def _tell(self, committed: list[CommittedRound]) -> None:
        for item in committed:
            logger.info(
                "round %d: %d tokens by %d peers, state %s…", item.round, item.tokens, item.peers, item.state[:12]
            )
            self._on_commit(item)

    def _unchecked(self, said: Vote, reporter: str, size_bytes: int) -> ReportAnswer | None:
        """The answer to what need not be checked, by what it says of itself: it is known, or has no room."""
        last = self._card.spec.run.rounds
        if last and said.round > last:
            return ReportAnswer(False, f"round {said.round}: the run ends after round {last}")
        with self._store.reading() as tables:
            tip = self._tip(tables)
            if said.round > tip.round + 1:
                waiting.check_room(*tables.waiting.held_by(reporter), size_bytes, said.round - tip.round)
            elif said.round <= tip.round:
                if tables.rounds.state_of(said.round) == said.state:
                    return ReportAnswer(True)
                if tables.forks.by(reporter) >= MAX_FORKS_PER_PEER:
                    return ReportAnswer(False, f"round {said.round}: the ledger holds another state")
        return None

    def _decide(self, agreement: Agreement, reporter: str, now: float) -> tuple[ReportAnswer, list[CommittedRound]]:
        """Decide on one checked agreement."""
        with self._store.reading() as tables:
            tip, state = self._tip(tables), tables.rounds.state_of(agreement.round)
        try:
            verdict = judge(agreement, tip, self._card.spec, committed_state=state, named=self._named())
        except RefusedError as error:
            return ReportAnswer(False, error.message), []
        if verdict is Verdict.KNOWN:
            return ReportAnswer(True), []
        if verdict is Verdict.COMMIT:
            with self._ledger.writing() as write:
                committed = self._commit(write, agreement, reporter, now)
            self._newest = Last.of(agreement)
            return ReportAnswer(True), [committed]
        with self._store.writing() as tables:
            if verdict is Verdict.FORK:
                return _fork(tables, agreement, state, reporter, now), []
            _hold(tables, agreement, agreement.round - tip.round, reporter, now)
            return ReportAnswer(True), []

    def _follow(self, now: float) -> list[CommittedRound]:
        """Commit what has waited for its turn, round after round, and drop what can follow no more."""
        committed: list[CommittedRound] = []
        while True:
            with self._store.reading() as tables:
                tip = self._tip(tables)
                candidates = tables.waiting.following(tip.round, tip.state)
                if not candidates and not tables.waiting.has_until(tip.round + 1):
                    return committed
            follows = next(filter(None, (self._following(row, tip) for row in candidates)), None)
            with self._ledger.writing() as write:
                write.tables.waiting.drop_until(tip.round + 1)
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
        write.tables.rounds.commit(agreement, reporter, now)
        spec, run, round, state = self._card.spec, self._card.run, agreement.round, agreement.state
        if hold := spec.credit.hold_rounds:
            digest = canonical.sha256_hex(agreement.to_bytes())
            write.leaf(RoundEntry(run=run, round=round, base=agreement.base, state=state, agreement=digest))
        for peer, work in granted(agreement, write.tables.bans.peers()).items():
            said: dict[str, Any] = {"tokens": work.tokens, "flops": work.flops, "claim": work.claim, "peer_id": peer}
            if hold:
                write.hold(ClaimEntry(run=run, round=round, state=state, **said))
            else:
                write.credit(CreditEntry(run=run, round=round, state=state, **said))
        if hold:
            self._draw(write, round, state)
            write.grant_until(due_until(round, hold=hold, last=spec.run.rounds))
        tokens = sum(agreement.weights.values())
        return CommittedRound(agreement.round, agreement.state, tokens, len(agreement.claims))

    def _draw(self, write: Writing, newest: int, state: str) -> None:
        """Where work is audited, draw which claims are replayed, as soon as nobody can choose that any more."""
        if self._chain is None:
            return
        run, spec = self._card.run, self._card.spec
        first, last = (due_to_draw(round, spec.run.rounds) for round in (newest - 1, newest))
        for round in range(first + 1, last + 1):
            write.draw(LotEntry(run=run, round=round, link=self._chain.link(round)), state, spec.audit)

    def _tip(self, tables: Tables) -> Last:
        newest, last = tables.rounds.newest(), self._newest
        if newest != last.round:
            data = tables.rounds.agreement(newest)
            assert data is not None, "the newest round is there"
            self._newest = last = Last.of(Agreement.stored(data))
        return last


def _hold(tables: Tables, agreement: Agreement, ahead: int, reporter: str, now: float) -> None:
    """Let an agreement wait in a peer's name; others may have to give way. Raises: NetworkError: no room."""
    data = agreement.to_bytes()
    if tables.waiting.is_held(data, reporter):
        return
    waiting.check_room(*tables.waiting.held_by(reporter), len(data), ahead)
    tables.waiting.hold(data, round=agreement.round, base=agreement.base, reporter=reporter, time=now)
    while waiting.is_over_full(*tables.waiting.held()):
        tables.waiting.drop_furthest_of_the_heaviest()
    if not tables.waiting.is_held(data, reporter):
        raise NetworkError("too many reports wait already", waiting.HINT)


def _fork(tables: Tables, agreement: Agreement, committed_state: str | None, reporter: str, now: float) -> ReportAnswer:
    """Note that an agreement is of another branch, and say so."""
    reason = (
        f"round {agreement.round}: the ledger holds state {committed_state[:16]}…, got {agreement.state[:16]}…"
        if committed_state
        else f"round {agreement.round}: it starts from state {agreement.base[:16]}…, which is not in the ledger"
    )
    data = agreement.to_bytes()
    if not tables.forks.is_known(data) and tables.forks.by(reporter) < MAX_FORKS_PER_PEER:
        logger.warning("fork: %s, signed by %d peers", reason, len(agreement.votes))
        tables.forks.add(
            data,
            round=agreement.round,
            state=agreement.state,
            tokens=sum(agreement.weights.values()),
            reporter=reporter,
            time=now,
        )
    return ReportAnswer(False, reason)


def _said(value: Any) -> Vote | None:
    """What an agreement's first vote says; nothing of it is checked. None: it does not look like one."""
    try:
        return Vote.model_validate_json(Envelope.from_bytes(canonical.dumps(value["votes"][0])).payload)
    except (FormatError, KeyError, IndexError, TypeError, ValueError):  # pydantic's are ValueErrors
        return None
