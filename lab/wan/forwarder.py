"""The process that carries the lab's packets, from one host's TUN device to another's, by the rules in `link`.

`lab` starts it as `python -m lab.wan.forwarder`, with the TUN devices inherited and a Unix socket as standard input.
The first message on the socket says what to do, each further one is a command, and every one is answered:

    {"hosts": {"a": {"delay_ms": 20.0, …}}, "addresses": {"a": "10.77.0.1"}, "tuns": {"a": 5}, "inodes": [4026532281],
     "seed": 0}
    {"do": "set", "arguments": ["a"], "values": {"loss": 0.01}}              -> {"result": null}
    {"do": "cut", "arguments": ["b"], "values": {}}                          -> {"error": "no host ['b']"}

When the socket is closed, even by kill -9 of the lab's owner, it kills every process in the lab's namespaces and ends;
the devices and the namespaces go with it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import socket
import time
from typing import Any

from lab.wan.link import Host, Switch
from lab.wan.namespace import QUEUE_PACKETS, kill_all_in

BATCH = 64  # packets read from one host before the others, and what is due, have their turn
MAX_PACKET_BYTES = 65535
MAX_MESSAGE_BYTES = 64 * 1024
COMMANDS = ("set", "cut", "restore", "cut_pair", "restore_pair", "split", "heal", "move", "counters")
PRIORITY = 1  # of real-time scheduling, the lowest: ordinary priority makes packets 10 to 20 ms late on a busy machine


class Forwarder:
    """The loop: packets, commands, and what is due.

    Args:
        control: what commands come on.
        tuns: host -> its device, not blocking.
    """

    def __init__(self, control: socket.socket, switch: Switch, tuns: dict[str, int]) -> None:
        self._control, self._switch, self._tuns = control, switch, tuns
        self._hosts = {descriptor: name for name, descriptor in tuns.items()}
        self._late_sum_s = self._late_worst_s = 0.0
        self._delivered = self._refused = 0

    def run(self) -> None:
        """Returns when the owner has closed the control socket."""
        switch, clock = self._switch, time.monotonic
        waiting = [self._control, *self._hosts]
        while True:
            due = switch.next_due()
            timeout_s = None if due is None else max(0.0, due - clock())
            ready, _, _ = select.select(waiting, [], [], timeout_s)  # unlike epoll it counts microseconds
            for item in ready:
                if item is not self._control:
                    self._read(item, BATCH)
            if self._control in ready:
                for tun in self._tuns.values():  # what was sent before a command goes by the rules before it
                    self._read(tun, QUEUE_PACKETS)
                if not self._answer():
                    return
            self._deliver(clock())

    def _read(self, tun: int, most: int) -> None:
        name, send, now = self._hosts[tun], self._switch.send, time.monotonic()
        with contextlib.suppress(BlockingIOError):
            for _ in range(most):
                send(name, os.read(tun, MAX_PACKET_BYTES), now)

    def _deliver(self, now: float) -> None:
        due = self._switch.next_due()
        if due is not None and due <= now:
            late_s = now - due
            self._late_sum_s += late_s
            self._late_worst_s = max(self._late_worst_s, late_s)
            self._delivered += 1
            self._switch.deliver(now, self._write)

    def _write(self, name: str, packet: bytes) -> None:
        try:
            os.write(self._tuns[name], packet)
        except OSError:  # the kernel has no room for it, or finds it malformed
            self._refused += 1

    # ---- commands ----------------------------------------------------------------------------------------------------

    def _answer(self) -> bool:
        """Do one command; false when the owner has gone."""
        message = _receive(self._control)
        if message is None:
            return False
        try:
            answer = {"result": self._do(**message)}
        except (KeyError, TypeError, ValueError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        try:
            self._control.send(json.dumps(answer).encode())
        except OSError:
            return False
        return True

    def _do(self, do: str, arguments: list[Any], values: dict[str, Any]) -> Any:
        if do == "strain":
            return self._strain()
        if do not in COMMANDS:
            raise ValueError(f"no command {do!r}; there are {COMMANDS}")
        return getattr(self._switch, do)(*arguments, **values)

    def _strain(self) -> dict[str, float]:
        """How well this process kept up, since the last time that it was asked; see `lab.Strain`."""
        cpu = os.times()
        strain = {
            "cpu_s": cpu.user + cpu.system,
            "mean_late_ms": 1e3 * self._late_sum_s / max(self._delivered, 1),
            "worst_late_ms": 1e3 * self._late_worst_s,
            "refused": self._refused,
        }
        self._late_sum_s = self._late_worst_s = 0.0
        self._delivered = 0
        return strain


def _receive(control: socket.socket) -> dict[str, Any] | None:
    try:
        data = control.recv(MAX_MESSAGE_BYTES)
    except ConnectionError:
        return None
    return json.loads(data) if data else None


def main() -> None:
    with contextlib.suppress(PermissionError):  # where it may not, it is late more often, and `strain` tells
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(PRIORITY))
    with socket.socket(fileno=os.dup(0)) as control:
        start = _receive(control)
        if start is None:
            return
        hosts = {name: Host(**values) for name, values in start["hosts"].items()}
        switch = Switch(hosts, start["addresses"], start["seed"])
        control.send(b'{"result": "ready"}')
        gc.disable()  # nothing here makes cycles
        try:
            Forwarder(control, switch, start["tuns"]).run()
        finally:
            kill_all_in(start["inodes"])


if __name__ == "__main__":
    main()
