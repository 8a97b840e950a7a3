"""The committed rounds, the credit that was granted for them, and what of it is on hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, exists, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from coordinator.store.rows import AuditRow, ClaimRow, CreditRow, RoundRow
from protocol.agreement import Agreement, group_digest
from protocol.ledger_entry import AuditEntry, ClaimEntry, CreditEntry


class RoundTable:
    def __init__(self, session: Session) -> None:
        self._session = session

    def newest(self) -> int:
        """The newest committed round; 0: none."""
        return self._session.scalar(select(func.max(RoundRow.round))) or 0

    def agreement(self, round: int) -> bytes | None:
        """The agreement of a round, 0: of the newest; None: it is not committed."""
        newest = select(RoundRow.agreement).order_by(RoundRow.round.desc()).limit(1)
        return self._session.scalars(newest.where(RoundRow.round == round) if round else newest).first()

    def state_of(self, round: int) -> str | None:
        """The state after a round; None: it is not committed."""
        return self._session.scalars(select(RoundRow.state).where(RoundRow.round == round)).first()

    def round_of(self, state: str) -> int | None:
        """The round that a state comes after; None: it is none of the run's."""
        return self._session.scalars(select(RoundRow.round).where(RoundRow.state == state)).first()

    def states_after(self, round: int, every: int, most: int) -> list[tuple[int, str]]:
        """(round, state) of the rounds after this one that are a multiple of `every`, or the newest; newest first."""
        wanted = (
            select(RoundRow.round, RoundRow.state)
            .where(RoundRow.round > round, or_(RoundRow.round % every == 0, RoundRow.round == self.newest()))
            .order_by(RoundRow.round.desc())
            .limit(most)
        )
        return [(number, state) for number, state in self._session.execute(wanted)]

    def tokens_after(self, round: int) -> tuple[int, int] | None:
        """The newest round, and the tokens agreed in all rounds after `round`; None: there is none."""
        newer = select(func.max(RoundRow.round), func.sum(RoundRow.tokens)).where(RoundRow.round > round)
        newest, tokens = self._session.execute(newer).one()
        return None if newest is None else (newest, tokens)

    def tokens_until(self, round: int) -> int:
        """The tokens agreed in all rounds up to this one."""
        return self._session.scalar(select(func.sum(RoundRow.tokens)).where(RoundRow.round <= round)) or 0

    def commit(self, agreement: Agreement, reporter: str, time: float) -> None:
        """Enter the next round; who reported it, peer id, and when, Unix seconds."""
        self._session.add(
            RoundRow(
                round=agreement.round,
                base=agreement.base,
                state=agreement.state,
                group=group_digest(agreement.claims),
                tokens=sum(agreement.weights.values()),
                agreement=agreement.to_bytes(),
                reporter=reporter,
                time=time,
            )
        )
        self._session.flush()


class Granted(NamedTuple):
    """What one peer was granted."""

    peer_id: str
    tokens: int
    flops: int
    rounds: int


class CreditTable:
    def __init__(self, session: Session) -> None:
        self._session = session

    def has(self, peer_id: str) -> bool:
        """Whether a peer was ever granted credit."""
        return self._session.scalars(select(CreditRow.leaf).where(CreditRow.peer_id == peer_id)).first() is not None

    def leaves_of(self, peer_id: str, after_round: int, most: int) -> Sequence[int]:
        """The leaves of a peer's credit for the rounds after this one, oldest first."""
        wanted = (
            select(CreditRow.leaf)
            .where(CreditRow.peer_id == peer_id, CreditRow.round > after_round)
            .order_by(CreditRow.round)
            .limit(most)
        )
        return self._session.scalars(wanted).all()

    def in_leaves(self, first: int, end: int) -> list[Granted]:
        """What each peer was granted in the leaves from `first` on, up to `end`, which is not among them."""
        wanted = _WORK.where(CreditRow.leaf >= first, CreditRow.leaf < end)
        return [Granted(*row) for row in self._session.execute(wanted)]

    def until(self, round: int) -> list[Granted]:
        """What each peer was granted from genesis up to this round, by peer id."""
        wanted = _WORK.where(CreditRow.round <= round).order_by(CreditRow.peer_id)
        return [Granted(*row) for row in self._session.execute(wanted)]

    def grant(self, leaf: int, entry: CreditEntry) -> None:
        """Note the credit that a leaf of the log stands for."""
        self._session.add(
            CreditRow(
                leaf=leaf,
                run=entry.run,
                round=entry.round,
                peer_id=entry.peer_id,
                tokens=entry.tokens,
                flops=entry.flops,
            )
        )


