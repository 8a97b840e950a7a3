"""`potluck ledger export`: a run's whole ledger as one file (`protocol.ledger_file`), also while its host runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coordinator.run_folder import RunFolder
from coordinator.store.database import Store, Tables
from protocol import canonical, disk, files
from protocol.errors import InputError
from protocol.ledger_file import first_line, head_line
from protocol.run_card import MAX_RUN_CARD_BYTES


def export(folder: Path, out: Path) -> int:
    """Write the ledger of a run's folder; returns how many entries it has.

    Raises:
        InputError: not a run's folder, or the file cannot be written.
    """
    run = RunFolder(folder)
    if not run.store.is_file() or not run.run_card.is_file():
        raise InputError(f"{folder} is not a run's folder", "give the folder that `potluck host` keeps, as runs/NAME")
    card = canonical.loads(files.read_bounded(run.run_card, MAX_RUN_CARD_BYTES), max_bytes=MAX_RUN_CARD_BYTES)
    root = (run.path / "coordinator.pub").read_text()
    part = out.with_name(f".{out.name}.potluck.new")
    store = Store(run.store)
    try:
        with disk.writing(out.parent), store.reading() as tables:
            with part.open("wb") as file:
                entries = sum(_written(file, line) for line in ledger_lines(tables, card, root))
                file.flush()
                os.fsync(file.fileno())
            part.replace(out)
    finally:
        store.close()
        part.unlink(missing_ok=True)
    return entries


def _written(file: Any, line: bytes) -> bool:
    """Whether it is an entry."""
    file.write(line)
    return line.startswith(b"{") and not line.startswith((b'{"head":', b'{"ledger":'))


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
