"""Starts `potluck` processes in a fraction of a second: imports once what they all import, and forks for each.

Importing torch, hivemind and transformers takes longer than the rounds that the end-to-end tests are about. A process
that comes from here is `potluck` as it stands on disk, in a process and a session of its own; only the imports are
shared. So is the rendezvous that a host starts: the host's child, too, and ready before the host is.

    with WarmStart() as starter:
        process = starter.start(["verify", "--help"], stdout=pipe, stderr=log, environment={}, folder=Path("/tmp"))
        process.wait(10)

The other half, below, is run as `python -m lab.warm_start`: it takes requests on its standard input, a Unix socket, and
says on the same socket which processes have ended.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from pathlib import Path
from typing import Any, NoReturn

from lab import REPOSITORY

READY_S = 120.0
END_S = 20.0
MAX_REQUEST_BYTES = 64 * 1024


class WarmProcess:
    """One process that was forked; as much of subprocess.Popen as the tests use."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.ended = threading.Event()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float) -> int:
        if not self.ended.wait(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class WarmStart:
    """The tests' side: starts the other half, and asks it for processes.

    Args:
        environment: what all of them have beyond their own from before they import anything, such as LD_PRELOAD.
    """

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "lab.warm_start"],
                stdin=theirs,
                env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | (environment or {}),
                cwd=REPOSITORY,
                start_new_session=True,
            )
        self._processes: dict[int, WarmProcess] = {}
        self._news = threading.Condition()
        self._newest: int | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> WarmStart:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        try:
            self._server.wait(END_S)
        except subprocess.TimeoutExpired:  # it is importing still, on a machine that is busy
            self._server.kill()
            self._server.wait(END_S)
        self._reader.join(END_S)
        self._socket.close()

    def start(
        self,
        arguments: list[str],
        *,
        stdout: int,
        stderr: int,
        environment: dict[str, str],
        folder: Path,
        namespace: str | None = None,
    ) -> WarmProcess:
        """Run `potluck` with these arguments; the two descriptors become its standard output and error.

        `namespace` is the file of the network namespace that it is to live in, see `WanLab.namespace`; default: this
        one.
        """
        request = {"arguments": arguments, "environment": environment, "folder": str(folder), "namespace": namespace}
        with self._news:
            self._newest = None
            socket.send_fds(self._socket, [json.dumps(request).encode()], [stdout, stderr])
            if not self._news.wait_for(lambda: self._newest is not None, READY_S):
                raise AssertionError(f"no process was started within {READY_S:.0f} s")
            assert self._newest is not None
            return self._processes[self._newest]

    def run(
        self, arguments: list[str], *, environment: dict[str, str], folder: Path, timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """Run `potluck` with these arguments to its end, as `subprocess.run` does."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
            process = self.start(
                arguments, stdout=out.fileno(), stderr=errors.fileno(), environment=environment, folder=folder
            )
            try:
                code = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            said = [os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode() for file in (out, errors)]
        return subprocess.CompletedProcess(arguments, code, *said)

    def _read(self) -> None:
        while data := self._socket.recv(1024):
            told = json.loads(data)
            with self._news:
                if "code" in told:
                    process = self._processes[told["pid"]]
                    process.returncode = told["code"]
                    process.ended.set()
                else:
                    self._processes[told["pid"]] = WarmProcess(told["pid"])
                    self._newest = told["pid"]
                self._news.notify_all()


# ---- the other half --------------------------------------------------------------------------------------------------


def serve(requests: socket.socket) -> dict[str, Any] | None:
    """Fork for each request. Returns the request in the child, and None in the parent when the tests are over.

    What still runs then is killed: tests that end well have stopped theirs, and those that were killed cannot any more.
    """
    children: set[int] = set()
    try:
        return _serve(requests, children)
    except BrokenPipeError:  # nobody is there to be told
        return None
    finally:
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _serve(requests: socket.socket, children: set[int]) -> dict[str, Any] | None:
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([requests, wake], [], [])
        if wake in ready:
            os.read(wake, 1024)
            _tell_ended(requests, children)
        if requests not in ready:
            continue
        data, descriptors, _, _ = socket.recv_fds(requests, MAX_REQUEST_BYTES, 2)
        if not data:
            return None
        pid = os.fork()
        if pid == 0:
            children.clear()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            for descriptor in (wake, woken):
                os.close(descriptor)
            return json.loads(data) | {"descriptors": descriptors}
        children.add(pid)
        for descriptor in descriptors:
            os.close(descriptor)
        requests.send(json.dumps({"pid": pid}).encode())


def _tell_ended(requests: socket.socket, children: set[int]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        children.discard(pid)
        requests.send(json.dumps({"pid": pid, "code": os.waitstatus_to_exitcode(status)}).encode())


def become(request: dict[str, Any], requests: socket.socket) -> None:
    """In the child: stand as a fresh process would, and be `potluck`; hostile, broken or paced as it is told to be."""
    import potluck
    from lab import attackers, faults, pacing

    requests.close()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate([nothing, *request["descriptors"]]):
        os.dup2(descriptor, number)
        os.close(descriptor)
    if request["namespace"] is not None:
        from lab.wan.namespace import enter

        with open(request["namespace"], "rb") as file:
            enter(file.fileno())
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    if request["arguments"][0] == "host":
        fork_rendezvous()
    sys.argv = ["potluck", *request["arguments"]]
    attackers.install(request["environment"])
    faults.install(request["environment"])
    pacing.install(request["environment"])
    potluck.main()


class ForkedRendezvous:
    """The host's rendezvous, forked while the host had one thread; as much of subprocess.Popen as the host uses.

    It waits for the host's order and runs then; it ends without one when the host does.
    """

    def __init__(self) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            self._orders.close()
            _wait_for_order(theirs)
        theirs.close()
        self.returncode: int | None = None

    def begin(self, command: list[str], log: int) -> ForkedRendezvous:
        """Run this command of `peer.net.rendezvous`; a file descriptor becomes its standard error."""
        stdin, ours = os.pipe()
        theirs, stdout = os.pipe()
        socket.send_fds(self._orders, [json.dumps(command).encode()], [stdin, stdout, log])
        self._orders.close()
        os.close(stdin)
        os.close(stdout)
        self.stdin, self.stdout = os.fdopen(ours, "wb"), os.fdopen(theirs, "rb")
        return self

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("the rendezvous", timeout)
            time.sleep(0.01)
        return code

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def _wait_for_order(orders: socket.socket) -> NoReturn:
    from peer.net import rendezvous

    data, descriptors, _, _ = socket.recv_fds(orders, MAX_REQUEST_BYTES, 3)
    orders.close()
    if not data:
        os._exit(0)
    os.setsid()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.argv = json.loads(data)
    sys.exit(rendezvous.main())


def fork_rendezvous() -> None:
    """Have the host find its first rendezvous forked already; if that dies, the next one is started as anywhere."""
    import coordinator.rendezvous

    forked, popen = [ForkedRendezvous()], subprocess.Popen

    def start(command: list[str], *, stderr: Any, **options: Any) -> Any:
        if forked and command[1:3] == ["-m", "peer.net.rendezvous"]:
            return forked.pop().begin(command[2:], stderr.fileno())
        return popen(command, stderr=stderr, **options)

    changed = types.SimpleNamespace(**vars(subprocess) | {"Popen": start})
    coordinator.rendezvous.subprocess = changed  # type: ignore[attr-defined]


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # for the children, from their first instant on
    import matplotlib.backends.backend_agg  # noqa: F401
    import peft  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    import coordinator.host
    import coordinator.host_screen  # noqa: F401
    import peer.net.rendezvous
    import peer.screen.terminal
    import peer.volunteer  # noqa: F401

    requests = socket.socket(fileno=os.dup(0))
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"a process with {threads} threads cannot be forked safely"
    gc.freeze()  # what is shared stays shared: no collection in a child copies it
    request = serve(requests)
    if request is not None:
        become(request, requests)


if __name__ == "__main__":
    main()
