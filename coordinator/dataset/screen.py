"""What `potluck data prepare` shows: a bar on a terminal, a line now and then elsewhere, and what came of it."""

from __future__ import annotations

import json
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from coordinator.dataset import prepare
from protocol import words

LINE_EVERY_S = 15.0  # where there is no terminal
SHOWN_BAD = 10  # of bad records, on the screen; all are in the file


class PrepareScreen:
    """One screen for one preparation; a `with` block takes the bar away."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._console = Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._last_line = time.monotonic()
        self._began: float | None = None  # when it first heard how far it is

    def __enter__(self) -> PrepareScreen:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away; harmless twice."""
        if self._bar is not None:
            self._bar.stop()

    def tell(self, line: str) -> None:
        """What is worth a line of its own."""
        if not self._as_json:
            self._console.print(words.told(line), soft_wrap=True, markup=False)

    def show(self, progress: prepare.Progress) -> None:
        """How far it is."""
        self._began = self._began or time.monotonic()
        if self._as_json:
            return
        speed = self._tokens_per_s(progress)
        done, size = f"{progress.done_bytes / 1e6:,.0f}", f"{progress.size_bytes / 1e6:,.0f}"
        bad = f", {progress.bad:,} bad records" if progress.bad else ""
        line = words.told(f"{done} of {size} MB, {progress.tokens:,} tokens, {speed:,.0f} tokens/s{bad}")
        if self._console.is_terminal:
            if self._bar is None:
                columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
                self._bar = Progress(*columns, console=self._console, transient=True)
                self._task = self._bar.add_task("", total=None)
                self._bar.start()
            self._bar.update(self._task, description=line, total=progress.size_bytes, completed=progress.done_bytes)
        elif time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._last_line = time.monotonic()
            self._console.print(line, soft_wrap=True)

    def ended(self, prepared: prepare.Prepared, folder: str) -> None:
        """What came of it, on standard output."""
        speed = self._tokens_per_s(prepared.progress)
        if self._as_json:
            self._write_json(prepared, folder, speed)
            return
        lines = [
            *sentences(prepared, folder),
            f"{prepared.progress.new_tokens:,} tokens were prepared now, {speed:,.0f} tokens/s",
            f"root: {prepared.root}",
        ]
        sys.stdout.write("".join(words.shown(words.told(line)) + "\n" for line in lines))

    def _tokens_per_s(self, progress: prepare.Progress) -> float:
        return progress.new_tokens / max(1e-3, time.monotonic() - (self._began or 0.0))

    def _write_json(self, prepared: prepare.Prepared, folder: str, speed: float) -> None:
        value = {
            "root": prepared.root,
            "folder": folder,
            "sources": [source.to_json() for source in prepared.report.sources],
            "bad": [item._asdict() for item in prepared.report.bad[:SHOWN_BAD]],
            "held_out": prepared.manifest.held_out._asdict(),
            "template_date": prepared.sequences.template_date,
            "new_tokens": prepared.progress.new_tokens,
            "tokens_per_s": round(speed, 3),
        }
        sys.stdout.write(json.dumps(value) + "\n")


def sentences(prepared: prepare.Prepared, folder: str) -> list[str]:
    """What was found in the sources, a line each."""
    lines: list[str] = []
    for source in prepared.report.sources:
        bad = f", {source.bad:,} bad records left out" if source.bad else ""
        lines.append(
            f"{source.name}: {source.files:,} files, {source.records:,} records, {source.sequences:,} sequences, "
            f"{source.tokens:,} tokens, {source.size_bytes / 1e6:,.1f} MB{bad}"
        )
        lines += [f"{source.name}: {sentence}" for sentence in source.notes.sentences()]
    lines += [str(item) for item in prepared.report.bad[:SHOWN_BAD]]
    if len(prepared.report.bad) > SHOWN_BAD:
        lines.append(f"more bad records are named in {folder}/bad-records.jsonl")
    held_out = prepared.manifest.held_out
    lines.append(f"held out: {held_out.sequences:,} sequences, {held_out.loss_tokens:,} tokens that are predicted")
    return lines
