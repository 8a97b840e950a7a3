"""What a peer keeps on disk for one run, so that it comes back after a restart where it left off.

<home>/identity                      the Ed25519 key, shared by all runs
<home>/runs/<run digest, 16 hex>/
    run-card.json root.pem           as the coordinator gave them, checked against the invite
    certificate                      the newest membership certificate
    addresses.json                   where other members were last seen
    step-000000/ base-model/ data/   fetched by digest
    states/                          the newest committed states, see `peer.disk.kept_states`
    ballots.json                     promises and votes of the round in hand
    rounds.jsonl                     the newest rounds, for the owner
    optimizer.safetensors            what the inner optimizer remembers
    micro-batch.json                 how many sequences a pass takes on this card
    outbox/ receipts/
    lock                             held while a peer uses the folder; says which process
    damaged/                         what could not be read, kept for whoever wants to look
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from peer.disk.round_log import RoundLog
from peer.disk.run_lock import RunLock
from protocol import canonical
from protocol.canonical import sha256_hex
from protocol.disk import disk_error, set_aside, write_file
from protocol.errors import FormatError, InputError

logger = logging.getLogger(__name__)

MAX_BALLOTS_BYTES = 65 << 20
WARN_AGAIN_S = 60.0
T = TypeVar("T")
_SEAL_BYTES = len(b'{"sha256":"","value":') + 64


class PeerFolder:
    """One run's folder; locked while this process uses it."""

    def __init__(self, home: Path, run: str) -> None:
        self.path = home / "runs" / run[:16]
        self._warned = -WARN_AGAIN_S
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(self.path, error) from error
        self._make_way("lock")
        self._lock = RunLock(self.path / "lock")

    def close(self) -> None:
        self._lock.close()

    def set_aside(self, name: str, why: str) -> None:
        """Move a damaged file into `damaged/`. Raises: InputError: it cannot be moved."""
        kept = set_aside(self.path / name, self.path / "damaged")
        logger.warning("%s is damaged (%s); it is kept as %s", name, why, kept)

    def _make_way(self, name: str) -> None:
        if (self.path / name).is_dir():
            self.set_aside(name, "a folder, not a file")

    # ---- small files -------------------------------------------------------------------------------------------------

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, whole or not at all. Raises: InputError: the disk is full."""
        self._make_way(name)
        write_file(self.path / name, data, private=True)

    def read(self, name: str, max_bytes: int = 1 << 20) -> bytes | None:
        """Read a small file; None when it is not there. Raises: InputError: it cannot be read."""
        self._make_way(name)
        try:
            with (self.path / name).open("rb") as file:
                return file.read(max_bytes)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(
                f"{self.path / name}: cannot be read: {error.strerror}", "check the disk, and the file's owner"
            ) from error

    def read_addresses(self) -> list[str]:
        data = self.read("addresses.json")
        try:
            value = canonical.loads(data, max_bytes=1 << 20) if data is not None else []
            if not isinstance(value, list):
                raise FormatError("expected a list")
        except FormatError as error:
            self.set_aside("addresses.json", error.message)
            return []
        return [address for address in value if isinstance(address, str)]

    def write_addresses(self, addresses: list[str]) -> None:
        self.write("addresses.json", json.dumps(addresses).encode())

    def ballots(self, read: Callable[[bytes], T]) -> T | None:
        """The promises and votes that were on disk, as `read` makes them of their bytes; None: there were none.

        Raises:
            InputError: the file is damaged.
        """
        path = self.path / "ballots.json"
        try:
            if path.is_dir():
                raise FormatError("a folder, not a file")
            data = self.read(path.name, MAX_BALLOTS_BYTES)
            return read(unseal(data)) if data is not None else None
        except FormatError as error:
            raise InputError(
                f"{path} is damaged: {error.message}",
                "it says what this peer voted in the round in hand, so that it never votes twice. Once the others have "
                "made a round without it, or if there are no others, move the file away and start again",
            ) from error

    def save_ballots(self, data: bytes) -> None:
        """Keep promises and votes; they are safe when this returns. Raises: InputError: the disk is full."""
        try:
            write_file(self.path / "ballots.json", seal(data), private=True)
        except InputError as error:
            now = time.monotonic()
            if now - self._warned >= WARN_AGAIN_S:
                self._warned = now
                logger.warning("no vote can be kept, so this peer takes part in no round: %s", error.message)
            raise

    def round_log(self) -> RoundLog:
        """The rounds that its owner can read of."""
        return RoundLog(self.place("rounds.jsonl"))

    def place(self, name: str) -> Path:
        """Where a file of this name belongs; nothing else is there when this returns."""
        self._make_way(name)
        return self.path / name


def seal(data: bytes) -> bytes:
    """JSON with its own SHA-256, so that a bit that flipped on the disk is noticed.

    >>> unseal(seal(b'{"a":1}')), seal(b'{"a":1}')[:20]
    (b'{"a":1}', b'{"sha256":"015abd7f5')
    """
    return b'{"sha256":"' + sha256_hex(data).encode() + b'","value":' + data + b"}"


def unseal(data: bytes) -> bytes:
    """What `seal` was given. Raises: FormatError: these are not its bytes any more."""
    value = data[_SEAL_BYTES:-1]
    if data != seal(value):
        raise FormatError("the bytes are not those that were written")
    return value
