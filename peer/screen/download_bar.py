"""A bar for what is being downloaded, on standard error; nothing where that is no terminal.

The terminal's screen and `potluck fetch` use it.
"""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn


class DownloadBar:
    """Shows one file after the other; a `peer.link.downloads.Progress`."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._progress: Progress | None = None

    def __call__(self, name: str, done: int, size: int) -> None:
        if not self._console.is_terminal:
            return
        if self._progress is None:
            columns = (TextColumn("{task.description:24.24}"), BarColumn(), DownloadColumn())
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._progress.add_task(name)
            self._progress.start()
        self._progress.update(self._progress.tasks[0].id, description=name, total=size, completed=done)

    def close(self) -> None:
        """Take it away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def __enter__(self) -> DownloadBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
