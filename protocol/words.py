"""What people read, in their language: English as the code writes it, and 简体中文 by the catalogue `zh.txt`.

Messages are written in English where they arise, with their values in place, and travel so between peers, into logs and
`--json`. Only where one is shown does `told` look for the template that it fits, and say it again. What fits none stays
as it is.

>>> told("round 41: voted for another state in attempt 2", "zh")
'第 41 轮：在第 2 次尝试中已投票给另一个状态'
>>> told("what nobody has foreseen", "zh")
'what nobody has foreseen'
"""

from __future__ import annotations

import functools
import locale
import os
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

LANGUAGES = ("en", "zh")
MAX_CHARS = 8192  # longer messages stay as they are
MOST_LOOKUPS = 256  # of one message and of what stands in its holes
_HOLE = re.compile(r"\{(\w*)\}")
_SEPARATORS = ("; ", ": ", ", ")  # between messages that were put together
_WIDE = tuple("，。；：！？（）")
_MARKS = {"; ": "；", ": ": "：", ", ": "，"}
_chosen: list[str] = []  # by --lang, for this process


class Template(NamedTuple):
    """One entry of the catalogue."""

    literals: tuple[str, ...]  # of the English text, one more than there are holes
    chinese: tuple[str | int, ...]  # text, or the number of a hole

    @property
    def is_weak(self) -> bool:
        """It says so little that it fits what it does not mean, as `round {}` does "round table is set"."""
        own = " ".join(self.literals)
        return ":" not in own and "(" not in own and len(re.findall("[A-Za-z]{2,}", own)) < 2

    def fit(self, message: str) -> list[str] | None:
        """What stands in the holes of `message`, in the order of the English text; None when it does not fit."""
        first, *inner = self.literals
        if not inner:
            return [] if message == first else None
        last = inner.pop()
        end = len(message) - len(last)
        if end < len(first) or not message.startswith(first) or not message.endswith(last):
            return None
        values, place = [], len(first)
        for literal in inner:
            found = message.find(literal, place, end)
            if found < 0:
                return None
            values.append(message[place:found])
            place = found + len(literal)
        return [*values, message[place:end]]


class Catalogue:
    """English templates and their Chinese.

    Args:
        entries: `{}` stands for a value; `{0}`, `{1}` … in the Chinese where their order differs, or names in both.

    >>> Catalogue({"{} of {} files": "{1} 个文件中的 {0} 个"}).told("3 of 5 files")
    '5 个文件中的 3 个'
    """

    def __init__(self, entries: Mapping[str, str]) -> None:
        self.entries = {english.strip(): chinese.strip() for english, chinese in entries.items()}
        made = [_template(english, chinese) for english, chinese in self.entries.items()]
        self._whole = {template.literals[0]: template for template in made if len(template.literals) == 1}
        self._with_holes = sorted(
            (template for template in made if len(template.literals) > 1),
            key=lambda template: (-sum(map(len, template.literals)), template.literals),
        )

    def text(self, english: str, values: Mapping[str, object]) -> str:
        """The Chinese of a template whose holes have names."""
        return _instead(english, self.entries.get(english.strip(), english)).format(**values)

    def told(self, message: str) -> str:
        """A message in Chinese, as far as it is known."""
        if len(message) > MAX_CHARS:
            return message
        lookups = [MOST_LOOKUPS]
        return self._told(message, lookups, top=True) or message

    def _told(self, message: str, lookups: list[int], *, top: bool = False) -> str | None:
        """The message in Chinese; None when it is not known, or there was no time for it."""
        core = message.strip()
        if lookups[0] <= 0 or not any("a" <= character.lower() <= "z" for character in core):
            return None
        lookups[0] -= 1
        if core in self._whole and (top or " " in core):  # a word in a hole may be a name
            return _instead(message, str(self._whole[core].chinese[0]))
        for template in self._with_holes:
            values = template.fit(core)
            if values is None:
                continue
            own = [self._told(value, lookups) for value in values]
            prose = any(known is None and " " in value.strip() for known, value in zip(own, values, strict=True))
            if prose and template.is_weak:
                continue
            said = [value if known is None else known for known, value in zip(own, values, strict=True)]
            chinese = "".join(said[part] if isinstance(part, int) else part for part in template.chinese)
            return _instead(message, chinese)
        return self._parts(message, lookups)

    def _parts(self, message: str, lookups: list[int]) -> str | None:
        """A list of messages, or a name and a message."""
        for separator in _SEPARATORS:
            parts = message.split(separator)
            if len(parts) == 1:
                continue
            own = [self._told(part, lookups, top=separator == ": " and place > 0) for place, part in enumerate(parts)]
            if any(own):
                return _MARKS[separator].join(
                    part if known is None else known for known, part in zip(own, parts, strict=True)
                )
        return self._suffix(message, lookups)

    def _suffix(self, message: str, lookups: list[int]) -> str | None:
        """Something, and a message in brackets after it."""
        head, bracket, tail = message.partition(" (")
        known = self._told(f"({tail}", lookups) if bracket and head and message.endswith(")") else None
        return None if known is None else (self._told(head, lookups) or head) + known


