"""Fault injection: break a peer at a chosen instant of a round, in a real process, whatever else it does.

    faults = Faults(folder)                                  # a folder that all peers of a community share
    number = faults.order(Fault("kill", "reduce", peer="carol"))
    happened = faults.wait(number)                           # once carol is next in `reduce`: what, where, when

A fault is *at round r, in stage s, peer p: kill, freeze, cut, corrupt, delay*. The stages are those of
`peer.round.report.STAGES`, and "serve": the instant before a part of a state is handed to a member that fetches it.
Orders can be given while the peers run. Each is carried out once, by the first peer that it fits.

Production code knows nothing of this. A process that starts with `POTLUCK_FAULTS` and `POTLUCK_FAULTS_NAME` in its
environment puts itself between the engine and its stages: `warm_start` does so for the tests, and for a fresh process

    POTLUCK_FAULTS=FOLDER POTLUCK_FAULTS_NAME=carol python -m lab.faults join INVITE --yes

A driver in the test's own process takes `on_stage=Injector(folder, "carol").telling(...)` (see `swarm_kit.Peer`);
there, kill and freeze would hit the test itself, and are refused.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER, NAME = "POTLUCK_FAULTS", "POTLUCK_FAULTS_NAME"
KINDS = ("kill", "kill p2pd", "freeze", "cut", "corrupt", "delay")
WHAT = ("part", "result", "vote", "state")
HOLD_S = 30.0  # that a peer stands still until the test has done what only it can do
SMALLEST_STATE_BYTES = 4096  # what is shorter is a list of hashes


@dataclass(frozen=True)
class Fault:
    """One order.

    Args:
        kind: kill (SIGKILL of the process itself) · kill p2pd (of its network daemon alone) · freeze (SIGSTOP of it and
            its p2pd for `seconds`, as a laptop that sleeps) · cut (it stands still until the test has cut its cable
            and says `done`) · corrupt (a byte of the next `what` that it sends is another) · delay (its loop sleeps
            for `seconds`).
        stage: where.
        peer: whose; empty: whoever is first there.
        round: not before this one.
        what: with corrupt: part (of its update), result (of its reducing), vote, or state (a part of one that it
            hands on).
    """

    kind: str
    stage: str
    peer: str = ""
    round: int = 0
    seconds: float = 0.0
    what: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS or (self.kind == "corrupt" and self.what not in WHAT):
            raise ValueError(f"expected one of {KINDS}, and of {WHAT} with corrupt, got {self.kind!r} {self.what!r}")


@dataclass(frozen=True)
class Happened:
    """A fault that came about: whose, in which round, and when (Unix seconds)."""

    peer: str
    round: int
    time: float


class Faults:
    """The tests' side."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0
        folder.mkdir(parents=True, exist_ok=True)

    def environment(self, name: str) -> dict[str, str]:
        """What the process of this peer must have in its environment."""
        return {FOLDER: str(self.folder), NAME: name}

    def order(self, fault: Fault) -> int:
        """From now on, whoever it fits carries it out; returns the order's number."""
        self._count += 1
        _write(self.folder / f"{self._count:04d}.order", dataclasses.asdict(fault))
        return self._count

    def wait(self, number: int, timeout_s: float = 240.0) -> Happened:
        """Wait until it has happened; fails when it does not in time."""
        path, deadline = self.folder / f"{number:04d}.happened", time.monotonic() + timeout_s
        while not path.exists():
            if time.monotonic() > deadline:
                order = (self.folder / f"{number:04d}.order").read_text()
                raise AssertionError(f"nobody came to carry this out within {timeout_s:.0f} s: {order}")
            time.sleep(0.005)
        return Happened(**json.loads(path.read_text()))

    def done(self, number: int) -> None:
        """After `cut`: the cable is cut, the peer goes on."""
        (self.folder / f"{number:04d}.done").touch()

    def state_bytes(self, since: float) -> int:
        """Bytes of states that the peers have handed to each other since then (Unix seconds)."""
        lines = [line for path in self.folder.glob("*.served") for line in path.read_text().splitlines()]
        return sum(int(size) for at, size in (line.split() for line in lines) if float(at) >= since)


# ---- in the peer -----------------------------------------------------------------------------------------------------


