"""Options and arguments that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protocol import words
from protocol.errors import InputError


def one_of(option: str, given: str, allowed: tuple[str, ...]) -> None:
    """Refuse a choice that there is none of. Raises: InputError."""
    if given not in allowed:
        raise InputError(f"{option} {given}: no such choice", f"use one of {', '.join(allowed)}")


def _lang(given: str | None) -> str | None:
    if given is not None:
        one_of("--lang", given, words.LANGUAGES)
    return words.choose(given)


Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more on standard error.")]
Lang = Annotated[
    str | None,
    typer.Option("--lang", help="en or zh [default: from your locale].", callback=_lang, is_eager=True),
]
Home = Annotated[
    Path | None, typer.Option("--home", help="Where identity, runs and receipts are kept [default: your data folder].")
]
InviteLine = Annotated[
    str, typer.Argument(metavar="INVITE", help="The line the host sent you, or a file that holds it.")
]
