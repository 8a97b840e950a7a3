"""What a verification found, in plain words: an ordered list of checks, and a verdict.

`verify` fills it in; the `potluck verify` command prints `to_text` or `to_json` and exits with the answer's code.

    >>> report = Report("step-000003", "checkpoint")
    >>> report.run("signature", lambda: "signed by the root key")
    True
    >>> report.confirm("ab" * 32, trusted=set())
    >>> report.answer, report.ok, report.verdict[:61]
    (<Answer.REFUSED: 'refused'>, False, 'intact, but signed by a key that you have not confirmed: abab')
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from protocol import words
from protocol.errors import PotluckError

KEY_CHECK = "key"
MODEL_KIND = "model"  # a model that is not of a run
EVIDENCE_KIND = "evidence"  # that a member claimed what it did not do


class Status(StrEnum):
    """What came of one check."""

    OK = "ok"
    REFUSED = "refused"
    NOT_CHECKED = "not checked"
    OUTDATED = "outdated"


class Answer(StrEnum):
    """What came of all checks together; the first that applies, from the top."""

    REFUSED = "refused"  # something does not hold, or the user has not confirmed the key
    INCOMPLETE = "incomplete"  # nothing was refused, and something that was asked for could not be checked
    OUTDATED = "outdated"  # all of it holds, and there is a newer one
    VERIFIED = "verified"  # all of it holds, and nothing is left open

    @property
    def exit_code(self) -> int:
        return {"verified": 0, "refused": 1, "incomplete": 3, "outdated": 4}[self]  # 2 is wrong usage or input


class NotChecked(Exception):
    """Raised by a rule that lacks what it needs; carries the reason. It never reaches a caller of `verify`."""


class Outdated(Exception):
    """Raised by a rule that knows of a newer checkpoint; says which. It never reaches a caller of `verify`."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Status
    detail: str  # what was checked, or why it was refused or not checked
    needed: bool = True  # nobody gets a yes while it is not checked


