"""Real `potluck` processes: start them, read what they say, kill them, and see that they are gone.

    with Community(tmp_path, config) as community:
        host = community.host()
        alice = community.peer("alice")
        alice.wait_for("committed", round=3)
        alice.kill()
        community.check_nothing_left("alice")

Every process carries a mark in its environment, which its children inherit: so those that outlive it are found,
whatever session or parent they have. Every wait has a deadline. Leaving the block kills whatever is left.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import tomlkit

from lab import pacing
from lab.warm_start import WarmProcess, WarmStart

WAIT_S = 240.0  # for anything that is expected to happen; a quiet machine needs a twentieth of it
GONE_S = 60.0  # for the helpers of a process to go after it
MARK = "POTLUCK_TEST_MARK"
CARD_TOKENS_PER_S = 2000.0  # of peers that weigh alike and leave each other the processor

Event = dict[str, Any]


class LabProcess:
    """One process; its standard output is kept as JSON events, its standard error in a file."""

    def __init__(
        self, name: str, arguments: list[str], log: Path, environment: dict[str, str], starter: WarmStart | None
    ) -> None:
        self.name, self._log = name, log
        self.events: list[Event] = []  # also in a file beside the log, for whoever looks into a failure
        self._news = threading.Condition()
        receive, send = os.pipe()
        with log.open("w") as errors:
            if starter is not None:
                self._process: WarmProcess | subprocess.Popen[bytes] = starter.start(
                    arguments, stdout=send, stderr=errors.fileno(), environment=environment, folder=log.parent
                )
            else:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "potluck", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=send,
                    stderr=errors,
                    env=environment,
                    cwd=log.parent,
                    start_new_session=True,
                )
        os.close(send)
        self._output = receive
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with open(self._output) as lines, self._log.with_suffix(".jsonl").open("w") as copy:
            for line in lines:
                copy.write(line)
                copy.flush()
                with self._news:
                    self.events.append(json.loads(line))
                    self._news.notify_all()
        with self._news:
            self._news.notify_all()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return not self.running

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def said(self) -> str:
        """What it wrote to standard error."""
        return self._log.read_text()

    def find(self, event: str, where: Callable[[Event], bool] = lambda _: True, **values: Any) -> Event | None:
        """The first event of this kind with these values."""
        for item in list(self.events):
            if item["event"] == event and all(item.get(key) == values[key] for key in values) and where(item):
                return item
        return None

    def wait_for(
        self, event: str, where: Callable[[Event], bool] = lambda _: True, *, timeout_s: float = WAIT_S, **values: Any
    ) -> Event:
        """The first event of this kind with these values, past or future; fails if the process ends without it."""
        deadline = time.monotonic() + timeout_s
        with self._news:
            while True:
                ended = not self._reader.is_alive()
                found = self.find(event, where, **values)
                if found is not None:
                    return found
                if ended or (
                    not self._news.wait(min(1.0, deadline - time.monotonic())) and time.monotonic() > deadline
                ):
                    state = f"exit code {self._process.poll()}" if ended else "still running"
                    raise AssertionError(
                        f"{self.name}: no {event} {values} within {timeout_s:.0f} s ({state})\n"
                        f"last events: {self.events[-5:]}\nstandard error: …{self.said[-3000:]}"
                    )

    def committed(self) -> dict[int, Event]:
        """Round -> its 'committed' event; a round that is told twice is told with the same state."""
        found: dict[int, Event] = {}
        for item in list(self.events):
            if item["event"] == "committed":
                earlier = found.setdefault(item["round"], item)
                assert earlier["state"] == item["state"], f"{self.name} committed two states in round {item['round']}"
        return found

    @property
    def round(self) -> int:
        """The newest committed round."""
        return max(self.committed(), default=0)

    def wait_round(self, number: int, timeout_s: float = WAIT_S) -> Event:
        """The first 'committed' event of this round or a later one."""
        return self.wait_for("committed", lambda item: item["round"] >= number, timeout_s=timeout_s)

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until the kernel has taken it."""
        self._process.kill()
        self._process.wait(GONE_S)

    def wait(self, timeout_s: float = WAIT_S) -> int:
        """Wait for its end; returns the exit code, negative for a signal."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"{self.name} did not end within {timeout_s:.0f} s\n"
                f"last events: {self.events[-5:]}\n{self.said[-3000:]}"
            ) from None
        self._reader.join(10)
        assert "Task was destroyed" not in self.said, f"{self.name}: {self.said[-3000:]}"
        return code

    def stop(self, number: int = signal.SIGINT, timeout_s: float = WAIT_S) -> int:
        """Ask it to leave; returns the exit code."""
        self.send(number)
        return self.wait(timeout_s)


def leave_in_turn(peers: Iterable[LabProcess]) -> None:
    """Each leaves when the one before has; only the last one, for whom the run waits then, may have to say so."""
    codes = {peer.name: peer.stop() for peer in peers}
    *others, last = codes.values()
    assert not any(others) and last in (0, 4), codes


class Community:
    """A host and its peers, all on 127.0.0.1, all in one folder.

    Args:
        folder: everything goes there.
        config: run.toml as a dict of sections; `host` is filled in.
        starter: shares the imports among the processes; None: each is a fresh `python -m potluck`.
        fixed_ports: a host that is started again listens where it did.
        tokens_per_s: of each peer, where the starter starts it; 0: as fast as it can.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        *,
        starter: WarmStart | None = None,
        fixed_ports: bool = False,
        tokens_per_s: float = 0.0,
    ) -> None:
        self._starter = starter
        self._pace = pacing.environment(tokens_per_s) if tokens_per_s else {}
        self.folder = folder
        self.run = folder / "run"
        self.parts: list[LabProcess] = []
        self._sockets: dict[str, set[Path]] = {}
        self.more_environment: dict[str, dict[str, str]] = {}  # name of a part -> what it has beyond the usual
        ports = free_ports(2) if fixed_ports else [0, 0]
        listen = {"listen": f"127.0.0.1:{ports[0]}", "swarm_listen": f"127.0.0.1:{ports[1]}"}
        config = config | {"host": config.get("host", {}) | listen}
        self.config = folder / "run.toml"
        self.config.write_text(tomlkit.dumps(config))
        self.invite = ""

    def __enter__(self) -> Community:
        return self

    def __exit__(self, *_: object) -> None:
        self.note_sockets()
        for part in self.parts:
            part.send(signal.SIGKILL)
        for pid in marked(f"{self.folder}:"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for part in self.parts:
            part.wait(GONE_S)
        for path in self.sockets():
            path.unlink(missing_ok=True)

    def host(self, *options: str) -> LabProcess:
        """Start the host, or start it again; returns once volunteers can join."""
        part = self.start("host", "host", str(self.config), "--folder", str(self.run), "--json", *options)
        self.invite = part.wait_for("started")["invite"]
        return part

    def peer(self, name: str, *options: str, invite: str | None = None) -> LabProcess:
        """Start a peer, or start it again with the same home."""
        return self.start(
            name, "join", invite or self.invite, "--yes", "--json", "--home", str(self.home(name)),
            "--device", "cpu", "--threads", "1", "--listen", "127.0.0.1:0", *options,
        )  # fmt: skip

    def start(self, name: str, *arguments: str) -> LabProcess:
        """Start `potluck` with these arguments."""
        count = sum(part.name == name for part in self.parts)
        log = self.folder / f"{name}-{count}.log"
        part = LabProcess(name, list(arguments), log, self.environment(name), self._starter)
        self.parts.append(part)
        return part

    def environment(self, name: str) -> dict[str, str]:
        return os.environ | {
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "POTLUCK_HOME": str(self.folder / "user"),
            MARK: f"{self.folder}:{name};",
            **self._pace,
            **self.more_environment.get(name, {}),
        }

    def home(self, name: str) -> Path:
        return self.folder / name

    def run_folder(self, name: str) -> Path:
        """Where a peer keeps what is of this run."""
        (found,) = (self.home(name) / "runs").iterdir()
        return found

    def note_sockets(self) -> None:
        """Remember which sockets in the temporary folder are whose; call it while the processes live."""
        for part in {part.name for part in self.parts}:
            for pid in marked(f"{self.folder}:{part};"):
                for stem in re.findall(r"/tmp/hivemind-p2pd-([\w-]+)\.sock", _read_proc(pid, "cmdline")):
                    paths = {Path(f"/tmp/hivemind-{kind}-{stem}.sock") for kind in ("p2pd", "p2pclient")}
                    self._sockets.setdefault(part, set()).update(paths)

    def sockets(self) -> list[Path]:
        """Those that were noted and are there."""
        return [path for paths in self._sockets.values() for path in paths if path.exists()]

    def check_nothing_left(self, *names: str) -> None:
        """Fails if a process or a socket of these parts is still there a while after they ended; default: of all."""
        names = names or tuple({part.name for part in self.parts})
        for name in names:
            assert self._sockets.get(name) or name.startswith("no-"), (
                f"note_sockets() was not called while {name} lived"
            )
        deadline = time.monotonic() + GONE_S
        while True:
            pids = [pid for name in names for pid in marked(f"{self.folder}:{name};")]
            sockets = [path for name in names for path in self._sockets.get(name, ()) if path.exists()]
            if not pids and not sockets:
                return
            if time.monotonic() > deadline:
                told = [f"{pid} {_read_proc(pid, 'cmdline')}" for pid in pids]
                raise AssertionError(f"left behind by {names}: processes {told}, sockets {sockets}")
            time.sleep(0.1)


def marked(mark: str) -> list[int]:
    """The living processes whose mark begins so."""
    needle = f"{MARK}={mark}"
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and needle in _read_proc(int(entry.name), "environ"):
            status = _read_proc(int(entry.name), "status")
            if "State:\tZ" not in status and status:
                found.append(int(entry.name))
    return found


def eventually(happened: Callable[[], object], timeout_s: float = WAIT_S) -> None:
    """Wait until something holds that nobody tells of; fails when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, f"it did not happen within {timeout_s:.0f} s"
        time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at the moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]


def _read_proc(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace").replace("\0", " ")
    except OSError:
        return ""
