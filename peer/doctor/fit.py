"""Whether a run fits into a computer: memory by `peer.training.memory`, disk by the run's terms. Needs no torch.

The estimate is never too low and at most 1.6 times too high (tests/test_memory.py): what cannot work is only said where
even that much less would be too much. `QuickLook` is what `potluck join` asks before anything is downloaded.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from peer.doctor.finding import Finding
from peer.link.answers import RunDescription
from peer.screen.terms import JoinTerms, size_text
from peer.training.memory import MomentsKind, device_needed_bytes, memory_needed_bytes
from peer.training.model_shape import ModelShape
from protocol.errors import InputError
from protocol.run_spec import RunSpec

TOO_HIGH = 1.6  # the estimate, at most


@dataclass(frozen=True)
class Room:
    """Memory for a run."""

    total_bytes: int  # of the device
    free_bytes: int
    is_own: bool = False  # the device's own; else it is main memory


@dataclass(frozen=True)
class Fit:
    """How a run fits into a room.

    Args:
        needed_bytes: at least, for one sequence.
        recomputing: activations have to be computed again.
        sequences: that fit into what is free, of those that the run's passes may have; 0: not even one.
    """

    room: Room
    needed_bytes: int
    recomputing: bool
    sequences: int


def needed_bytes(
    spec: RunSpec, shape: ModelShape | None, room: Room, sequences: int, recomputing: bool, moments: MomentsKind
) -> int:
    """What passes of so many sequences need of this room."""
    if room.is_own:
        return device_needed_bytes(spec, shape, sequences=sequences, recomputing=recomputing, moments=moments)
    return memory_needed_bytes(spec, shape, sequences=sequences, recomputing=recomputing, moments=moments)


def fit_of(spec: RunSpec, shape: ModelShape | None, room: Room, moments: MomentsKind = "fp32") -> Fit:
    """The largest micro-batch that fits, a power of two or the run's own; computing again only where it must be."""
    plain, again = (needed_bytes(spec, shape, room, 1, recomputing, moments) for recomputing in (False, True))
    recomputing = spec.method.base == "nf4" or plain > room.free_bytes
    needed = again if recomputing else plain
    if needed > room.free_bytes:
        return Fit(room, needed, recomputing, 0)
    sequences, most = 1, spec.inner.micro_batch
    while sequences < most:
        larger = min(2 * sequences, most)
        if needed_bytes(spec, shape, room, larger, recomputing, moments) > room.free_bytes:
            break
        sequences = larger
    return Fit(room, needed, recomputing, sequences)


def of_fit(fit: Fit) -> Finding:
    """Whether the run fits into memory."""
    room, about = fit.room, size_text(fit.needed_bytes)
    total, free = size_text(room.total_bytes), size_text(room.free_bytes)
    if fit.needed_bytes > TOO_HIGH * room.total_bytes:
        text = f"memory: this run needs about {about}, and there is {total} in all"
        return Finding("fit", "bad", text, "choose another --device, another computer or a smaller run")
    if fit.needed_bytes > room.total_bytes:
        text = f"memory: this run may need {about} by a high estimate, and there is {total} in all"
        return Finding("fit", "note", text, "try it with all other programs closed, or join a smaller run")
    if not fit.sequences:
        text = f"memory: this run needs about {about}, and {free} of {total} is free now"
        return Finding("fit", "note", text, "close other programs that use it before you join")
    text = f"memory: the run fits, about {about} of {free} free; up to {fit.sequences} sequences at once"
    if fit.recomputing:
        return Finding("fit", "note", text, "it works; passes are computed twice in part, and take a third more time")
    return Finding("fit", "good", text)


def of_download(terms: JoinTerms, free_bytes: int) -> Finding:
    """Whether the run fits on the disk."""
    load, free = size_text(terms.download_bytes), size_text(free_bytes)
    kept = max(terms.disk_bytes - terms.here_bytes, terms.download_bytes)
    if terms.download_bytes > free_bytes:
        text = f"disk: {load} would be downloaded, and {free} is free"
        return Finding("download", "bad", text, "free some, or name a folder on another disk with --home")
    text = f"disk: {load} to download, in all about {size_text(kept)} more when it runs, {free} free"
    if kept > free_bytes:
        return Finding("download", "note", text, "free some soon, or name a folder on another disk with --home")
    return Finding("download", "good", text)


@dataclass(frozen=True)
class QuickLook:
    """What stops `potluck join` before the download.

    Args:
        room: of the device that would work; None: nothing is trained here.
        home: where runs are kept.
        moments: as this member wants to hold them.
    """

    room: Room | None
    home: Path
    moments: MomentsKind = "fp32"

    def check(self, run: RunDescription, terms: JoinTerms) -> None:
        """Raises: InputError: this computer cannot take part in this run."""
        for finding in self._findings(run, terms):
            if finding.level == "bad":
                raise InputError(finding.text, finding.remedy)

    def _findings(self, run: RunDescription, terms: JoinTerms) -> Iterator[Finding]:
        if self.room is not None:
            yield of_fit(fit_of(run.card.spec, run.shape, self.room, self.moments))
        yield of_download(terms, shutil.disk_usage(self.home).free)
