"""The ledger's leaves, and the heads that were signed over them."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.store.rows import HeadRow, LeafRow

_AT_A_TIME = 1000  # leaves in memory


class LogTable:
    def __init__(self, session: Session) -> None:
        self._session = session

    def size(self) -> int:
        """How many leaves there are."""
        return self._session.scalar(select(func.count()).select_from(LeafRow)) or 0

    def leaf(self, index: int) -> bytes:
        """The data of one leaf, which must be there."""
        return self._session.scalars(select(LeafRow.data).where(LeafRow.index == index)).one()

    def leaves(self) -> Iterator[tuple[int, bytes]]:
        """(index, data) of all, in order."""
        rows = self._session.execute(select(LeafRow.index, LeafRow.data).order_by(LeafRow.index))
        return ((index, data) for index, data in rows.yield_per(_AT_A_TIME))

    def newest_head(self) -> str | None:
        """The signed note of the largest head."""
        return self._session.scalars(select(HeadRow.note).order_by(HeadRow.size.desc()).limit(1)).first()

    def heads(self) -> Iterator[str]:
        """The notes of all heads, the smallest first."""
        yield from self._session.scalars(select(HeadRow.note).order_by(HeadRow.size))

    def history(self) -> Iterator[tuple[int, str]]:
        """(size, note) of all heads, the smallest first."""
        rows = self._session.execute(select(HeadRow.size, HeadRow.note).order_by(HeadRow.size))
        return ((size, text) for size, text in rows.yield_per(_AT_A_TIME))

    def append(self, index: int, data: bytes) -> None:
        self._session.add(LeafRow(index=index, data=data))
        self._session.flush()

    def sign(self, size: int, note: str, time: float) -> None:
        """Keep a head that was signed."""
        self._session.add(HeadRow(size=size, note=note, time=time))
