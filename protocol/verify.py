"""Checking a checkpoint, a receipt, a folder of receipts or a proof of credit, offline: yes or no, and why in words.

`potluck verify` calls these; a peer calls `verify_checkpoint` on genesis before it loads a byte of it. They import
neither torch nor numpy, follow no link, bound what they read, and answer hostile input with a refusal, not an
exception.

A key never counts because it lies beside the checkpoint: who is trusted comes from the caller, as fingerprints.

`report.answer` is one of four. What a checkpoint says that there is must be at hand: its ancestors back to genesis and
the members' agreement of every round. What is left out is "incomplete", never "verified"; who asks about one folder
`alone` is answered about that folder alone.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from protocol import checkpoint, files, lineage
from protocol.agreement import Agreement
from protocol.credit_proof import PREFIX
from protocol.credit_sum import CreditSum
from protocol.errors import InputError
from protocol.inspection import Inspection, inspect, refuse
from protocol.keys import fingerprint
from protocol.ledger_entry import CreditEntry
from protocol.newest import Rule
from protocol.note import LedgerHead
from protocol.receipt import MAX_RECEIPT_BYTES, Receipt
from protocol.recognise import Kind, recognise, steps_in
from protocol.report import KEY_CHECK, NotChecked, Report, one_line
from protocol.run_card import RunCard
from protocol.verify_credit import proof_pasted, verify_credit, verify_credit_in

MAX_RECEIPTS = 100_000  # files of one folder that are looked at


def verify_path(
    path: Path,
    *,
    trusted: Collection[str],
    keys: Iterable[ec.EllipticCurvePublicKey] = (),
    checkpoints_dir: Path | None = None,
    alone: bool = False,
    newest: Rule | None = None,
) -> Report:
    """Check what lies at a path: a checkpoint, a receipt, a folder of receipts, a file with a proof of credit; a link
    to one is followed. In the place of a path the proof of credit itself may be given.

    Args:
        checkpoints_dir: None: the folder that the checkpoint lies in, if it holds others.

    Others: as `verify_checkpoint`.

    Raises:
        InputError: it is none of these; the message says what it is, the hint what to give.
    """
    pasted_proof = proof_pasted(path)
    if pasted_proof is not None:
        _only_of_checkpoints(PREFIX + "…", checkpoints_dir is not None or alone or newest is not None)
        return verify_credit(pasted_proof, trusted)
    subject = recognise(path)
    if subject.kind is Kind.CHECKPOINT:
        if checkpoints_dir is None:
            checkpoints_dir = lineage.folder_of(subject.path)
        else:
            checkpoints_dir = _all_checkpoints(checkpoints_dir)
        report = verify_checkpoint(
            subject.path, trusted=trusted, keys=keys, checkpoints_dir=checkpoints_dir, alone=alone, newest=newest
        )
    else:
        _only_of_checkpoints(path.name, checkpoints_dir is not None or alone or newest is not None)
        report = _CHECKS[subject.kind](subject.path, trusted)
    if path.is_symlink():
        report.notes.append(f"you named a link; checked was what it leads to, {one_line(str(subject.path))}")
    return report


def _only_of_checkpoints(name: str, has_options: bool) -> None:
    """Raises: InputError: options were given that make no sense here."""
    if has_options:
        raise InputError(
            f"{one_line(name)}: no checkpoint, and there are options that go with one alone",
            "leave --checkpoints, --signature-only and --newest-by out",
        )


def _all_checkpoints(given: Path) -> Path:
    """The folder of checkpoints that was named. Raises: InputError: it is none."""
    folder = Path(os.path.realpath(given))
    if steps_in(folder) or (folder / checkpoint.ROUNDS).is_dir():
        return folder
    raise InputError(f"{given}: no step-… folder lies there", "give the folder checkpoints/ of the run")


def verify_checkpoint(
    step_dir: Path,
    *,
    trusted: Collection[str],
    keys: Iterable[ec.EllipticCurvePublicKey] = (),
    checkpoints_dir: Path | None = None,
    alone: bool = False,
    newest: Rule | None = None,
) -> Report:
    """Check a checkpoint folder.

    Args:
        step_dir: the folder that holds model/ and model.sig.
        trusted: fingerprints of the root keys that the user has confirmed.
        keys: keys of further maintainers, to check signatures/ with.
        checkpoints_dir: the folder of all checkpoints (`lineage.folder_of` finds it); without it the chain back to
            genesis cannot be checked, and any checkpoint but genesis is incomplete.
        alone: leave the chain out, and say so in the verdict.
        newest: asks whether there is a newer one; from `protocol.newest`.

    Raises:
        InputError: `step_dir` or `checkpoints_dir` is no directory; nothing else.
    """
    if step_dir.is_symlink() or not step_dir.is_dir():
        raise InputError(
            f"{step_dir}: not a directory", f"give a checkpoint's folder, such as {checkpoint.step_name(0)}"
        )
    seen = inspect(step_dir.absolute(), trusted=trusted, keys={fingerprint(key): key for key in keys})
    _check_lineage(seen, checkpoints_dir, alone)
    if newest is not None:
        seen.report.run("newest", lambda: newest(seen))
    return seen.report


def verify_receipt(path: Path, trusted: Collection[str]) -> Report:
    """Check a receipt file.

    Args:
        path: the file.
        trusted: fingerprints of the root keys that the user has confirmed.

    Raises:
        InputError: there is no such file.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file", "give the path of a receipt")
    return _ReceiptInspection(Report(path.name, "receipt")).inspect(path, trusted).report


