"""A community of light members: started, brought together, watched to its last round, and ended, whatever happens.

    logs = run(Plan(members=24, max_group=8, rounds=60, round_s=1.5), Path("/tmp/light"), timeout_s=600)

`run` starts `python -m lab.light.community`, which imports once what all members import, forks each of them, and ends
with all of them when its standard input is closed.
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
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from lab import REPOSITORY
from lab.light.clock import slow_down
from lab.light.log import MemberLog
from lab.light.plan import Plan

AT_ONCE = 8  # members that start at the same time: each starts a p2pd
START_S = 300.0  # for all to start and to hear each other
END_S = 60.0


def run(plan: Plan, folder: Path, timeout_s: float) -> list[MemberLog]:
    """Let a community make all of its rounds, and read what its members wrote.

    Args:
        folder: for the members' files, one log and one list of rounds each.
        timeout_s: for all rounds, besides the time to start; by the members' clock.

    Raises:
        AssertionError: not all members have all rounds by then.
    """
    command = [sys.executable, "-m", "lab.light.community", str(folder), plan.to_json(), str(timeout_s)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, cwd=REPOSITORY, env=environment) as process:
        try:
            code = process.wait((START_S + timeout_s + END_S) * plan.slower)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2 * END_S)
            process.kill()
    assert code == 0, f"the community ended with {code}; its members' logs are in {folder}"
    return [MemberLog.read(plan, index, folder) for index in range(plan.members)]


# ---- the other process -----------------------------------------------------------------------------------------------


class Community:
    """The members' parent: one thread, so that it can be forked."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan, self._folder = plan, folder
        self._pids: list[int] = []
        self._channels: list[socket.socket] = []
        self._lines: list[TextIO] = []

    def begin(self) -> None:
        """Start all members, and let them work when each hears all the others."""
        deadline, addresses = time.monotonic() + START_S, []
        while len(self._pids) < self._plan.members:
            first = len(self._pids)
            for _ in range(min(AT_ONCE, self._plan.members - first)):
                self._fork(len(self._pids))
            for index in range(first, len(self._pids)):
                addresses.append(self._heard(index, "started", deadline)["addresses"])
        for index in range(self._plan.members):
            earlier = [address for known in addresses[:index] for address in known]
            self._order(index, order="meet", addresses=earlier)
        self.all_say("met", deadline)
        for index in range(self._plan.members):
            self._order(index, order="begin")

    def all_say(self, event: str, deadline: float) -> list[dict[str, Any]]:
        """Wait until each member has said this."""
        return [self._heard(index, event, deadline) for index in range(self._plan.members)]

    def end(self) -> None:
        """Tell all to end, and see that they do."""
        for channel in self._channels:
            with contextlib.suppress(OSError):
                channel.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + END_S / self._plan.slower
        for pid in self._pids:
            while os.waitpid(pid, os.WNOHANG) == (0, 0):
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.05)

    def _fork(self, index: int) -> None:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            for channel in [ours, *self._channels]:
                channel.close()
            _become(self._plan, index, self._folder, theirs)
        theirs.close()
        self._pids.append(pid)
        self._channels.append(ours)
        self._lines.append(ours.makefile())

    def _order(self, index: int, **order: Any) -> None:
        self._channels[index].sendall(json.dumps(order).encode() + b"\n")

    def _heard(self, index: int, event: str, deadline: float) -> dict[str, Any]:
        """A member's next word, each of which is one line."""
        left_s = max(deadline - time.monotonic(), 0.0)
        ready, _, _ = select.select([self._channels[index], sys.stdin], [], [], left_s * self._plan.slower)
        assert sys.stdin not in ready, "whoever has started this community is gone"
        assert ready, f"member {index} has not said {event!r} in time"
        line = self._lines[index].readline()
        assert line, f"member {index} has ended, before it said {event!r}"
        said: dict[str, Any] = json.loads(line)
        assert said["event"] == event, f"member {index}: expected {event!r}, got {said}"
        return said


def _become(plan: Plan, index: int, folder: Path, channel: socket.socket) -> None:
    """In the child: be a member, and never return."""
    from lab.light import member

    code = 1
    try:
        os.setsid()
        nothing, log = os.open(os.devnull, os.O_RDONLY), (folder / f"member-{index:02}.log").open("w")
        for number, descriptor in enumerate([nothing, log.fileno(), log.fileno()]):
            os.dup2(descriptor, number)
        member.be(plan, index, folder, channel)
        code = 0
    except BaseException:  # noqa: BLE001 - it ends here, and the traceback is for its log
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


@contextlib.contextmanager
def _community(plan: Plan, folder: Path) -> Iterator[Community]:
    community = Community(plan, folder)
    try:
        yield community
    finally:
        community.end()


def main() -> None:
    folder, plan, timeout_s = Path(sys.argv[1]), Plan.from_json(sys.argv[2]), float(sys.argv[3])
    slow_down(plan.slower)
    from lab.light import member  # noqa: F401 - imported once for all members, and by the slow clock

    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"a process with {threads} threads cannot be forked safely"
    gc.freeze()  # what is shared stays shared: no collection in a member copies it
    with _community(plan, folder) as community:
        community.begin()
        done = community.all_say("done", time.monotonic() + timeout_s)
        (folder / "memory.json").write_text(json.dumps([said["memory_mb"] for said in done]))


if __name__ == "__main__":
    main()
