"""A chat template in an environment that is the same on every machine and every day.

As transformers renders them (its `utils/chat_template_utils.py`, version 5.24), with what differs from one machine,
process or day to another taken out or pinned:

    strftime_now    reads a clock that stands at 00:00 UTC of the run's `data.template_date`, with English names
    random, lipsum  are not there
    object addresses (`{{ tool.items }}` writes one) are refused when they show in the text

>>> render = ChatTemplate("{{ strftime_now('%d %b %Y') }}: {{ messages[0].content }}", "2026-12-01")
>>> render([{"role": "user", "content": "Who brings wood?"}])
'01 Dec 2026: Who brings wood?'
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
import jinja2.utils

from protocol.errors import InputError
from protocol.shown import shown

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_ADDRESS = re.compile(r"<[^<>]{1,200} at 0x[0-9A-Fa-f]{4,}>")
_DIRECTIVE = re.compile(r"%([-#]?)(.?)", re.DOTALL)


class TemplateError(Exception):
    """A template that cannot be compiled, or does not render a conversation; says why."""


class ChatTemplate:
    """A compiled template.

    Args:
        source: jinja.
        day: YYYY-MM-DD.
        variables: what else the template sees: the tokenizer's special tokens.

    Raises:
        InputError: not a template.
    """

    def __init__(self, source: str, day: str, variables: dict[str, Any] | None = None) -> None:
        self._variables = variables or {}
        try:
            self._template = _environment(day).from_string(source)
        except (
            Exception
        ) as error:  # a template is code from outside: its errors are of any kind, and told like other bad input
            raise InputError(
                f"the model's chat template cannot be used: {told(error)}", "use data.kind jsonl or text, or mend it"
            ) from error

    def __call__(
        self, messages: list[dict[str, Any]], tools: list[Any] | None = None, generation_prompt: bool = False
    ) -> str:
        """The conversation's text.

        Raises:
            TemplateError: the template refuses it, fails on it, or writes what is not the same everywhere.
        """
        try:
            text: str = self._template.render(
                self._variables,
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=generation_prompt,
            )
            text.encode()
            addresses = [found for found in _ADDRESS.findall(text) if found not in _text_of([messages, tools])]
        except UnicodeEncodeError as error:
            raise TemplateError("it writes half of a surrogate pair") from error
        except Exception as error:  # as above
            raise TemplateError(told(error)) from error
        if addresses:
            raise TemplateError(f"it writes an address in memory, another one each time: {shown(addresses[0])}")
        return text


def _text_of(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def told(error: Exception) -> str:
    """What a template's error says, as one short line."""
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"line {error.lineno}: {shown(error.message, 200)}"
    text = shown(error, 200)
    if isinstance(error, jinja2.TemplateError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks answers, for who asks which tokens are theirs; the text is what stands inside."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    @staticmethod
    def _inside(caller: Callable[[], str]) -> str:
        return caller()


class _Namespace(jinja2.utils.Namespace):
    """Without names that lead out of the sandbox."""

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace's {shown(name)}")
        super().__setitem__(name, value)


def _environment(day: str) -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    del environment.globals["lipsum"], environment.filters["random"]
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _clock(datetime.date.fromisoformat(day))
    environment.globals["namespace"] = _Namespace
    return environment


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # jinja's own escapes what HTML gives a meaning to
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: Any) -> None:
    raise jinja2.TemplateError(str(message))


def _clock(day: datetime.date) -> Callable[[str], str]:
    """`strftime` of that day's first moment, without asking the platform, the locale or the time zone."""
    month, name = _MONTHS[day.month - 1], _DAYS[day.weekday()]
    year, number = day.year, day.timetuple().tm_yday
    numbers = {
        "d": (day.day, 2), "m": (day.month, 2), "y": (year % 100, 2), "H": (0, 2), "I": (12, 2), "M": (0, 2),
        "S": (0, 2), "j": (number, 3), "U": ((number + 6 - day.isoweekday() % 7) // 7, 2),
        "W": ((number + 6 - day.weekday()) // 7, 2), "V": (day.isocalendar().week, 2),
    }  # fmt: skip
    texts = {
        "a": name[:3], "A": name, "b": month[:3], "h": month[:3], "B": month, "Y": f"{year}",
        "G": f"{day.isocalendar().year}",
        "C": f"{year // 100:02}", "e": f"{day.day:2}", "k": " 0", "l": "12", "p": "AM", "P": "am", "f": "000000",
        "z": "+0000",
        "Z": "UTC", "u": f"{day.isoweekday()}", "w": f"{day.isoweekday() % 7}", "n": "\n", "t": "\t", "%": "%",
        "s": f"{(day - datetime.date(1970, 1, 1)).days * 86400}", "F": day.isoformat(), "T": "00:00:00",
        "X": "00:00:00",
        "R": "00:00", "r": "12:00:00 AM", "D": f"{day:%m/%d/}{year % 100:02}", "x": f"{day:%m/%d/}{year % 100:02}",
        "c": f"{name[:3]} {month[:3]} {day.day:2} 00:00:00 {year}",
    }  # fmt: skip

    def directive(found: re.Match[str]) -> str:
        flag, letter = found.groups()
        if letter in numbers:
            value, width = numbers[letter]
            return str(value) if flag else f"{value:0{width}}"
        if letter in texts and not flag:
            return texts[letter]
        if letter and letter in "ekl":
            return texts[letter].strip()
        raise jinja2.TemplateError(f"strftime_now knows no {shown(found[0])}")

    def strftime_now(format: str) -> str:
        return _DIRECTIVE.sub(directive, format)

    return strftime_now
