"""Checking a proof of credit, offline: what the string shows, whatever was drawn or written around it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from protocol import files, pasted
from protocol.credit_proof import MAX_FILE_BYTES, PREFIX, CreditProof, find_proof
from protocol.credit_sum import CreditSum
from protocol.report import NotChecked, Report
from protocol.run_card import RunCard

KIND = "credit"


def proof_pasted(given: Path) -> str | None:
    """The text that was given in the place of a path, where a proof of credit stands in it; None: it is a path."""
    text = str(given)
    return text if PREFIX in text and pasted.file_named(text) is None else None


def verify_credit(text: str, trusted: Collection[str], subject: str = "as pasted") -> Report:
    """Check the proof of credit that stands in a text.

    Args:
        trusted: fingerprints of the root keys that the user has confirmed.
        subject: what it is called in the report.
    """
    return _CreditInspection(Report(subject, KIND)).inspect(text, trusted).report


def verify_credit_in(path: Path, trusted: Collection[str]) -> Report:
    """Check the proof of credit that stands in a file: a card as `potluck receipts --card` wrote it, say.

    Raises:
        InputError: it cannot be read.
    """
    with files.open_regular(path) as file:
        data = file.read(MAX_FILE_BYTES)
    report = verify_credit(pasted.decoded(data), trusted, path.name)
    report.notes.append("what is drawn or written around the string was not checked: compare it with what stands here")
    return report


class _CreditInspection:
    """The checks of one proof, in order."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.proof: CreditProof | None = None
        self.card: RunCard | None = None
        self.total: CreditSum | None = None

    def inspect(self, text: str, trusted: Collection[str]) -> _CreditInspection:
        report = self.report
        report.run("form", lambda: self.check_form(text))
        report.run("run card", self.check_card)
        report.run("log proof", self.check_proofs)
        report.run("credit", self.add_up)
        if self.proof is not None and self.card is not None:
            report.confirm(self.proof.fingerprint, trusted)
        return self

    def check_form(self, text: str) -> str:
        self.proof = find_proof(text)
        return f"a proof of credit in {len(self.proof.receipts)} rounds"

    def check_card(self) -> str:
        if self.proof is None:
            raise NotChecked("needs a proof that can be read")
        self.card = card = self.proof.open_card()
        self.report.facts |= {"run": card.run, "name": card.spec.run.name}
        return f"run {card.spec.run.name}, digest {card.run[:16]}…, signed by {self.proof.fingerprint}"

    def check_proofs(self) -> str:
        if self.proof is None or self.card is None:
            raise NotChecked("needs the run card, which does not hold")
        self.total = self.proof.check(self.card)
        head = self.total.newest_head
        assert head is not None, "there is at least one"
        count = len(self.proof.receipts)
        return f"{count} entries stand in {head.origin}, up to {head.size} leaves, signed by the run's ledger"

    def add_up(self) -> str:
        if self.total is None:
            raise NotChecked("needs the log proof, which does not hold")
        self.report.facts |= credit_facts(self.total)
        return self.total.told()


def credit_facts(total: CreditSum) -> dict[str, Any]:
    """For scripts."""
    return {
        "peers": total.peers,
        "tokens": total.tokens,
        "flops": sum(entry.flops for entry in total.entries),
        "rounds": len(total.rounds),
        "ledger": ledger_facts(total),
    }


def ledger_facts(total: CreditSum) -> dict[str, Any] | None:
    """The newest ledger head, for scripts; None: there is none."""
    head = total.newest_head
    return None if head is None else {"origin": head.origin, "size": head.size, "root": head.root.hex()}
