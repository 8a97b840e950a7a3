"""The first words of `potluck join` and `potluck host`: what they need takes seconds to load, and that is said."""

from __future__ import annotations

import importlib
import sys

from peer.screen.messages import text
from protocol import words
from protocol.release import this_release


def starting(*modules: str, quiet: bool) -> None:
    """Import what is needed, and say so: on a terminal which module it is at, elsewhere once; `quiet`: not at all."""
    language = words.language_of_user()
    live = sys.stderr.isatty() and not quiet
    if not live and not quiet:
        sys.stderr.write(text("starting", language, release=this_release()) + "\n")
    for number, name in enumerate(modules, 1):
        if live:
            line = text("loading-part", language, name=name.partition(".")[0], number=number, count=len(modules))
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()
        importlib.import_module(name)
    if live:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
