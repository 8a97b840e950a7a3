"""A small internet on one machine: each host in a network namespace of its own, on a slow line that can be cut.

Tests, demos and benchmarks use it where the kernel has no netem. It needs root and /dev/net/tun, and nothing else:

    with WanLab({"a": Host(delay_ms=20, up_mbit=20, down_mbit=100), "b": Host(delay_ms=20, loss=0.005)}) as lab:
        server = lab.run("a", [sys.executable, "-m", "http.server", "--bind", lab.address("a")])  # a Popen
        probe = lab.socket("b")  # a TCP socket of b's, used from here
        lab.cut("a")
        lab.restore("a")
        lab.split([["a"], ["b"]])
        lab.heal()
        lab.set("b", loss=0.0, delay_ms=100)
        print(lab.counters()["a"].bytes_up, lab.strain())

Packets go through one user-space process (`forwarder`), by the rules in `link`: delay, jitter, rates, queues, loss,
firewalls, cuts and splits. Leaving the block, or the death of its owner by whatever means, ends every process in there
and takes the namespaces away. Many labs can run at once; nothing of one can reach another, or the machine outside, or
be seen there. The addresses, 10.77.0.1 and on, are private ones: libp2p's NAT detection does not take them for public.

One forwarder carries 1.3 to 1.8 Gbit/s in 1400-byte packets with a core to itself, and 370 to 480 Mbit/s in two TCP
flows of 40 ms round trip, senders and receivers on the same two busy cores; a round trip of 40 ms takes 40.6 ms
(median; one in a hundred 43 to 47); a 20 Mbit/s uplink gives TCP 18.8. At such rates it wakes for every packet: 15 % of
a core for 20 Mbit/s.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lab import REPOSITORY
from lab.wan.link import Counters, Host
from lab.wan.namespace import GONE_S, Namespace, available, congestion_control, kill_all_in

__all__ = ["Counters", "Host", "Strain", "WanLab", "available"]

CONTROL_S = 20.0  # for the forwarder to answer, on a machine that is very busy
MAX_HOSTS = 250
MAX_ANSWER_BYTES = 256 * 1024


class Strain(NamedTuple):
    """How well the forwarder kept up: what is measured through a lab that was late is the lab.

    cpu_s: that it has used in all; lateness is counted since the last call, over the times it had something to deliver.
    """

    cpu_s: float
    mean_late_ms: float
    worst_late_ms: float
    refused: int  # packets that the kernel did not take


class WanLab:
    """The lab; use as a context manager, opened and closed in one process. Its methods may be called from any thread.

    Args:
        hosts: name -> its line.
        seed: of losses and jitter.
        mtu: of every host, bytes.
        congestion: TCP's congestion control on every host; default: `congestion_control()`.

    Raises:
        OSError: namespaces cannot be made here; ask `available()` first.
    """

    def __init__(
        self, hosts: dict[str, Host], *, seed: int = 0, mtu: int = 1400, congestion: str | None = None
    ) -> None:
        if not 1 <= len(hosts) <= MAX_HOSTS:
            raise ValueError(f"expected 1 to {MAX_HOSTS} hosts, got {len(hosts)}")
        self._hosts, self._seed, self._mtu = hosts, seed, mtu
        self.congestion = congestion or congestion_control()
        self._namespaces: dict[str, Namespace] = {}
        self._inodes: list[int] = []
        self._processes: list[subprocess.Popen[Any]] = []
        self._lock = threading.Lock()

    def __enter__(self) -> WanLab:
        with contextlib.ExitStack() as stack:
            for number, name in enumerate(self._hosts, start=1):
                here = Namespace(f"10.77.0.{number}", mtu=self._mtu, congestion=self.congestion)
                self._namespaces[name] = stack.enter_context(here)
                self._inodes.append(here.inode)
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.enter_context(self._control)
            with theirs:
                self._forwarder = self._start(theirs)
            stack.callback(self._stop)
            self._control.settimeout(CONTROL_S)
            self._ask(
                {
                    "hosts": {name: dataclasses.asdict(host) for name, host in self._hosts.items()},
                    "addresses": {name: here.address for name, here in self._namespaces.items()},
                    "tuns": {name: here.tun for name, here in self._namespaces.items()},
                    "inodes": self._inodes,
                    "seed": self._seed,
                }
            )
            for here in self._namespaces.values():
                here.close_tun()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # ---- inside ------------------------------------------------------------------------------------------------------

    def address(self, host: str) -> str:
        return self._namespaces[host].address

    def run(self, host: str, command: Sequence[str | Path], **options: Any) -> subprocess.Popen[Any]:
        """`subprocess.Popen` on this host. What still runs when the lab closes is killed, its children too."""
        process = self._namespaces[host].call(lambda: subprocess.Popen(command, **options))
        self._processes.append(process)
        return process

    def socket(self, host: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A new IPv4 socket of this host's, to be used from here."""
        return self._namespaces[host].call(lambda: socket.socket(socket.AF_INET, kind))

    @property
    def forwarder_pid(self) -> int:
        return self._forwarder.pid

    def namespace(self, host: str) -> str:
        """The file to enter this host by: `nsenter --net=FILE ss -ti`, or setns(2)."""
        return f"/proc/{os.getpid()}/fd/{self._namespaces[host].file}"

    # ---- the lines ---------------------------------------------------------------------------------------------------

    def set(self, host: str, **values: float) -> None:
        """Change fields of this host's `Host` from now on."""
        self._do("set", host, **values)

    def cut(self, *hosts: str) -> None:
        """Pull these hosts' cables; what is on the way is lost, and nobody is told."""
        self._do("cut", *hosts)

    def restore(self, *hosts: str) -> None:
        self._do("restore", *hosts)

    def cut_pair(self, one: str, other: str) -> None:
        """These two cannot reach each other any more."""
        self._do("cut_pair", one, other)

    def restore_pair(self, one: str, other: str) -> None:
        self._do("restore_pair", one, other)

    def split(self, groups: Iterable[Iterable[str]]) -> None:
        """Two hosts reach each other only if some group holds both: a host may be in several groups, or in none."""
        self._do("split", [list(group) for group in groups])

    def heal(self) -> None:
        """Undo the split; cables that were cut stay cut."""
        self._do("heal")

    def move(self, host: str, address: str) -> None:
        """Give this host another address in 10.77.0.0/16 and take the old one away, as another network does."""
        self._namespaces[host].set_address(address)
        self._do("move", host, address)

    def counters(self) -> dict[str, Counters]:
        """What went through each host's interface so far."""
        return {name: Counters(*values) for name, values in self._do("counters").items()}

    def strain(self) -> Strain:
        """How well the lab itself kept up since the last call."""
        return Strain(**self._do("strain"))

    # ---- the forwarder -----------------------------------------------------------------------------------------------

    def _start(self, control: socket.socket) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "lab.wan.forwarder"],
            cwd=REPOSITORY,
            stdin=control,
            pass_fds=[here.tun for here in self._namespaces.values()],
            start_new_session=True,  # Ctrl-C is for the owner
        )

    def _do(self, command: str, *arguments: Any, **values: Any) -> Any:
        return self._ask({"do": command, "arguments": arguments, "values": values})

    def _ask(self, message: dict[str, Any]) -> Any:
        """Raises: ValueError: it refused; RuntimeError: it has ended; TimeoutError: no answer."""
        with self._lock:
            try:
                self._control.send(json.dumps(message).encode())
                answer = json.loads(self._control.recv(MAX_ANSWER_BYTES) or b"null")
            except ConnectionError:
                answer = None
        if answer is None:
            raise RuntimeError("the lab's forwarder has ended")
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer["result"]

    def _stop(self) -> None:
        """Close the control socket, on which the forwarder ends everything inside, and itself."""
        self._control.close()
        try:
            self._forwarder.wait(2 * GONE_S)
        except subprocess.TimeoutExpired:
            self._forwarder.kill()
            self._forwarder.wait(GONE_S)
        kill_all_in(self._inodes)  # in case it was the forwarder that died
        for process in self._processes:
            process.wait(GONE_S)
