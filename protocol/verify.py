"""Checking a checkpoint, a receipt or a folder of receipts, offline: yes or no, with the reason in plain words.

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
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from protocol import checkpoint, files, lineage
from protocol.agreement import Agreement
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
    """Check what lies at a path: a checkpoint, a receipt or a folder of receipts; a link to one is followed.

    Args:
        checkpoints_dir: None: the folder that the checkpoint lies in, if it holds others.

    Others: as `verify_checkpoint`.

    Raises:
        InputError: it is none of these; the message says what it is, the hint what to give.
    """
    subject = recognise(path)
    if subject.kind is Kind.CHECKPOINT:
        if checkpoints_dir is None:
            checkpoints_dir = lineage.folder_of(subject.path)
        else:
            checkpoints_dir = _all_checkpoints(checkpoints_dir)
        report = verify_checkpoint(
            subject.path, trusted=trusted, keys=keys, checkpoints_dir=checkpoints_dir, alone=alone, newest=newest
        )
    elif checkpoints_dir is not None or alone or newest is not None:
        raise InputError(
            f"{one_line(path.name)}: no checkpoint, and there are options that go with one alone",
            "leave --checkpoints, --signature-only and --newest-by out",
        )
    else:
        check = verify_receipts if subject.kind is Kind.RECEIPTS else verify_receipt
        report = check(subject.path, trusted)
    if path.is_symlink():
        report.notes.append(f"you named a link; checked was what it leads to, {one_line(str(subject.path))}")
    return report


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
    paths, others = _receipts_in(folder)
    report = Report(folder.name, "receipts")
    found, heads = dict[tuple[str, int, str], CreditEntry](), dict[tuple[str, int], bytes]()
    keys, problems = set[str](), list[str]()
    for path in paths:
        seen = _ReceiptInspection(Report(path.name, "receipt")).inspect(path, trusted)
        keys |= {seen.report.fingerprint} if seen.report.fingerprint else set()
        bad = next((check for check in seen.report.refusals if check.name != KEY_CHECK), None)
        if bad is not None:
            problems.append(f"{path.name}: {bad.name}: {bad.detail}")
        elif seen.head is not None and seen.receipt is not None:
            if heads.setdefault((seen.head.origin, seen.head.size), seen.head.root) != seen.head.root:
                problems.append(f"{path.name}: the ledger signed two different heads of {seen.head.size} leaves")
            entry = seen.receipt.entry
            if (
                isinstance(entry, CreditEntry)
                and found.setdefault((entry.run, entry.round, entry.peer_id), entry) != entry
            ):
                problems.append(f"{path.name}: another one shows other credit for the same round")

    def together() -> str:
        refuse(problems)
        return f"{len(paths)} receipts, each of an entry that stands in the ledger of its run"

    if report.run("receipts", together):
        report.run("credit", lambda: _summary(list(found.values())), needed=False)
    if others:
        report.notes.append(f"{others} other entries in it were not looked at")
    report.facts |= {"receipts": len(paths), "tokens": sum(entry.tokens for entry in found.values())}
    for key in sorted(keys):
        report.confirm(key, trusted)
    report.fingerprint = ", ".join(sorted(keys - set(trusted) or keys)) or None
    return report


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


def _summary(entries: list[CreditEntry]) -> str:
    if not entries:
        raise NotChecked("no receipt is of credit")
    peers, rounds = {entry.peer_id for entry in entries}, [entry.round for entry in entries]
    whom = peers.pop() if len(peers) == 1 else f"{len(peers)} peers"
    tokens = sum(entry.tokens for entry in entries)
    return f"{tokens} tokens to {whom}, in {len(set(rounds))} rounds from {min(rounds)} to {max(rounds)}"


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