def verify_receipts(folder: Path, trusted: Collection[str]) -> Report:
    """Check every receipt in a folder; one report of them all.

    Args:
        folder: its files named `.json` are receipts, whatever is in them; the others are named and not looked at.
        trusted: fingerprints of the root keys that the user has confirmed.

    Raises:
        InputError: there is no such folder, or no receipt in it.
    """
    seen = survey_receipts(folder)
    report = Report(folder.name, "receipts")

    def together() -> str:
        refuse([*seen.bad, *seen.total.problems])
        return f"{seen.count} receipts, each of an entry that stands in the ledger of its run"

    def summary() -> str:
        if not seen.total.entries:
            raise NotChecked("no receipt is of credit")
        return seen.total.told()

    if report.run("receipts", together):
        report.run("credit", summary, needed=False)
    if seen.others:
        report.notes.append(f"{seen.others} other entries in it were not looked at")
    report.facts |= {"receipts": seen.count, "tokens": seen.total.tokens}
    for key in sorted(seen.keys):
        report.confirm(key, trusted)
    report.fingerprint = ", ".join(sorted(seen.keys - set(trusted) or seen.keys)) or None
    return report


@dataclass
class ReceiptSurvey:
    """What lies in a folder of receipts."""

    count: int  # of receipts, good or bad
    others: int  # things that are none
    total: CreditSum = field(default_factory=CreditSum)  # of those that hold
    receipts: list[Receipt] = field(default_factory=list)  # those
    keys: set[str] = field(default_factory=set)  # fingerprints of the root keys that signed them
    bad: list[str] = field(default_factory=list)  # each that does not hold, and why


def survey_receipts(folder: Path) -> ReceiptSurvey:
    """Look at every receipt in a folder; whom to trust is left to the caller.

    Raises:
        InputError: there is no such folder, or no receipt in it.
    """
    paths, others = _receipts_in(folder)
    survey = ReceiptSurvey(len(paths), others)
    for path in paths:
        seen = _ReceiptInspection(Report(path.name, "receipt")).inspect(path, ())
        survey.keys |= {seen.report.fingerprint} if seen.report.fingerprint else set()
        bad = next((check for check in seen.report.refusals if check.name != KEY_CHECK), None)
        if bad is not None:
            survey.bad.append(f"{path.name}: {bad.name}: {bad.detail}")
        elif seen.head is not None and seen.receipt is not None:
            survey.total.add(path.name, seen.receipt.entry, seen.head)
            survey.receipts.append(seen.receipt)
    return survey