@dataclass
class Report:
    """All checks of what was asked about."""

    subject: str  # folder or file name
    kind: str  # "checkpoint", "receipt", "receipts", "model" or "evidence"
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # worth knowing, and part of no verdict
    facts: dict[str, Any] = field(default_factory=dict)  # run, round, payload digest, …: as far as they were read
    fingerprint: str | None = None  # of the root key that signed
    alone: bool = False  # the user asked about this one folder, not about its history

    @property
    def refusals(self) -> list[Check]:
        return [check for check in self.checks if check.status is Status.REFUSED]

    @property
    def gaps(self) -> list[Check]:
        """What was asked for and could not be checked."""
        return [check for check in self.checks if check.needed and check.status is Status.NOT_CHECKED]

    @property
    def sound(self) -> bool:
        """Whether nothing was refused, and a key that the user confirmed signed it; there may be gaps."""
        return not self.refusals and any(check.name == KEY_CHECK for check in self.checks)

    @property
    def complete(self) -> bool:
        """Whether all that was asked for was checked."""
        return not self.gaps

    @property
    def answer(self) -> Answer:
        if not self.sound:
            return Answer.REFUSED
        if not self.complete:
            return Answer.INCOMPLETE
        outdated = any(check.status is Status.OUTDATED for check in self.checks)
        return Answer.OUTDATED if outdated else Answer.VERIFIED

    @property
    def ok(self) -> bool:
        """Whether the answer is yes: sound, complete, and not known to be outdated."""
        return self.answer is Answer.VERIFIED

    @property
    def verdict(self) -> str:
        """One line."""
        return self._verdict(str)

    def _verdict(self, say: Callable[[str], str]) -> str:
        """The verdict; `say` gives the names of checks in the reader's language: in a line, a word may be a name."""
        match self.answer:
            case Answer.VERIFIED if self.alone:
                return (
                    f"verified by itself: signed by {self.fingerprint}, which you have confirmed; "
                    "the chain back to genesis was not checked"
                )
            case Answer.VERIFIED if self.kind == MODEL_KIND:
                return f"verified: these are the files that {self.fingerprint} signed; of a run it says nothing"
            case Answer.VERIFIED if self.kind == EVIDENCE_KIND:
                return f"confirmed: claimed and not done, in a run of {self.fingerprint}, which you have confirmed"
            case Answer.VERIFIED:
                return f"verified: signed by {self.fingerprint}, which you have confirmed"
            case Answer.INCOMPLETE:
                return f"incomplete: {say(self.gaps[0].name)}: {self.gaps[0].detail}"
            case Answer.OUTDATED:
                newer = next(check for check in self.checks if check.status is Status.OUTDATED)
                return f"outdated: {newer.detail}"
            case Answer.REFUSED:
                return self._refusal(say)

    def _refusal(self, say: Callable[[str], str]) -> str:
        first = next((check for check in self.refusals if check.name != KEY_CHECK), None)
        if first is not None:
            return f"refused: {say(first.name)}: {first.detail}"
        if not self.refusals:
            return "refused: nothing could be checked"
        whole = "intact, but" if self.complete else "incomplete, and"
        return f"{whole} signed by a key that you have not confirmed: {self.fingerprint}"

    def run(self, name: str, rule: Callable[[], str], *, needed: bool = True) -> bool:
        """Apply one rule and note its outcome; returns whether it held.

        Args:
            name: one or two words.
            rule: returns what it checked in plain words; raises PotluckError to refuse, NotChecked if it cannot say,
                Outdated if there is a newer one.
            needed: whether the answer hangs on it when the rule cannot say.
        """
        try:
            check = Check(name, Status.OK, rule(), needed)
        except NotChecked as reason:
            check = Check(name, Status.NOT_CHECKED, one_line(str(reason)), needed)
        except Outdated as newer:
            check = Check(name, Status.OUTDATED, one_line(str(newer)), needed)
        except PotluckError as error:
            check = Check(name, Status.REFUSED, one_line(error.message.removeprefix(f"{name}: ")), needed)
        self.checks.append(check)
        return check.status is Status.OK

    def confirm(self, fingerprint: str, trusted: Collection[str]) -> None:
        """Note whether the user has confirmed the key that signed."""
        self.fingerprint = fingerprint
        if fingerprint in trusted:
            self.checks.append(Check(KEY_CHECK, Status.OK, f"you have confirmed {fingerprint}"))
        else:
            self.checks.append(Check(KEY_CHECK, Status.REFUSED, f"you have not confirmed the key {fingerprint}"))

    def to_text(self, say: Callable[[str], str] = str) -> str:
        """Lines for a person; the verdict comes last.

        Args:
            say: what was written in English, in the reader's language.
        """
        names = [say(check.name) for check in self.checks]
        width = max(map(words.columns, names), default=0)
        lines = [f"{say(self.kind)} {one_line(self.subject)}"]
        for check, name in zip(self.checks, names, strict=True):
            lines.append(f"  {words.padded(say(check.status), 11)}  {words.padded(name, width)}  {say(check.detail)}")
        lines += [f"  {words.padded(say('note'), 11)}  {say(note)}" for note in self.notes]
        return "\n".join([*lines, say(self._verdict(say))])

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "subject": self.subject,
            "kind": self.kind,
            "ok": self.ok,
            "answer": str(self.answer),
            "complete": self.complete,
            "alone": self.alone,
            "verdict": self.verdict,
            "fingerprint": self.fingerprint,
            "facts": self.facts,
            "checks": [
                {"name": check.name, "status": str(check.status), "detail": check.detail} for check in self.checks
            ],
            "notes": self.notes,
        }


def one_line(text: str) -> str:
    """Outside input may be quoted in a message: keep it from painting on the terminal."""
    return words.shown(text)[:2000]
