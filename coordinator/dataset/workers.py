"""Processes that prepare chunks, one for each core; each reads one chunk at a time, so memory does not grow with data.

They are started anew and not forked: nothing of this process is shared with them but the job. When it is killed, they
end by themselves.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from types import TracebackType

from coordinator.dataset.chunk_files import ChunkJob
from coordinator.dataset.chunks import Chunk
from protocol.errors import InputError, NetworkError

PAUSES_S = (1.0, 5.0, 25.0)  # before a chunk whose file could not be reached is tried again

_job: list[ChunkJob] = []  # of a process that was started here


class ChunkWorkers(contextlib.AbstractContextManager["ChunkWorkers"]):
    """Those of one preparation.

    Args:
        processes: how many; 0: chunks are prepared in this one, where they are handed in.
    """

    def __init__(self, processes: int, job: ChunkJob) -> None:
        self._job = job
        self._pool: ProcessPoolExecutor | None = None
        if processes:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(processes, spawn, initializer=_begin, initargs=(job,))
        self.most_waiting = 2 * processes + 1  # chunks handed in and not taken back

    def hand_in(self, chunk: Chunk) -> Future[None]:
        """To be prepared when its turn comes."""
        if self._pool is not None:
            try:
                return self._pool.submit(_do, chunk)
            except BrokenProcessPool as error:
                raise _killed() from error
        future: Future[None] = Future()
        self._job.do(chunk)
        future.set_result(None)
        return future

    @staticmethod
    def take_back(future: Future[None]) -> None:
        """Wait until a chunk is done. Raises: InputError: as `ChunkJob.do`, or its process was killed."""
        try:
            future.result()
        except BrokenProcessPool as error:
            raise _killed() from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _killed() -> InputError:
    return InputError(
        "a process of the preparation was killed, for want of memory perhaps",
        "the same command goes on from here; fewer --processes need less memory",
    )


# ---- in such a process -----------------------------------------------------------------------------------------------


def _begin(job: ChunkJob) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it ends it
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes have all cores already
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _job.append(job)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _do(chunk: Chunk) -> None:
    for pause_s in PAUSES_S:
        try:
            return _job[0].do(chunk)
        except NetworkError:  # told when it was the last try
            time.sleep(pause_s)
    _job[0].do(chunk)
