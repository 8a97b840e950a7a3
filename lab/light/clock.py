"""A slower clock, for communities that this machine has no room for: whoever waits a second waits several.

What is measured is processor time, and a clock that is behind takes none. So that 64 members on two cores do not miss
each other's deadlines, their processes are told that less time has passed, and wait as much longer. All times that they
see, say and write are those of the slow clock; p2pd knows nothing of it.
"""

from __future__ import annotations

import selectors
import threading
import time
from typing import Any


def slow_down(times: float) -> None:
    """Slow this process's clock down from now on, and that of each process that it forks."""
    select, wait, sleep = selectors.EpollSelector.select, threading.Condition.wait, time.sleep

    def select_later(self: Any, timeout: float | None = None) -> Any:
        return select(self, timeout if timeout is None else timeout * times)

    def wait_longer(self: Any, timeout: float | None = None) -> bool:
        return wait(self, timeout if timeout is None else timeout * times)

    time.monotonic = _slowed(time.monotonic, times)  # asyncio's loops and time-outs go by it
    time.time = _slowed(time.time, times)
    time.sleep = lambda seconds: sleep(float(seconds) * times)  # type: ignore[assignment]
    selectors.EpollSelector.select = select_later  # type: ignore[method-assign]
    threading.Condition.wait = wait_longer  # type: ignore[method-assign]  # events, queues and futures wait by it


def _slowed(clock: Any, times: float) -> Any:
    started = clock()
    return lambda: started + (clock() - started) / times
