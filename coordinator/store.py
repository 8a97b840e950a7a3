"""The coordinator's database: one SQLite file in the run folder. `ledger`, `reports`, `admission` and `publisher` use it.

Every write goes through one `Ledger.writing()` transaction; SQLite's write-ahead log with full synchronisation makes
each of them survive a kill or a power cut whole or not at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, ForeignKey, UniqueConstraint, create_engine, event
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from protocol.disk import disk_error, is_full
from protocol.errors import InputError

SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 10.0


class Base(DeclarativeBase):
    """All tables."""


class LeafRow(Base):
    """One entry of the ledger."""

    __tablename__ = "leaves"
    index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[bytes]  # canonical JSON, protocol/ledger_entry.py


class HeadRow(Base):
    """One ledger head that was signed."""

    __tablename__ = "heads"
    size: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    note: Mapped[str]  # C2SP signed note
    time: Mapped[float]  # Unix seconds


class RoundRow(Base):
    """One committed round on the run's branch."""

    __tablename__ = "rounds"
    round: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    base: Mapped[str]
    state: Mapped[str]
    group: Mapped[str]  # group digest
    tokens: Mapped[int]  # agreed, in this round
    agreement: Mapped[bytes]  # canonical JSON, protocol/agreement.py
    reporter: Mapped[str]  # peer id
    time: Mapped[float]


class CreditRow(Base):
    """Credit granted to one peer for one round: never twice."""

    __tablename__ = "credits"
    __table_args__ = (UniqueConstraint("run", "round", "peer_id"),)
    leaf: Mapped[int] = mapped_column(ForeignKey("leaves.index"), primary_key=True, autoincrement=False)
    run: Mapped[str]
    round: Mapped[int] = mapped_column(ForeignKey("rounds.round"), index=True)
    peer_id: Mapped[str] = mapped_column(index=True)
    tokens: Mapped[int]
    flops: Mapped[int]


class BeginnersRow(Base):
    """The word on whose round 1 is the run's: one row, never changed."""

    __tablename__ = "beginners"
    run: Mapped[str] = mapped_column(primary_key=True)
    word: Mapped[bytes]  # signed, protocol/beginners.py


class PendingRow(Base):
    """A checked agreement that cannot be decided yet."""

    __tablename__ = "pending"
    digest: Mapped[str] = mapped_column(primary_key=True)  # SHA-256 of the agreement's bytes
    round: Mapped[int] = mapped_column(index=True)
    base: Mapped[str]
    agreement: Mapped[bytes]
    reporter: Mapped[str] = mapped_column(index=True)
    time: Mapped[float]


class PendingByRow(Base):
    """Who reported what waits: it is kept as long as one of them may have it kept."""

    __tablename__ = "pending_by"
    reporter: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(primary_key=True, index=True)
    round: Mapped[int]
    size: Mapped[int]  # bytes


class ForkRow(Base):
    """An agreement on another state than the one in the ledger."""

    __tablename__ = "forks"
    digest: Mapped[str] = mapped_column(primary_key=True)
    round: Mapped[int]
    state: Mapped[str]
    tokens: Mapped[int]
    reporter: Mapped[str]
    time: Mapped[float]


class MemberRow(Base):
    """One identity that was admitted."""

    __tablename__ = "members"
    peer_id: Mapped[str] = mapped_column(primary_key=True)
    enrolled: Mapped[float]  # Unix seconds
    renewed: Mapped[float]


class CheckpointRow(Base):
    """A checkpoint that was decided: published, or held back."""

    __tablename__ = "checkpoints"
    round: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    state: Mapped[str]
    held_out_loss: Mapped[float | None]
    published: Mapped[bool]
    reason: Mapped[str]  # why it was held back
    folder: Mapped[str]  # relative to the run folder
    payload: Mapped[str]  # payload digest
    leaf: Mapped[int | None] = mapped_column(ForeignKey("leaves.index"))
    time: Mapped[float]


class EvaluationRow(Base):
    """The held-out loss of the state after one round."""

    __tablename__ = "evaluations"
    round: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    held_out_loss: Mapped[float]
    tokens: Mapped[int]  # agreed, of all rounds so far
    time: Mapped[float]


def open_store(path: Path) -> Engine:
    """Open the database, making it if need be.

    Raises:
        InputError: not a database, damaged, or written by a newer Potluck; or the disk is full.
    """
    engine = create_engine(
        URL.create("sqlite", database=str(path)), connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False}
    )
    event.listen(engine, "connect", _configure)
    try:
        with engine.begin() as connection:
            version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
            if version not in (0, SCHEMA_VERSION):
                raise InputError(f"{path}: expected schema {SCHEMA_VERSION}, got {version}", "use a newer Potluck")
            damage = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
            if damage != "ok":
                raise InputError(f"{path}: the database is damaged: {damage}", _RESTORE)
            Base.metadata.create_all(connection)
            connection.exec_driver_sql(_NAME_REPORTERS)
            connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")
    except DatabaseError as error:
        engine.dispose()
        if is_full(error, path):
            raise disk_error(path, error) from error
        raise InputError(f"{path}: not a database that can be read: {error.orig}", _RESTORE) from error
    except InputError:
        engine.dispose()
        raise
    return engine


# stores that were made before reporters had a table of their own
_NAME_REPORTERS = """
INSERT INTO pending_by (reporter, digest, round, size)
SELECT reporter, digest, round, LENGTH(agreement) FROM pending
WHERE digest NOT IN (SELECT digest FROM pending_by)
"""
_RESTORE = "restore the run folder from a backup"


def _configure(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
