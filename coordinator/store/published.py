"""The checkpoints that were decided, and how states did on the held-out split."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from coordinator.store.rows import CheckpointRow, EvaluationRow


class CheckpointTable:
    def __init__(self, session: Session) -> None:
        self._session = session

    def all(self) -> Sequence[CheckpointRow]:
        """Those that were published or held back, by round."""
        return self._session.scalars(select(CheckpointRow).order_by(CheckpointRow.round)).all()

    def newest_decided(self) -> int:
        """The newest round whose checkpoint was decided; 0: genesis, or none."""
        return self._session.scalar(select(func.max(CheckpointRow.round))) or 0

    def is_decided(self, round: int) -> bool:
        """Whether the checkpoint of a round was published or held back."""
        return bool(self._session.scalar(select(exists().where(CheckpointRow.round == round))))

    def published(self, round: int | None = None, most: int | None = None) -> Sequence[CheckpointRow]:
        """Those that were published, the newest first.

        Args:
            round: this one alone.
            most: no more than so many.
        """
        wanted = select(CheckpointRow).where(CheckpointRow.published).order_by(CheckpointRow.round.desc()).limit(most)
        return self._session.scalars(wanted if round is None else wanted.where(CheckpointRow.round == round)).all()

    def decide(self, row: CheckpointRow) -> None:
        """Enter a checkpoint that is published now, or held back."""
        self._session.add(row)


class EvaluationTable:
    def __init__(self, session: Session) -> None:
        self._session = session

    def all(self) -> Sequence[EvaluationRow]:
        """By round."""
        return self._session.scalars(select(EvaluationRow).order_by(EvaluationRow.round)).all()

    def newest(self, most: int) -> Sequence[EvaluationRow]:
        """The newest so many, by round."""
        wanted = select(EvaluationRow).order_by(EvaluationRow.round.desc()).limit(most)
        return self._session.scalars(wanted).all()[::-1]

    def loss_of(self, round: int) -> float | None:
        """The held-out loss of a round; None: it was not evaluated."""
        return self._session.scalars(select(EvaluationRow.held_out_loss).where(EvaluationRow.round == round)).first()

    def put(self, row: EvaluationRow) -> None:
        """Enter an evaluation, in place of an earlier one of the same round."""
        self._session.merge(row)
