"""What is stored: one class for each table, and the SQL that SQLAlchemy has no words for.

A row that was read is plain data; its transaction may be over.
"""

from __future__ import annotations

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA_VERSION = 1
GET_VERSION, SET_VERSION = "PRAGMA user_version", f"PRAGMA user_version = {SCHEMA_VERSION}"
CHECK = "PRAGMA quick_check(1)"
READER = ("PRAGMA query_only = ON", "PRAGMA foreign_keys = ON")  # at each new connection
WRITER = ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", "PRAGMA foreign_keys = ON")


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


class ClaimRow(Base):
    """Agreed work of one peer in one round, from its claim on."""

    __tablename__ = "claims"
    __table_args__ = (UniqueConstraint("round", "peer_id"),)
    leaf: Mapped[int] = mapped_column(ForeignKey("leaves.index"), primary_key=True, autoincrement=False)
    round: Mapped[int] = mapped_column(ForeignKey("rounds.round"))
    peer_id: Mapped[str]
    tokens: Mapped[int]
    fate: Mapped[str] = mapped_column(index=True)  # pending, drawn, granted, void


class AuditRow(Base):
    """What came of a claim that was drawn."""

    __tablename__ = "audits"
    leaf: Mapped[int] = mapped_column(ForeignKey("leaves.index"), primary_key=True, autoincrement=False)
    round: Mapped[int]
    peer_id: Mapped[str] = mapped_column(index=True)
    verdict: Mapped[str]


class BanRow(Base):
    """One ban, or the end of one."""

    __tablename__ = "bans"
    leaf: Mapped[int] = mapped_column(ForeignKey("leaves.index"), primary_key=True, autoincrement=False)
    peer_id: Mapped[str]
    begins: Mapped[bool]


class BeginnersRow(Base):
    """The word on whose round 1 is the run's: one row, never changed."""

    __tablename__ = "beginners"
    run: Mapped[str] = mapped_column(primary_key=True)
    word: Mapped[bytes]  # signed, protocol/beginners.py


class EpochRow(Base):
    """The host's words on who decides after a round from which half of the weight is gone: never changed."""

    __tablename__ = "epochs"
    number: Mapped[int] = mapped_column(primary_key=True)
    word: Mapped[bytes]  # signed, protocol/epoch.py


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


class InviteRow(Base):
    """A code of its own, for some people."""

    __tablename__ = "invites"
    digest: Mapped[str] = mapped_column(primary_key=True)  # SHA-256 of the code
    note: Mapped[str] = mapped_column(unique=True)
    most: Mapped[int]  # may come in by it
    uses: Mapped[int]  # have
    ends: Mapped[float]  # Unix seconds
    revoked: Mapped[bool]


class NewcomerRow(Base):
    """How one identity came in, or that it waits for the host's word."""

    __tablename__ = "newcomers"
    peer_id: Mapped[str] = mapped_column(primary_key=True)
    invite: Mapped[str | None] = mapped_column(ForeignKey("invites.digest"))  # None: the run's own, or none
    asked: Mapped[float]  # Unix seconds
    approved: Mapped[bool]


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


# stores that were made before reporters had a table of their own
NAME_REPORTERS = """
INSERT INTO pending_by (reporter, digest, round, size)
SELECT reporter, digest, round, LENGTH(agreement) FROM pending
WHERE digest NOT IN (SELECT digest FROM pending_by)
"""
