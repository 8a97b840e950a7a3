"""Hostile folders and receipts: each is refused, for its own reason; the stock tool's verdict stands beside ours.

docs/hostile-checkpoints.md holds what each case was answered. After a change of words, write it anew:

    python -m tests.test_hostile_checkpoints > docs/hostile-checkpoints.md
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from lab import REPOSITORY
from protocol.keys import public_pem
from protocol.report import Report
from protocol.verify import verify_checkpoint, verify_path, verify_receipt
from tests.kit.builders import Run, build_run, fixed_root_key
from tests.kit.hostile import CHECKPOINTS, RECEIPTS, Case

TABLE = REPOSITORY / "docs" / "hostile-checkpoints.md"
INTRO = """# What hostile checkpoints and receipts are answered

Each row is a test: a copy of a small valid run was changed as the first column says, by someone who can what the second
says, and then checked with `potluck verify` (given the root key's fingerprint and the folder of checkpoints) and with
the stock command `model_signing verify key model --signature model.sig --public_key coordinator.pub
--no-ignore-git-paths`. *anyone* has the folder and no key; *another key* signs with a key of their own; *the host*
holds the run's own keys and is dishonest or broken. The stock tool checks files against a signature and nothing else:
it cannot know what the members agreed on, which ledger there is, or what a safetensors file may hold.

*refused* is exit code 1: something does not hold. *incomplete* is exit code 3: nothing was found wrong, and something
that the checkpoint says there is, an ancestor or the members' agreement of a round, was not at hand. Neither is a yes.

`tests/test_hostile_checkpoints.py` holds this page to what the code says; `python -m tests.test_hostile_checkpoints`
prints it.
"""


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return build_run(tmp_path_factory.mktemp("valid"))


def answer_checkpoint(case: Case, valid: Run, folder: Path) -> tuple[Report, str]:
    """Our report on the changed copy, and the stock command's verdict."""
    run = valid.copy(folder)
    shutil.copytree(valid.checkpoints, run.checkpoints, symlinks=True)
    step = case.make(run, run.step(3)) or run.step(3)
    report = verify_path(
        step, trusted=valid.trusted, keys=[fixed_root_key(7).public_key], checkpoints_dir=run.checkpoints
    )
    return report, stock_verdict(step, valid)


def answer_receipt(case: Case, valid: Run, folder: Path) -> Report:
    run = valid.copy(folder)
    path = folder / "receipt.json"
    path.write_bytes(run.receipt(2))
    case.make(run, path)
    return verify_receipt(path, valid.trusted)


def stock_arguments(step: Path, valid: Run) -> list[str]:
    key = valid.folder / "coordinator.pub"
    key.write_bytes(public_pem(valid.root.public_key))
    arguments = ["verify", "key", str(step / "model"), "--signature", str(step / "model.sig")]
    return [*arguments, "--public_key", str(key), "--no-ignore-git-paths"]


def stock_verdict(step: Path, valid: Run) -> str:
    """What the stock command says, run in this process."""
    from model_signing._cli import main

    return "accepts" if CliRunner().invoke(main, stock_arguments(step, valid)).exit_code == 0 else "refuses"


def words(verdict: str) -> str:
    """A verdict without what differs from run to run, as it stands in the table."""
    verdict = re.sub(r"12D3KooW\w+", "12D3…", verdict)
    verdict = re.sub(r"[0-9a-f]{16,}…?", "…", verdict)
    return verdict.replace("|", "\\|").replace("/tmp", "")


def row(case: Case, verdict: str, stock: str) -> str:
    return f"| {case.what} | {case.by} | {words(verdict)} | {stock} |"


def rows() -> list[str]:
    return [line for line in TABLE.read_text().splitlines() if re.match(r"\| [^-]", line)]


@pytest.mark.parametrize("case", CHECKPOINTS, ids=lambda case: case.what.replace(" ", "-"))
def test_hostile_checkpoint_is_refused(case: Case, valid: Run, tmp_path: Path) -> None:
    report, stock = answer_checkpoint(case, valid, tmp_path)
    assert not report.ok
    assert row(case, report.verdict, stock) in rows()


@pytest.mark.parametrize("case", RECEIPTS, ids=lambda case: case.what.replace(" ", "-"))
def test_hostile_receipt_is_refused(case: Case, valid: Run, tmp_path: Path) -> None:
    report = answer_receipt(case, valid, tmp_path)
    assert not report.ok
    assert row(case, report.verdict, "not its trade") in rows()
    if not (tmp_path / "receipt.json").is_symlink():  # who names a link himself gets what it leads to
        assert verify_path(tmp_path / "receipt.json", trusted=valid.trusted).verdict == report.verdict


def test_each_case_has_its_own_reason_and_a_row() -> None:
    cases = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in rows()]
    cases = [cells for cells in cases if cells[0] != "what was done"]
    assert [cells[0] for cells in cases] == [case.what for case in CHECKPOINTS + RECEIPTS]
    for kind in (cases[: len(CHECKPOINTS)], cases[len(CHECKPOINTS) :]):
        reasons = [cells[2] for cells in kind]
        assert sorted(reasons) == sorted(set(reasons))


def test_the_unchanged_run_is_accepted_by_both(valid: Run) -> None:
    for number in range(4):
        report = verify_checkpoint(valid.step(number), trusted=valid.trusted, checkpoints_dir=valid.checkpoints)
        assert report.ok, report.to_text()
        assert stock_verdict(valid.step(number), valid) == "accepts"


def test_the_stock_command_says_the_same_as_a_process_of_its_own(valid: Run, tmp_path: Path) -> None:
    def run_stock(step: Path) -> int:
        command = [sys.executable, "-m", "model_signing", *stock_arguments(step, valid)]
        return subprocess.run(command, capture_output=True, timeout=60).returncode

    assert run_stock(valid.step(3)) == 0
    shutil.copytree(valid.step(3), tmp_path / "step-000003")
    (tmp_path / "step-000003/model/LICENSE").write_text("another\n")
    assert run_stock(tmp_path / "step-000003") != 0


def table() -> str:
    """The page, made anew."""
    head = "| what was done | by whom | potluck verify | model_signing |\n|---|---|---|---|"
    with tempfile.TemporaryDirectory() as folder:
        valid = build_run(Path(folder) / "valid")
        lines = [INTRO, "## Checkpoints", "", head]
        for index, case in enumerate(CHECKPOINTS):
            (Path(folder) / f"checkpoint-{index}").mkdir()
            report, stock = answer_checkpoint(case, valid, Path(folder) / f"checkpoint-{index}")
            lines.append(row(case, report.verdict, stock))
        lines += ["", "## Receipts", "", head]
        for index, case in enumerate(RECEIPTS):
            (Path(folder) / f"receipt-{index}").mkdir()
            report = answer_receipt(case, valid, Path(folder) / f"receipt-{index}")
            lines.append(row(case, report.verdict, "not its trade"))
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
