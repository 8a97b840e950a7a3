"""How many sequences one forward pass takes on this card: found by trying, and remembered for the next start.

The run's `inner.micro_batch` is the most. The search starts at one sequence (or where the last start ended), measures a
few passes, and doubles as long as the next size fits, is faster per sequence, and does not make a pass so long that the
owner would wait for it. What is out of memory is halved, at once and for good. No torch in here: `peer.training.passes`
says how each pass went.

    >>> search = MicroBatch(most=8)
    >>> for seconds in (1.0, 1.0, 1.0):  # one sequence a second, three times
    ...     search.passed(1, seconds)
    >>> search.size
    2
    >>> search.out_of_memory(2)
    True
    >>> search.size, search.searching
    (1, False)
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from protocol import canonical
from protocol.disk import write_file
from protocol.errors import FormatError, InputError

logger = logging.getLogger(__name__)

PASSES = 3  # measured at each size; the fastest counts, for the first one warms up
FASTER = 1.05  # a doubled size must do this many times the sequences per second
PASS_MOST_S = 4.0  # no search beyond this: the trainer answers its owner and the others between two passes
MAX_FILE_BYTES = 64 * 1024
MAX_KEPT = 64  # sizes in the file
_REMEMBERING = threading.Lock()  # cards of one peer share the file


class MicroBatch:
    """The size for the next forward pass.

    Args:
        most: sequences; the run's `inner.micro_batch`.
        size: to start from; None: one sequence. Where it is `most`, nothing is searched.
        has_room: whether there is memory to try that many sequences; for devices that die rather than refuse.
        on_found: told each size that the search ends at, and each smaller one that came of running out of memory.
    """

    def __init__(
        self,
        most: int,
        size: int | None = None,
        *,
        has_room: Callable[[int], bool] = lambda size: True,
        on_found: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.size = min(size or 1, most)
        self.searching = self.size < most
        self._most, self._has_room, self._on_found = most, has_room, on_found
        self._times: list[float] = []
        self._best: tuple[int, float] | None = None  # (size, seconds a sequence) of the size before

    def passed(self, size: int, seconds: float) -> None:
        """A forward and backward pass over that many sequences went well. Passes of other sizes say nothing."""
        if not self.searching or size != self.size:
            return
        self._times.append(seconds)
        if len(self._times) < PASSES:
            return
        pass_s, before = min(self._times), self._best
        self._times, self._best = [], (size, pass_s / size)
        if before is not None and before[1] < FASTER * pass_s / size:
            self._settle(before[0])
            return
        larger = min(2 * size, self._most)
        if larger == size or larger * pass_s / size > PASS_MOST_S or not self._has_room(larger):
            self._settle(size)
        else:
            self.size = larger

    def out_of_memory(self, size: int) -> bool:
        """A pass over that many sequences did not fit; whether a smaller one is left to try."""
        if size == 1:
            return False
        self._settle(min(self.size, size // 2))
        return True

    def _settle(self, size: int) -> None:
        self.size, self.searching = size, False
        self._on_found(size)


def size_key(device_name: str, precision: str, run: str) -> str:
    """What a size is remembered for: another card, precision or run has another one."""
    return f"{device_name} | {precision} | {run}"


def read_size(path: Path, key: str) -> int | None:
    """The size that was remembered, or None; a file that makes no sense counts as none."""
    size = _read(path).get(key)
    return size if size is not None and size >= 1 else None


def remember_size(path: Path, key: str, size: int) -> None:
    """Keep a size for the next start. A full disk costs that start a search, and nothing else."""
    with _REMEMBERING:
        _write_size(path, key, size)


def _write_size(path: Path, key: str, size: int) -> None:
    sizes = {name: old for name, old in _read(path).items() if name != key}
    kept = dict(list(sizes.items())[-(MAX_KEPT - 1) :]) | {key: size}
    try:
        write_file(path, json.dumps(kept, indent=2).encode())  # in order: the oldest is dropped first
    except InputError as error:
        logger.warning("%s; the next start searches the micro-batch again", error.message)


def _read(path: Path) -> dict[str, int]:
    try:
        with path.open("rb") as file:
            value = canonical.loads(file.read(MAX_FILE_BYTES + 1), max_bytes=MAX_FILE_BYTES)
    except FileNotFoundError:
        return {}
    except (OSError, FormatError) as error:
        logger.warning("%s cannot be read: %s; searching the micro-batch again", path.name, error)
        return {}
    items = value.items() if isinstance(value, dict) else ()
    return {key: size for key, size in items if isinstance(size, int) and not isinstance(size, bool)}
