"""What tests of `potluck verify` ask, and a folder of receipts to ask it of."""

from __future__ import annotations

from pathlib import Path

from protocol.ledger_entry import CreditEntry
from protocol.report import Report
from protocol.verify import verify_checkpoint, verify_path
from tests.kit.builders import Run


def verify_at(run: Run, path: Path | str) -> Report:
    return verify_path(Path(path), trusted=run.trusted)


def write_receipts(run: Run, folder: Path) -> None:
    """The first peer's."""
    folder.mkdir()
    for index, entry in enumerate(run.entries):
        if isinstance(entry, CreditEntry) and entry.peer_id == run.peers[0].peer_id:
            (folder / f"round-{entry.round:06d}.json").write_bytes(run.receipt(index))


def verify_step(run: Run, number: int = 3, **options) -> Report:
    return verify_checkpoint(
        run.step(number), **({"trusted": run.trusted, "checkpoints_dir": run.checkpoints} | options)
    )


def status(report: Report, name: str) -> str:
    return next(str(check.status) for check in report.checks if check.name == name)