def _receipts_in(folder: Path) -> tuple[list[Path], int]:
    """(the files that are receipts by their names, how many other things lie there). Raises: InputError."""
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}", "give a folder of receipts that you may read") from error
    receipts = [path for path in paths if path.suffix == ".json"]
    if not receipts:
        raise InputError(f"{folder}: no receipt lies there", "give the folder that holds them")
    if len(receipts) > MAX_RECEIPTS:
        raise InputError(f"{folder}: more than {MAX_RECEIPTS} receipts", "check them in several folders")
    return receipts, len(paths) - len(receipts)


def _check_lineage(seen: Inspection, checkpoints_dir: Path | None, alone: bool) -> None:
    report, chain = seen.report, list[Inspection]()
    report.alone = alone and (seen.info is None or seen.info.round > 0)
    at_hand = None if checkpoints_dir is None or alone else lineage.find_checkpoints(checkpoints_dir)

    def walk() -> str:
        if seen.info is None or seen.signature is None:
            raise NotChecked("needs checkpoint.json and the signature, which do not hold")
        if seen.info.round == 0:
            return "this is genesis"
        if alone:
            raise NotChecked("only this folder was asked about")
        if at_hand is None:
            raise NotChecked("the checkpoints before this one, back to genesis, are not at hand")
        chain.extend(lineage.collect(seen, at_hand))
        return f"{len(chain) - 1} ancestors, each verified, back to genesis"

    holds = report.run("lineage", walk, needed=not alone)
    if at_hand is not None:
        report.notes += lineage.note_later(seen, at_hand)
    if not holds or at_hand is None or not chain:
        return
    agreements = list[Agreement]()

    def rounds() -> str:
        agreements.extend(lineage.agreed_rounds(chain, at_hand.rounds))
        return lineage.check_links(chain, agreements)

    def contributors() -> str:
        if not agreements:
            raise NotChecked("needs the agreements of all rounds")
        return lineage.check_contributors(chain, agreements)

    report.run("rounds", rounds)
    report.run("ledger growth", lambda: lineage.check_ledgers(chain))
    report.run("contributors", contributors)
    if seen.card is not None and seen.card.spec.model.untrained:
        report.run("untrained", lambda: lineage.check_untrained(chain))


class _ReceiptInspection:
    """The checks of one receipt, in order."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.receipt: Receipt | None = None
        self.card: RunCard | None = None
        self.head: LedgerHead | None = None  # the ledger that the entry stands in

    def inspect(self, path: Path, trusted: Collection[str]) -> _ReceiptInspection:
        report = self.report
        report.run("form", lambda: self.check_form(path))
        report.run("run card", self.check_card)
        report.run("log proof", self.check_proof)
        if self.card is not None and self.receipt is not None:
            report.confirm(self.receipt.fingerprint, trusted)
        return self

    def check_form(self, path: Path) -> str:
        self.receipt = Receipt.from_bytes(files.read_bounded(path, MAX_RECEIPT_BYTES))
        entry = self.receipt.entry
        self.report.facts |= entry.to_json()
        if isinstance(entry, CreditEntry):
            return f"credit of {entry.tokens} tokens to {entry.peer_id} for round {entry.round}"
        return f"a ledger entry of the type {entry.type}"

    def check_card(self) -> str:
        if self.receipt is None:
            raise NotChecked("needs a receipt that can be read")
        self.card = self.receipt.open_card()
        return f"run {self.card.spec.run.name}, digest {self.card.run[:16]}…, signed by {self.receipt.fingerprint}"

    def check_proof(self) -> str:
        if self.receipt is None or self.card is None:
            raise NotChecked("needs the run card, which does not hold")
        self.head = head = self.receipt.check_proof(self.card)
        return f"the entry stands in {head.origin}, {head.size} leaves, signed by the run's ledger"


_CHECKS = {Kind.RECEIPT: verify_receipt, Kind.RECEIPTS: verify_receipts, Kind.CREDIT: verify_credit_in}
