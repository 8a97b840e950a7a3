"""What the inner optimizer remembers, on disk for the next start; saved while members average and no step is done.

`trainer` begins a save when it has handed over, and waits for its end before it works on. As that may cost time when
the save takes longer than the averaging, the next one comes only when a hundred times as long has passed.
"""

from __future__ import annotations

import time
from pathlib import Path

from peer.training.work import LocalWork
from protocol.parts import Job, Told

LEAST_PAUSE_S = 10.0  # between two saves
SHARE = 0.01  # of the time that saving may take


class Moments:
    """Saves the memory of one peer's inner optimizer into `path`; from the trainer's thread.

    Args:
        on_failure: told when a save fails by a mistake of ours; the training goes on.
    """

    def __init__(self, work: LocalWork, path: Path, on_failure: Told = lambda failure: None) -> None:
        self._work, self._path, self._on_failure = work, path, on_failure
        self._saving: Job | None = None
        self._due = time.monotonic()

    def load(self) -> bool:
        """Take over what the last start has left."""
        return self._work.load_optimizer(self._path)

    def begin_save(self) -> None:
        """Save in a thread of its own, if it is time; nothing may step before `wait` has returned."""
        if time.monotonic() >= self._due:
            self._saving = Job("save-optimizer", self._save, self._on_failure)

    def wait(self) -> None:
        """Wait until a save that was begun is done."""
        if self._saving is not None:
            self._saving.join()
            self._saving = None

    def _save(self) -> None:
        started = time.monotonic()
        self._work.save_optimizer(self._path)
        took_s = time.monotonic() - started
        self._due = time.monotonic() + max(LEAST_PAUSE_S, took_s / SHARE)
