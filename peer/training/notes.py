"""What a host is told of its data, once, at its first start: what of them is not used, and what carries no loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from protocol.shown import named

MAX_NAMES = 1000  # of fields that are remembered

UNTOLD = "answers that the chat template writes otherwise in later turns, so that they carry no loss"
REWRITTEN = "answers of which the chat template does not write all"
UNKNOWN = "tokens for what the model's tokenizer does not know"
LONG = "records longer than sequence_length, which are cut"
UNPREDICTED = "sequences without anything to learn, which are left out"
EMPTY_ANSWERS = "empty answers, which carry no loss"
UNLEARNED = "records in which all answers are marked as not to be learned, and which are left out"
LIKE_JSONL = "the file looks like JSONL, and data.kind is text: names and braces are trained on, too"
CRLF = "lines that end with CR LF, read as if with LF"
EMPTY_TEXTS = "records with an empty text, which are left out"


class Notes:
    """Collects while a file is read; `sentences` says it."""

    def __init__(self) -> None:
        self._unused: dict[str, None] = {}  # in the order in which they came
        self._counts: Counter[str] = Counter()
        self._said: list[str] = []

    def unused(self, names: Iterable[str]) -> None:
        """Fields that hold something and reach no token."""
        for name in names:
            if len(self._unused) < MAX_NAMES:
                self._unused.setdefault(name)

    def count(self, what: str, number: int = 1) -> None:
        """So many more of what one of the names above says."""
        self._counts[what] += number

    def say(self, sentence: str) -> None:
        self._said.append(sentence)

    def add(self, other: Notes) -> None:
        """What was collected of another part of the data."""
        self.unused(other._unused)
        self._counts.update(other._counts)
        self._said += [sentence for sentence in other._said if sentence not in self._said]

    def to_json(self) -> dict[str, Any]:
        return {"unused": list(self._unused), "counts": dict(self._counts), "said": self._said}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Notes:
        """What `to_json` gave."""
        made = cls()
        made._unused = dict.fromkeys(value["unused"])
        made._counts = Counter(value["counts"])
        made._said = list(value["said"])
        return made

    def sentences(self) -> list[str]:
        """What there is to tell; empty when all of the file is used."""
        unused = [f"fields that are not used: {named(self._unused, 12)}"] if self._unused else []
        return unused + [f"{what}: {number}" for what, number in self._counts.items() if number] + self._said