class ClaimTable:
    def __init__(self, session: Session) -> None:
        self._session = session

    def hold(self, leaf: int, entry: ClaimEntry) -> None:
        """Note the claim that a leaf of the log stands for."""
        row = ClaimRow(leaf=leaf, round=entry.round, peer_id=entry.peer_id, tokens=entry.tokens, fate=PENDING)
        self._session.add(row)
        self._session.flush()

    def pending_until(self, round: int) -> Sequence[int]:
        """The leaves of what is pending from rounds up to this one and waits for no audit, in order."""
        drawn = aliased(ClaimRow)
        waits = exists().where(drawn.fate == DRAWN, drawn.peer_id == ClaimRow.peer_id, drawn.round <= ClaimRow.round)
        wanted = select(ClaimRow.leaf).where(ClaimRow.fate == PENDING, ClaimRow.round <= round, ~waits)
        return self._session.scalars(wanted.order_by(ClaimRow.leaf)).all()

    def grant(self, leaf: int) -> None:
        """It is credit now."""
        self._session.execute(update(ClaimRow).where(ClaimRow.leaf == leaf).values(fate="granted"))

    def void(self, peer_id: str) -> int:
        """Nothing that a peer has on hold will be credit; returns how many tokens that are."""
        own = (ClaimRow.peer_id == peer_id, ClaimRow.fate.in_(ON_HOLD))
        tokens = self._session.scalar(select(func.sum(ClaimRow.tokens)).where(*own)) or 0
        self._session.execute(update(ClaimRow).where(*own).values(fate="void"))
        return tokens

    def pending(self) -> dict[str, int]:
        """Peer id -> tokens that are on hold."""
        wanted = select(ClaimRow.peer_id, func.sum(ClaimRow.tokens)).where(ClaimRow.fate.in_(ON_HOLD))
        return {row[0]: row[1] for row in self._session.execute(wanted.group_by(ClaimRow.peer_id))}

    def in_lot(self, round: int) -> list[tuple[ClaimRow, int]]:
        """What is pending from one round, and how many claims its peer had before."""
        rows = self._session.scalars(
            select(ClaimRow).where(ClaimRow.fate == PENDING, ClaimRow.round == round).order_by(ClaimRow.leaf)
        )
        return [(row, self._count(ClaimRow.peer_id == row.peer_id, ClaimRow.round < round)) for row in rows]

    def drawn(self, peer_id: str | None = None) -> Sequence[ClaimRow]:
        """What is drawn and has no audit yet, of one peer or of all, the oldest first."""
        wanted = select(ClaimRow).where(ClaimRow.fate == DRAWN).order_by(ClaimRow.leaf)
        return self._session.scalars(wanted if peer_id is None else wanted.where(ClaimRow.peer_id == peer_id)).all()

    def later(self, row: ClaimRow) -> int:
        """How many claims its peer has had since."""
        return self._count(ClaimRow.peer_id == row.peer_id, ClaimRow.round > row.round)

    def rounds_between(self, row: ClaimRow, round: int) -> Sequence[int]:
        """The rounds after one and before a claim's in which its peer had claims, too."""
        own = (ClaimRow.peer_id == row.peer_id, ClaimRow.round > round, ClaimRow.round < row.round)
        return self._session.scalars(select(ClaimRow.round).where(*own).order_by(ClaimRow.round)).all()

    def _count(self, *which: ColumnElement[bool]) -> int:
        return self._session.scalar(select(func.count(ClaimRow.leaf)).where(*which)) or 0


class AuditTable:
    def __init__(self, session: Session) -> None:
        self._session = session

    def enter(self, leaf: int, entry: AuditEntry) -> None:
        """Note the audit that a leaf of the log stands for."""
        self._session.add(AuditRow(leaf=leaf, round=entry.round, peer_id=entry.peer_id, verdict=entry.verdict))
        self._session.flush()

    def of(self, peer_id: str) -> dict[str, int]:
        """Verdict -> how many of a peer's claims."""
        wanted = select(AuditRow.verdict, func.count(AuditRow.leaf)).where(AuditRow.peer_id == peer_id)
        return {row[0]: row[1] for row in self._session.execute(wanted.group_by(AuditRow.verdict))}


PENDING, DRAWN = "pending", "drawn"  # of ClaimRow.fate
ON_HOLD = (PENDING, DRAWN)
_WORK = select(
    CreditRow.peer_id, func.sum(CreditRow.tokens), func.sum(CreditRow.flops), func.count(CreditRow.leaf)
).group_by(CreditRow.peer_id)
