"""`--help` and what is said of wrong usage, in the user's language: typer writes English, and is made to translate.

Called by the command line alone; imports nothing heavy.
"""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Sequence
from typing import Any

import typer

from protocol import words

# click's, which typer brings along under one name or another
UsageError: Any = typer.BadParameter.__base__
_NAMES = 30  # columns for the names of options
_WIDTH = 80


def run(command: Any) -> int:
    """Run a command line; returns its exit code.

    Raises:
        PotluckError: what the command raises.
    """
    words.choose(_language(sys.argv[1:]))
    if words.language_of_user() == "zh":
        _translate(command)
    try:
        code = command(prog_name="potluck", standalone_mode=False)
    except UsageError as error:
        said = io.StringIO()
        error.show(file=said)
        sys.stderr.write("".join(words.told(line) for line in said.getvalue().splitlines(keepends=True)))
        return int(error.exit_code)
    except typer.Abort:
        return 1
    return code if isinstance(code, int) else 0


def _language(arguments: Sequence[str]) -> str | None:
    """What the last `--lang` says, wherever it stands: help ends the program before the option would be read.

    >>> _language(["join", "--help", "--lang", "zh"]), _language(["join", "--lang=en", "--help"]), _language(["join"])
    ('zh', 'en', None)
    """
    given = [one.partition("=")[2] for one in arguments if one.startswith("--lang=")]
    given += [after for one, after in itertools.pairwise(arguments) if one == "--lang"]
    return given[-1] if given and given[-1] in words.LANGUAGES else None


def _translate(command: Any) -> None:
    """Let a command and those below it explain themselves in Chinese."""
    base: Any = command.context_class

    class Formatter(base.formatter_class):  # type: ignore[misc]
        def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
            super().write_usage(prog, args, prefix=words.told("Usage:"))

        def write_heading(self, heading: str) -> None:
            self.write(f"{'':>{self.current_indent}}{words.told(heading)}：\n")

        def write_text(self, text: str) -> None:
            for paragraph in text.split("\n\n"):
                for line in wrapped(words.told(" ".join(paragraph.split())), _WIDTH - self.current_indent):
                    self.write(f"{'':>{self.current_indent}}{line}\n")

        def write_dl(self, rows: Sequence[tuple[str, str]], *args: Any, **options: Any) -> None:
            indent = " " * self.current_indent
            for name, help in rows:
                first, *more = wrapped(words.told(help), _WIDTH - len(indent) - _NAMES) or [""]
                if words.columns(name) >= _NAMES:
                    self.write(f"{indent}{name}\n")
                    name = ""
                self.write(f"{indent}{words.padded(name, _NAMES)}{first}\n")
                for line in more:
                    self.write(f"{indent}{'':{_NAMES}}{line}\n")

    class Context(base):  # type: ignore[misc]
        formatter_class = Formatter

    waiting = [command]
    while waiting:
        item = waiting.pop()
        item.context_class = Context
        item.short_help = words.told(" ".join((item.help or "").split("\n\n")[0].split()))
        waiting += getattr(item, "commands", {}).values()


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most so many columns, broken at spaces and between Chinese characters."""
    lines, line = [], ""
    for piece in _pieces(text):
        if line and words.columns(line + piece.rstrip()) > width:
            lines.append(line.rstrip())
            line = piece.lstrip()
        else:
            line += piece
    return [*lines, line.rstrip()] if line.strip() else lines


def _pieces(text: str) -> list[str]:
    """What may stand at the end of a line: words with their space, or one Chinese character with the marks after it."""
    pieces: list[str] = []
    for character in text:
        before = pieces[-1] if pieces else ""
        wide = words.columns(character) == 2
        mark = character in "，。；：！？）」』”、》 "
        if not before or not (mark or (not wide and words.columns(before[-1]) == 1 and before[-1] != " ")):
            pieces.append(character)
        else:
            pieces[-1] += character
    return pieces
