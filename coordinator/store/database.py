"""Opens a run's database, one SQLite file in the run folder, and gives out transactions of it.

SQLite's write-ahead log with full synchronisation makes each transaction survive a kill or a power cut whole or not at
all. What is asked of it stands in the modules beside this one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from coordinator.store.log import LogTable
from coordinator.store.people import BanTable, BeginnersTable, InviteTable, MemberTable
from coordinator.store.published import CheckpointTable, EvaluationTable
from coordinator.store.rounds import AuditTable, ClaimTable, CreditTable, RoundTable
from coordinator.store.rows import (
    CHECK,
    GET_VERSION,
    NAME_REPORTERS,
    READER,
    SCHEMA_VERSION,
    SET_VERSION,
    WRITER,
    Base,
)
from coordinator.store.waiting import ForkTable, WaitingTable
from protocol.disk import disk_error, is_full
from protocol.errors import InputError, NetworkError

BUSY_TIMEOUT_S = 10.0
WRITE_TIMEOUT_S = 30.0
RESTORE = "restore the run folder from a backup"
StoreError = SQLAlchemyError  # whatever the database raises
StoreAway = OperationalError  # of these: it cannot be used now, since it is busy or the disk is full


class Tables:
    """The tables, within one transaction."""

    def __init__(self, session: Session) -> None:
        self.log = LogTable(session)
        self.rounds, self.credits, self.claims = RoundTable(session), CreditTable(session), ClaimTable(session)
        self.audits = AuditTable(session)
        self.waiting, self.forks = WaitingTable(session), ForkTable(session)
        self.members, self.bans, self.beginners = MemberTable(session), BanTable(session), BeginnersTable(session)
        self.invites = InviteTable(session)
        self.checkpoints, self.evaluations = CheckpointTable(session), EvaluationTable(session)


class Store:
    """One database; safe to use from several threads.

    Args:
        path: of the file, which is made if need be.

    Raises:
        InputError: not a database, damaged, or written by a newer Potluck; or the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self._writing = threading.Lock()
        self._readers, self._writers = _engine(path, query_only=True), _engine(path, query_only=False)
        try:
            _prepare(self._writers, path)
        except DatabaseError as error:
            self.close()
            if is_full(error, path):
                raise disk_error(path, error) from error
            raise InputError(f"{path}: not a database that can be read: {error.orig}", RESTORE) from error
        except InputError:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file; harmless twice."""
        self._readers.dispose()
        self._writers.dispose()

    @contextmanager
    def reading(self) -> Iterator[Tables]:
        """The tables, to ask. Raises: StoreError: also when something is written."""
        with Session(self._readers) as session:
            yield Tables(session)
            session.flush()  # what was meant to be written fails, rather than being lost

    @contextmanager
    def writing(self) -> Iterator[Tables]:
        """One transaction, which is kept when it ends well.

        Raises:
            NetworkError: another one did not end in time.
            StoreError: it could not be written, and is not kept.
        """
        if not self._writing.acquire(timeout=WRITE_TIMEOUT_S):
            raise NetworkError(f"the ledger was busy for {WRITE_TIMEOUT_S:.0f} s", "try again")
        try:
            with Session(self._writers, expire_on_commit=False) as session, session.begin():
                yield Tables(session)
        finally:
            self._writing.release()


def _engine(path: Path, *, query_only: bool) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)), connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False}
    )

    def configure(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        for statement in READER if query_only else WRITER:
            cursor.execute(statement)
        cursor.close()

    event.listen(engine, "connect", configure)
    return engine


def _prepare(engine: Engine, path: Path) -> None:
    with engine.begin() as connection:
        version = connection.exec_driver_sql(GET_VERSION).scalar_one()
        if version not in (0, SCHEMA_VERSION):
            raise InputError(f"{path}: expected schema {SCHEMA_VERSION}, got {version}", "use a newer Potluck")
        damage = connection.exec_driver_sql(CHECK).scalar_one()
        if damage != "ok":
            raise InputError(f"{path}: the database is damaged: {damage}", RESTORE)
        Base.metadata.create_all(connection)
        connection.exec_driver_sql(NAME_REPORTERS)
        connection.exec_driver_sql(SET_VERSION)
