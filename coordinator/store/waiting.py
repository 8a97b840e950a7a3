"""Reports that wait for the rounds before them, in whose names they wait, and the forks that were refused."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, exists, func, select
from sqlalchemy.orm import Session

from coordinator.store.rows import CreditRow, ForkRow, PendingByRow, PendingRow
from protocol.canonical import sha256_hex


class WaitingTable:
    def __init__(self, session: Session) -> None:
        self._session = session

    def following(self, round: int, state: str) -> Sequence[PendingRow]:
        """What waits for this state of this round, and may be the next one; the first reported first."""
        wanted = select(PendingRow).where(PendingRow.round == round + 1, PendingRow.base == state)
        return self._session.scalars(wanted.order_by(PendingRow.time)).all()

    def has_until(self, round: int) -> bool:
        """Whether anything waits that is of this round, or an earlier one."""
        return bool(self._session.scalar(select(exists().where(PendingRow.round <= round))))

    def held_by(self, reporter: str) -> tuple[int, int]:
        """How many reports wait in a peer's name, and their bytes."""
        count, size_bytes = self._session.execute(_HELD.where(PendingByRow.reporter == reporter)).one()
        return count, size_bytes

    def held(self) -> tuple[int, int]:
        """How many reports wait in all names, and their bytes: what two have reported counts twice."""
        count, size_bytes = self._session.execute(_HELD).one()
        return count, size_bytes

    def is_held(self, agreement: bytes, reporter: str) -> bool:
        """Whether this agreement waits in this peer's name."""
        row = exists().where(PendingByRow.reporter == reporter, PendingByRow.digest == sha256_hex(agreement))
        return bool(self._session.scalar(select(row)))

    def hold(self, agreement: bytes, *, round: int, base: str, reporter: str, time: float) -> None:
        """Let an agreement wait in a peer's name; it is kept once, whoever reports it. `time`: Unix seconds."""
        digest = sha256_hex(agreement)
        if not self._session.scalar(select(exists().where(PendingRow.digest == digest))):
            self._session.add(
                PendingRow(digest=digest, round=round, base=base, agreement=agreement, reporter=reporter, time=time)
            )
        self._session.add(PendingByRow(reporter=reporter, digest=digest, round=round, size=len(agreement)))
        self._session.flush()

    def drop_until(self, round: int) -> None:
        """Drop what waits of this round and of earlier ones."""
        due = PendingRow.round <= round
        gone = select(PendingRow.digest).where(due)
        self._session.execute(delete(PendingByRow).where(PendingByRow.digest.in_(gone)))
        self._session.execute(delete(PendingRow).where(due))

    def drop_furthest_of_the_heaviest(self) -> None:
        """Drop the furthest round of whoever has most waiting, of those without credit first."""
        worked = exists().where(CreditRow.peer_id == PendingByRow.reporter)
        heaviest = self._session.scalars(
            select(PendingByRow.reporter)
            .group_by(PendingByRow.reporter)
            .order_by(worked, func.sum(PendingByRow.size).desc(), func.max(PendingByRow.round).desc())
            .limit(1)
        ).one()
        mine = select(PendingByRow).where(PendingByRow.reporter == heaviest)
        row = self._session.scalars(mine.order_by(PendingByRow.round.desc()).limit(1)).one()
        self._session.delete(row)
        self._session.flush()
        if not self._session.scalar(select(exists().where(PendingByRow.digest == row.digest))):
            self._session.execute(delete(PendingRow).where(PendingRow.digest == row.digest))


_HELD = select(func.count(), func.coalesce(func.sum(PendingByRow.size), 0)).select_from(PendingByRow)


class ForkTable:
    def __init__(self, session: Session) -> None:
        self._session = session

    def by(self, reporter: str) -> int:
        """How many forks a peer was the first to report."""
        return self._session.scalar(select(func.count()).where(ForkRow.reporter == reporter)) or 0

    def is_known(self, agreement: bytes) -> bool:
        return bool(self._session.scalar(select(exists().where(ForkRow.digest == sha256_hex(agreement)))))

    def add(self, agreement: bytes, *, round: int, state: str, tokens: int, reporter: str, time: float) -> None:
        """Note a fork: who reported it, peer id, and when, Unix seconds."""
        self._session.add(
            ForkRow(digest=sha256_hex(agreement), round=round, state=state, tokens=tokens, reporter=reporter, time=time)
        )
