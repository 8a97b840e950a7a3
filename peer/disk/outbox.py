"""The outbox: committed rounds that the coordinator has not heard of yet, on disk until it has.

The training loop puts each agreement in; a background task drains it when the coordinator can be reached. One file per
report, so a kill or a power cut loses none and a damaged one harms no other.

    outbox/000000012-<first 16 hex digits of the agreement's SHA-256>.json     waiting, oldest round first
    outbox/refused/<same name>, <same name>.reason                             the answer was a final no
    outbox/damaged/<same name>                                                 not what was written

    >>> import tempfile
    >>> outbox = Outbox(Path(tempfile.mkdtemp()))
    >>> outbox.put(12, b'{"claims":[]}'); outbox.put(12, b'{"claims":[]}')
    >>> len(outbox)
    1
"""

from __future__ import annotations

import logging
import re
import threading
from pathlib import Path
from typing import Protocol

from protocol.agreement import MAX_AGREEMENT_BYTES
from protocol.canonical import sha256_hex
from protocol.disk import disk_error, set_aside, write_file
from protocol.errors import FormatError
from protocol.rpc import ReportAnswer

logger = logging.getLogger(__name__)

_NAME = re.compile(r"(\d{9})-([0-9a-f]{16})\.json")


class Reporter(Protocol):
    """What the outbox needs of a `CoordinatorClient`."""

    def report(self, certificate: str, agreement: bytes) -> ReportAnswer: ...


class Outbox:
    """A durable queue of agreements; safe to use from several threads of one process.

    Args:
        folder: made when it is not there.

    Raises:
        InputError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._draining = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob("*.new"):
                if leftover.is_file():
                    leftover.unlink()
        except OSError as error:
            raise disk_error(folder, error) from error

    def __len__(self) -> int:
        return len(self._waiting())

    def put(self, round_number: int, agreement: bytes) -> None:
        """Keep a report until it is answered; putting the same one twice keeps it once.

        Args:
            agreement: `Agreement.to_bytes()`.

        Raises:
            FormatError: longer than an agreement may be.
            InputError: the disk is full or the folder cannot be written.
        """
        if len(agreement) > MAX_AGREEMENT_BYTES:
            raise FormatError(f"an agreement has at most {MAX_AGREEMENT_BYTES} bytes, got {len(agreement)}")
        path = self._folder / f"{round_number:09d}-{sha256_hex(agreement)[:16]}.json"
        if path.exists():
            return
        write_file(path, agreement)

    def drain(self, client: Reporter, certificate: str) -> int:
        """Send what waits, oldest round first; returns how many were answered for good.

        A report leaves the outbox only when it was accepted or finally refused. Stops at the first that cannot be sent.

        Raises:
            CoordinatorAway: what is left waits for the next time.
            RefusedError: the certificate does not hold: enroll again; nothing is lost.
        """
        sent = 0
        with self._draining:
            for path in self._waiting():
                agreement = self._read(path)
                if agreement is None:
                    continue
                answer = client.report(certificate, agreement)
                if answer.accepted:
                    path.unlink(missing_ok=True)
                else:
                    logger.warning("%s was refused: %s", path.name, answer.reason)
                    self._set_aside(path, "refused", answer.reason)
                sent += 1
        return sent

    def _waiting(self) -> list[Path]:
        return sorted(path for path in self._folder.iterdir() if _NAME.fullmatch(path.name))

    def _read(self, path: Path) -> bytes | None:
        """The agreement in a file; None, and the file set aside, if it is not what was put in."""
        match = _NAME.fullmatch(path.name)
        assert match is not None, "only such names wait"
        try:
            with path.open("rb") as file:
                data = file.read(MAX_AGREEMENT_BYTES + 1)
        except FileNotFoundError:
            return None
        except IsADirectoryError:
            data = b""
        if sha256_hex(data)[:16] == match[2]:
            return data
        logger.warning("%s is damaged and cannot be reported; it is kept in %s", path.name, self._folder / "damaged")
        self._set_aside(path, "damaged", "")
        return None

    def _set_aside(self, path: Path, where: str, reason: str) -> None:
        folder = self._folder / where
        if reason:
            write_file(folder / f"{path.name}.reason", reason.encode() + b"\n")
        set_aside(path, folder)