class Injector:
    """The peer's side: looks at each stage whether there is an order for it.

    Args:
        folder: shared with `Faults`.
        name: this peer's.
        own_process: whether the peer may be killed or stopped without hitting anyone else.
    """

    def __init__(self, folder: Path, name: str, *, own_process: bool = False) -> None:
        self._folder, self._name, self._own_process = folder, name, own_process
        self._corrupt: set[str] = set()
        self._round = 0

    def reached(self, round: int, stage: str) -> None:
        """This peer is there now: carry out what was ordered for it."""
        self._round = round
        for path in sorted(self._folder.glob("*.order")):
            try:
                fault = Fault(**json.loads(path.read_text()))
                if fault.stage != stage or fault.peer not in ("", self._name) or round < fault.round:
                    continue
                path.rename(path.with_suffix(".taken"))  # whoever succeeds has it
            except FileNotFoundError:
                continue
            _write(path.with_suffix(".happened"), {"peer": self._name, "round": round, "time": time.time()})
            self._carry_out(fault, path)

    def _carry_out(self, fault: Fault, path: Path) -> None:
        if fault.kind == "corrupt":
            self._corrupt.add(fault.what)
        elif fault.kind == "delay":
            time.sleep(fault.seconds)
        elif fault.kind == "cut":
            deadline = time.monotonic() + HOLD_S
            while not path.with_suffix(".done").exists() and time.monotonic() < deadline:
                time.sleep(0.002)
        elif not self._own_process:
            raise ValueError(f"{fault.kind} would hit the test itself: give the peer a process of its own")
        elif fault.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault.kind == "kill p2pd":
            for pid in _daemons():
                os.kill(pid, signal.SIGKILL)
        else:
            _freeze([*_daemons(), os.getpid()], fault.seconds)

    def telling(self, on_stage: Callable[[int, str], None]) -> Callable[[int, str], None]:
        """An `on_stage` that says each stage here, too."""

        def stage(round: int, name: str) -> None:
            on_stage(round, name)
            self.reached(round, name)

        return stage

    def corrupting(self, send: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        """`frames.send` that flips a byte of what was ordered, and notes what it hands on of states."""

        async def broken(writer: Any, message: Any, **options: Any) -> None:
            what = _what(message)
            if what == "state":
                self.reached(self._round, "serve")
                with (self._folder / f"{self._name}.served").open("a") as served:
                    served.write(f"{time.time()} {len(message.data)}\n")
            if what in self._corrupt:
                self._corrupt.discard(what)
                message = _flipped(message, "vote" if what == "vote" else "data")
            await send(writer, message, **options)

        return broken


def install(environment: dict[str, str]) -> None:
    """Break this process, about to be `potluck join`, where its environment says so."""
    if FOLDER not in environment:
        return
    from peer.net import frames, swarm

    injector = Injector(Path(environment[FOLDER]), environment[NAME], own_process=True)
    plain = swarm.Callbacks

    def callbacks(on_commit: Any, on_candidate: Any, on_stage: Any) -> swarm.Callbacks:
        return plain(on_commit, on_candidate, injector.telling(on_stage))

    swarm.Callbacks = callbacks  # type: ignore[assignment,misc]
    frames.send = injector.corrupting(frames.send)  # type: ignore[assignment]


def _what(message: Any) -> str:
    kind = type(message).__name__
    if kind == "Part" and message.data:
        return "part" if message.proof or message.group else "result"
    if kind == "StateChunk" and len(message.data) >= SMALLEST_STATE_BYTES:
        return "state"
    return "vote" if kind == "VoteMessage" else ""


def _flipped(message: Any, field: str) -> Any:
    data = bytearray(getattr(message, field))
    data[len(data) // 2] ^= 1
    copy = type(message)()
    copy.CopyFrom(message)
    setattr(copy, field, bytes(data))
    return copy


def _daemons() -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process().children() if child.name().startswith("p2pd")]


def _freeze(pids: list[int], seconds: float) -> None:
    """Stop these processes, this one last; a shell that outlives that wakes them."""
    told = " ".join(map(str, pids))
    subprocess.Popen(["/bin/sh", "-c", f"sleep {seconds}; kill -CONT {told}"], start_new_session=True)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)


def _write(path: Path, value: dict[str, Any]) -> None:
    """So that whoever sees the file sees all of it."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value))
    partial.rename(path)


if __name__ == "__main__":
    import potluck

    install(dict(os.environ))
    potluck.main()
