"""Text from outside as one short line: for messages that quote what a file holds."""

from __future__ import annotations

from typing import Any

MAX_CHARS = 80


def shown(value: Any, max_chars: int = MAX_CHARS) -> str:
    r"""The value's text without line ends, control characters and halves of surrogate pairs, cut to a readable length.

    >>> shown("two\nlines"), shown("\ud83d"), shown("long " * 100, 12)
    ('two lines', '\\ud83d', 'long long l…')
    """
    text = " ".join(str(value)[: 8 * max_chars].split())
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return plain if len(plain) <= max_chars else plain[: max_chars - 1] + "…"


def named(names: Any, most: int = 8) -> str:
    """Names as a list to read: at most so many, each cut.

    >>> named(["id", "source"]), named("abcd", 2)
    ('id, source', 'a, b, …')
    """
    items = [shown(name, 40) for name in names]
    return ", ".join(items[:most] + ["…"] * (len(items) > most))
