"""Keeps transformers' progress bars and reports off the screen: what a person sees is the command line's business."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Silence loading and saving inside the block; restores what was set before."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def no_reports() -> Iterator[None]:
    """Silence warnings about what was loaded, for a caller who looks at that itself; restores what was set before."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
