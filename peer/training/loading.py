"""Turns what transformers raises over a broken folder into one error for people.

Its loaders raise nearly everything over a config.json that makes no sense; to a host all of it means the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError

from peer.training.quiet import no_progress_bars
from protocol.errors import InputError

# what was seen when each value of each file was changed in turn
_RAISED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)


@contextmanager
def loading(folder: Path, what: str) -> Iterator[None]:
    """Load something from `folder` inside the block, without progress bars.

    Args:
        what: "causal LM", say; names it in the error.

    Raises:
        InputError: the loader failed.
    """
    try:
        with no_progress_bars():
            yield
    except _RAISED as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"{folder}: not a {what} that transformers can load: {' '.join(line.strip() for line in lines[:2])}",
            "give a folder that `from_pretrained` loads without trust_remote_code",
        ) from error
