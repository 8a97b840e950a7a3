"""What a verification found, in plain words: an ordered list of checks, and a verdict.

`verify` fills it in; the `potluck verify` command prints `to_text` or `to_json`.

    >>> report = Report("step-000003", "checkpoint")
    >>> report.run("signature", lambda: "signed by the root key")
    True
    >>> report.confirm("ab" * 32, trusted=set())
    >>> report.ok, report.verdict[:61]
    (False, 'intact, but signed by a key that you have not confirmed: abab')
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from protocol.errors import PotluckError

KEY_CHECK = "key"


class Status(StrEnum):
    OK = "ok"
    REFUSED = "refused"
    NOT_CHECKED = "not checked"


class NotChecked(Exception):
    """Raised by a rule that lacks what it needs; carries the reason. It never reaches a caller of `verify`."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Status
    detail: str  # what was checked, or why it was refused or not checked


@dataclass
class Report:
    """All checks of one checkpoint or receipt."""

    subject: str  # folder or file name
    kind: str  # "checkpoint" or "receipt"
    checks: list[Check] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)  # run, round, payload digest, …: as far as they were read
    fingerprint: str | None = None  # of the root key that signed

    @property
    def refusals(self) -> list[Check]:
        return [check for check in self.checks if check.status is Status.REFUSED]

    @property
    def ok(self) -> bool:
        """Whether the answer is yes: nothing was refused, and a key that the user confirmed signed it."""
        return not self.refusals and any(check.name == KEY_CHECK for check in self.checks)

    @property
    def verdict(self) -> str:
        """One line."""
        refusals = self.refusals
        if self.ok:
            return f"verified: signed by {self.fingerprint}, which you have confirmed"
        if [check.name for check in refusals] == [KEY_CHECK]:
            return f"intact, but signed by a key that you have not confirmed: {self.fingerprint}"
        first = next((check for check in refusals if check.name != KEY_CHECK), None)
        return f"refused: {first.name}: {first.detail}" if first else "refused: nothing could be checked"

    def run(self, name: str, rule: Callable[[], str]) -> bool:
        """Apply one rule and note its outcome; returns whether it held.

        Args:
            name: one or two words.
            rule: returns what it checked in plain words; raises PotluckError to refuse, NotChecked if it cannot say.
        """
        try:
            check = Check(name, Status.OK, rule())
        except NotChecked as reason:
            check = Check(name, Status.NOT_CHECKED, str(reason))
        except PotluckError as error:
            check = Check(name, Status.REFUSED, _one_line(error.message.removeprefix(f"{name}: ")))
        self.checks.append(check)
        return check.status is Status.OK

    def confirm(self, fingerprint: str, trusted: Collection[str]) -> None:
        """Note whether the user has confirmed the key that signed."""
        self.fingerprint = fingerprint
        if fingerprint in trusted:
            self.checks.append(Check(KEY_CHECK, Status.OK, f"you have confirmed {fingerprint}"))
        else:
            self.checks.append(Check(KEY_CHECK, Status.REFUSED, f"you have not confirmed the key {fingerprint}"))

    def to_text(self) -> str:
        """Lines for a person; the verdict comes last."""
        width = max((len(check.name) for check in self.checks), default=0)
        lines = [f"{self.kind} {self.subject}"]
        lines += [f"  {check.status:<11}  {check.name:<{width}}  {check.detail}" for check in self.checks]
        return "\n".join([*lines, self.verdict])

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "subject": self.subject,
            "kind": self.kind,
            "ok": self.ok,
            "verdict": self.verdict,
            "fingerprint": self.fingerprint,
            "facts": self.facts,
            "checks": [
                {"name": check.name, "status": str(check.status), "detail": check.detail} for check in self.checks
            ],
        }


def _one_line(text: str) -> str:
    """Outside input may be quoted in a message: keep it from painting on the terminal."""
    return "".join(character if character.isprintable() else "�" for character in text)[:2000]
