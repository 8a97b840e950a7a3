"""Keeps the rendezvous running beside the coordinator: a child process in which peers first meet. `host` opens it.

The child is `python -m peer.net.rendezvous`; only its command line is known here. It prints one JSON line when it can
be reached and ends when its standard input is closed, so it does not outlive the host. When it dies it is started
again; while it is away peers are told of each other alone, and training goes on.
"""

from __future__ import annotations

import logging
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

from protocol import canonical
from protocol.backoff import Backoff
from protocol.errors import FormatError
from protocol.parts import Job, SupervisedThread, Told
from protocol.rpc import MAX_ADDRESSES, check_swarm_address

logger = logging.getLogger(__name__)

READY_S = 60.0  # it imports hivemind and starts libp2p
STOP_S = 10.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # before it is started again
_MAX_LINE_BYTES = 64 * 1024
_MAX_LOG_BYTES, _MAX_REASON_CHARS = 1 << 20, 300


class Rendezvous:
    """The child process and the thread that watches it; use as a context manager.

    Args:
        command: what to run.
        log: file for what the child says on standard error.
        on_failure: told when the thread fails by a mistake of ours; it is started again.
    """

    def __init__(self, command: list[str], log: Path, on_failure: Told = lambda failure: None) -> None:
        self._command, self._log, self._on_failure = command, log, on_failure
        self._addresses: list[str] = []
        self.reason = ""  # why it is away, in its own last words
        self._closing = threading.Event()
        self._ready = threading.Event()
        restarts = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        self._part = SupervisedThread("rendezvous", self._watch, self._closing, on_failure, restarts, vital=False)

    @classmethod
    def for_run(
        cls,
        identity: Path,
        listen: str,
        announce: str | None,
        log: Path,
        on_failure: Told = lambda failure: None,
    ) -> Rendezvous:
        """The rendezvous of a run, listening on `listen` (`host:port`) and reached at `announce`."""
        command = [sys.executable, "-m", "peer.net.rendezvous", "--identity", str(identity), "--listen", listen]
        return cls(command + (["--announce", announce] if announce else []), log, on_failure)

    def addresses(self) -> list[str]:
        """Where it is reached now; empty while it is away."""
        return list(self._addresses)

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until it can be reached, or has failed to start; says which."""
        self._ready.wait(timeout_s)
        return bool(self._addresses)

    def __enter__(self) -> Rendezvous:
        self._part.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._part.join(3 * STOP_S)

    def _watch(self) -> None:
        backoff = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        while not self._closing.is_set():
            started = time.monotonic()
            self._run_once()
            self._addresses = []
            self._ready.set()
            if self._closing.is_set():
                return
            if time.monotonic() - started > LONGEST_PAUSE_S:
                backoff.worked()
            pause_s = backoff.failed()
            logger.warning(
                "the rendezvous is away: %s (see %s); peers find each other through the coordinator; starting it again "
                "in %.0f s",
                self.reason or "it says nothing",
                self._log,
                pause_s,
            )
            self._closing.wait(pause_s)

    def _run_once(self) -> None:
        """Start the child and stay until it ends or the host closes."""
        self.reason = ""
        try:
            with self._log.open("ab") as log:
                said_from = log.tell()
                child = subprocess.Popen(
                    self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True
                )
        except OSError as error:
            self.reason = f"it cannot be started: {error}"
            return
        try:
            self._addresses = self._first_line_addresses(child)
            if self._addresses:
                logger.info("rendezvous at %s", self._addresses[0])
                self._ready.set()
                while child.poll() is None and not self._closing.wait(0.5):
                    pass
        finally:
            _stop(child)
            self.reason = _last_words(self._log, said_from)

    def _first_line_addresses(self, child: subprocess.Popen[bytes]) -> list[str]:
        """The addresses in the child's first line; empty if none comes in time."""
        stdout, lines = child.stdout, queue.Queue[bytes]()
        assert stdout is not None
        Job("rendezvous-output", lambda: _read_lines(stdout, lines), self._on_failure)
        end = time.monotonic() + READY_S
        while time.monotonic() < end and not self._closing.is_set():
            try:
                line = lines.get(timeout=0.2)
            except queue.Empty:
                continue
            try:
                value: Any = canonical.loads(line, max_bytes=_MAX_LINE_BYTES)
                addresses = [str(address) for address in value["addresses"][:MAX_ADDRESSES]]
                for address in addresses:
                    check_swarm_address(address)
            except (FormatError, KeyError, TypeError) as error:
                logger.warning("the rendezvous said something odd: %s", error)
                return []
            return addresses
        return []


def _read_lines(stream: IO[bytes], lines: queue.Queue[bytes]) -> None:
    """Hand on the first line, and swallow the rest so that the child never blocks."""
    with stream:
        lines.put(stream.readline(_MAX_LINE_BYTES))
        while stream.read(4096):
            pass


def _last_words(log: Path, start: int) -> str:
    """The child's error, or the last line that it wrote, from byte `start` of its log on."""
    try:
        with log.open("rb") as file:
            file.seek(start)
            lines = file.read(_MAX_LOG_BYTES).decode(errors="replace").splitlines()
    except OSError as error:
        return f"{log}: {error.strerror}"
    told = [line.strip() for line in lines if line.strip()]
    errors = [line.removeprefix("error: ") for line in told if line.startswith("error: ")]
    return (errors or told or [""])[-1][:_MAX_REASON_CHARS]


def _stop(child: subprocess.Popen[bytes]) -> None:
    if child.stdin is not None:
        child.stdin.close()
    for end in (child.terminate, child.kill, None):
        try:
            child.wait(timeout=STOP_S)
            break
        except subprocess.TimeoutExpired:
            if end is not None:
                end()
