"""What AdamW remembers, on disk for the next start; saved while the members average, when no step is done.

`trainer` begins a save when it has handed over, and waits for its end before it works on. As that may cost time when the
save takes longer than the averaging, the next one comes only when a hundred times as long has passed.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

from peer.training.work import LocalWork

LEAST_PAUSE_S = 10.0  # between two saves
SHARE = 0.01  # of the time that saving may take


class Moments:
    """Saves the memory of one peer's inner optimizer into `path`; from the trainer's thread."""

    def __init__(self, work: LocalWork, path: Path) -> None:
        self._work, self._path = work, path
        self._thread: threading.Thread | None = None
        self._due = time.monotonic()

    def load(self) -> bool:
        """Take over what the last start has left."""
        return self._work.load_optimizer(self._path)

    def begin_save(self) -> None:
        """Save in a thread of its own, if it is time; nothing may step before `wait` has returned."""
        if time.monotonic() >= self._due:
            self._thread = threading.Thread(target=self._save, name="save-optimizer", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Wait until a save that was begun is done."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _save(self) -> None:
        started = time.monotonic()
        self._work.save_optimizer(self._path)
        took_s = time.monotonic() - started
        self._due = time.monotonic() + max(LEAST_PAUSE_S, took_s / SHARE)
