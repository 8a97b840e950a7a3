"""A passphrase as it comes: typed without an echo, or the one line of a file."""

from __future__ import annotations

import contextlib
import getpass
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import typer

from protocol import words
from protocol.errors import InputError


def ask(*, twice: bool) -> str:
    """What is typed.

    Args:
        twice: it is a new one; a slip of the hand would lock its owner out.

    Raises:
        InputError: nobody is there, or the two differ.
    """
    if not sys.stdin.isatty():
        raise InputError("nobody is there to type a passphrase", "give --passphrase-file")
    with _echo_comes_back():
        given = getpass.getpass(words.labelled("passphrase:", ""))
        if twice and given != getpass.getpass(words.labelled("once more:", "")):
            raise InputError("the two passphrases differ", "nothing was written; try again")
        return given


@contextlib.contextmanager
def _echo_comes_back() -> Iterator[None]:
    """At Ctrl-C the terminal shows again what is typed, before the program ends."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except EOFError as error:
        raise InputError("no passphrase was given", "nothing was written; try again") from error
    finally:
        signal.signal(signal.SIGINT, before)


def read_line(file: Path, max_bytes: int) -> str:
    """The only line of a file.

    Raises:
        InputError: it cannot be read, is no text, or has another number of lines.
    """
    try:
        with file.open("rb") as source:
            data = source.read(max_bytes + 1)
        lines = data.decode("utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}", "give a file that you may read") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8", "write the passphrase as text in UTF-8") from error
    if len(data) > max_bytes or len(lines) != 1:
        raise InputError(f"{file}: expected one line, the passphrase", "write it alone into the file")
    return lines[0]
