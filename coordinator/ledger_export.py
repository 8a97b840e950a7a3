"""A run's whole ledger as one file (`protocol.ledger_file`): `potluck ledger export`, and for members that fetch it."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from coordinator.run_folder import RunFolder
from coordinator.shelf import FileShelf, ShelfFile
from coordinator.store.database import Store, Tables
from protocol import canonical, disk, files
from protocol.errors import InputError
from protocol.ledger_file import first_line, head_line
from protocol.run_card import MAX_RUN_CARD_BYTES

COPY_S = 60.0  # that a copy for members is good for


class Written(NamedTuple):
    """What came of it."""

    entries: int
    sha256: str
    size_bytes: int


def export(folder: Path, out: Path) -> int:
    """Write the ledger of a run's folder, also while its host runs; returns how many entries it has.

    Raises:
        InputError: not a run's folder, or the file cannot be written.
    """
    run = RunFolder(folder)
    if not run.store.is_file() or not run.run_card.is_file():
        raise InputError(f"{folder} is not a run's folder", "give the folder that `potluck host` keeps, as runs/NAME")
    card = files.read_bounded(run.run_card, MAX_RUN_CARD_BYTES)
    store = Store(run.store)
    try:
        return _write(store, card, (run.path / "coordinator.pub").read_text(), out).entries
    finally:
        store.close()


class LedgerCopies:
    """The copy that members fetch: made when one asks, and not again for a minute.

    Args:
        folder: where it lies; made when it is not there.
        card_bytes: the signed run card.
        root_public_pem: the root key.
        shelf: offers it.
    """

    def __init__(self, folder: Path, store: Store, card_bytes: bytes, root_public_pem: bytes, shelf: FileShelf) -> None:
        self._folder, self._store, self._card, self._shelf = folder, store, card_bytes, shelf
        self._root = root_public_pem.decode()
        self._lock = threading.Lock()
        self._made: list[tuple[float, Path, ShelfFile]] = []  # the newest, and the one before it

    def newest(self) -> ShelfFile:
        """Raises: InputError: the disk is full."""
        with self._lock:
            now = time.monotonic()
            if not self._made or now - self._made[-1][0] >= COPY_S:
                self._make(now)
            return self._made[-1][2]

    def _make(self, now: float) -> None:
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"ledger-{os.urandom(4).hex()}.jsonl"
        written = _write(self._store, self._card, self._root, path)
        self._shelf.add_file(path, written.sha256, written.size_bytes)
        self._made.append((now, path, ShelfFile("ledger.jsonl", written.sha256, written.size_bytes)))
        for _, old, file in self._made[:-2]:  # the one before it may still be on its way to somebody
            if file.sha256 not in {kept[2].sha256 for kept in self._made[-2:]}:
                self._shelf.remove(file.sha256)
            old.unlink(missing_ok=True)
        del self._made[:-2]
        for stray in set(self._folder.glob("ledger-*.jsonl")) - {path for _, path, _ in self._made}:
            stray.unlink(missing_ok=True)


def _write(store: Store, card_bytes: bytes, root: str, out: Path) -> Written:
    card = canonical.loads(card_bytes, max_bytes=MAX_RUN_CARD_BYTES)
    part = out.with_name(f".{out.name}.potluck.new")
    hasher, entries, size_bytes = hashlib.sha256(), 0, 0
    try:
        with disk.writing(out.parent), store.reading() as tables:
            with part.open("wb") as file:
                for line in ledger_lines(tables, card, root):
                    file.write(line)
                    hasher.update(line)
                    size_bytes += len(line)
                    entries += not line.startswith((b'{"head":', b'{"ledger":'))
                file.flush()
                os.fsync(file.fileno())
            part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return Written(entries, hasher.hexdigest(), size_bytes)


def ledger_lines(tables: Tables, card: dict[str, Any], root: str) -> Iterator[bytes]:
    """Each head after the last entry that it is of."""
    yield first_line(card, root)
    leaves = tables.log.leaves()
    for size, text in tables.log.history():
        for index, data in leaves:
            yield data + b"\n"
            if index + 1 == size:
                break
        yield head_line(text)
