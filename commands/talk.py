"""How the commands talk: results on standard output, all else on standard error, in the user's language."""

from __future__ import annotations

import importlib.util
import logging
import platform
import sys
from typing import Any

import typer

from protocol import words
from protocol.errors import InputError
from protocol.installed import this_installation
from protocol.release import this_release

logger = logging.getLogger(__name__)


def say(message: str) -> None:
    """One line on standard output, in the user's language."""
    typer.echo(words.told(message))


def need(extra: str, *modules: str) -> None:
    """Say which extra to install when one of its modules is not there."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"this needs {', '.join(missing)}", this_installation().add(extra))


class _StderrOfTheMoment(logging.StreamHandler[Any]):
    """Writes to what sys.stderr is when it writes: a live table on the screen redirects it, to stay whole."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def log_to_stderr(verbose: bool) -> None:
    """Warnings, and with `verbose` everything; of others' libraries only warnings."""
    level = logging.DEBUG if verbose else logging.WARNING
    handlers = [_StderrOfTheMoment()]
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", handlers=handlers)
    for noisy in ("asyncio", "hivemind", "httpx", "urllib3", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logger.info("%s, Python %s, %s", this_release(), platform.python_version(), platform.platform())