def _instead(english: str, chinese: str) -> str:
    """Chinese with the white space that stands around the English; its own marks need none."""
    before, after = english[: -len(english.lstrip())], english[len(english.rstrip()) :]
    return f"{'' if chinese[:1] in _WIDE else before}{chinese.strip()}{'' if chinese[-1:] in _WIDE else after}"


def _template(english: str, chinese: str) -> Template:
    literals, names = _split(english)
    numbers = {name or str(number): number for number, name in enumerate(names)}
    places = _HOLE.split(chinese)
    parts: list[str | int] = [places[0]]
    for number, (name, literal) in enumerate(zip(places[1::2], places[2::2], strict=True)):
        parts += [number if not name else numbers[name] if name in numbers else int(name), literal]
    return Template(tuple(literals), tuple(parts))


def _split(english: str) -> tuple[list[str], list[str]]:
    """The text between the holes, and the names of the holes."""
    parts = _HOLE.split(english)
    return parts[::2], parts[1::2]


def parse(text: str) -> dict[str, str]:
    """The entries of a catalogue file: pairs of lines, English and Chinese; `#` begins a comment."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return dict(zip(lines[::2], lines[1::2], strict=True))


@functools.cache
def catalogue() -> Catalogue:
    """The one in `zh.txt`."""
    return Catalogue(parse(Path(__file__).with_name("zh.txt").read_text(encoding="utf-8")))


def told(message: str, language: str | None = None) -> str:
    """A message that was written in English, in "en" or "zh" (None: as the user reads)."""
    return catalogue().told(message) if (language or language_of_user()) == "zh" else message


def choose(language: str | None) -> str | None:
    """Make this the language of the process; None: leave it to the locale."""
    _chosen[:] = [language] if language else []
    return language


def language_of_user() -> str:
    """ "zh" where it was chosen or the locale is Chinese, else "en"."""
    if _chosen:
        return _chosen[0]
    named = os.environ.get("LC_ALL") or os.environ.get("LC_MESSAGES") or os.environ.get("LANG") or locale.getlocale()[0]
    return "zh" if (named or "").lower().startswith("zh") else "en"


def shown(text: str) -> str:
    """Outside input may be quoted in a message: on one line, and nothing in it paints on the terminal."""
    return "".join(character if character.isprintable() else "�" for character in text)


def labelled(label: str, text: str) -> str:
    """A text after its label, such as "hint:"; the Chinese colon needs no space after it."""
    return told(f"{label} ") + text


def columns(text: str) -> int:
    """How wide a terminal shows it."""
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in text)


def padded(text: str, width: int) -> str:
    """Filled up with spaces to so many columns."""
    return text + " " * (width - columns(text))
