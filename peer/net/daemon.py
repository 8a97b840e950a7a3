"""The daemon: what p2pd, hivemind's libp2p process, needs so that it neither outlives us nor dies with a Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hivemind.p2p import P2P, P2PDaemonError, P2PHandlerError

logger = logging.getLogger(__name__)

UNREACHABLE = (P2PDaemonError, P2PHandlerError, OSError, TimeoutError, asyncio.IncompleteReadError)


def tell_of_failed_task(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """As asyncio tells of a failed task nobody waited for; of hivemind's, which fail when p2pd ends, only in the log.

    That p2pd has ended is told by who waits for `Node.daemon_ended`; a traceback beside it would alarm the owner.
    """
    failed, error = context.get("future"), context.get("exception")
    ours = not isinstance(failed, asyncio.Task) or "hivemind" not in _source_file(failed).parts
    if ours or not isinstance(error, UNREACHABLE):
        loop.default_exception_handler(context)
    else:
        logger.debug("a task of hivemind ended: %s", error or type(error).__name__)


def _source_file(task: asyncio.Task[Any]) -> Path:
    code = getattr(task.get_coro(), "cr_code", None)
    return Path(code.co_filename if code else "")


@contextlib.contextmanager
def children_in_their_own_session() -> Iterator[None]:
    """While this is entered, asyncio starts subprocesses in sessions of their own.

    hivemind gives no way to say so, and without it a Ctrl-C in the terminal kills p2pd before the round is handed over.
    """
    with _session_lock:
        _session_users.append(None)
        asyncio.subprocess.create_subprocess_exec = _in_own_session  # type: ignore[assignment]
    try:
        yield
    finally:
        with _session_lock:
            _session_users.pop()
            if not _session_users:  # several nodes may start at the same time
                asyncio.subprocess.create_subprocess_exec = _plain_exec


_plain_exec = asyncio.subprocess.create_subprocess_exec
_session_lock = threading.Lock()
_session_users: list[None] = []


async def _in_own_session(*args, **kwargs):  # type: ignore[no-untyped-def]
    return await _plain_exec(*args, **{**kwargs, "start_new_session": True})


def sockets(p2p: P2P) -> list[str]:
    return [str(p2p._daemon_listen_maddr["unix"]), str(p2p._client_listen_maddr["unix"])]


def start_reaper(p2p: P2P) -> subprocess.Popen[bytes]:
    """A shell that waits for this process to end, however it ends, and then takes p2pd and its sockets away.

    It holds the reading end of a pipe whose other end only this process has: the kernel closes it even on kill -9.
    """
    script = 'cat >/dev/null; kill "$1" 2>/dev/null; sleep 1; kill -9 "$1" 2>/dev/null; rm -f "$2" "$3"'
    return subprocess.Popen(
        ["/bin/sh", "-c", script, "potluck-reaper", str(p2p._child.pid), *sockets(p2p)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
