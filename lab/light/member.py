"""One light member: a process that takes part in every round and trains nothing.

It sleeps for what would be a micro-batch, hands over a few thousand values that follow from its number and the round,
and writes a JSON line for each update that it hands over and for each round that it commits:

    {"event": "handed", "round": 7, "tokens": 768, "cpu_s": 3.0, "p2pd_cpu_s": 2.1, …}
    {"event": "committed", "round": 7, "state": "ab12…", "weights": {…}, "cpu_s": 3.1, "p2pd_cpu_s": 2.2, …}

Whoever has forked it speaks with it on a socket: it says where it is, is told where the others are, when to begin and
when to end; when that socket is closed, it ends, too.
"""

from __future__ import annotations

import json
import logging
import queue
import socket
import threading
import time
from pathlib import Path
from typing import Any, TextIO

import psutil

from lab.light.plan import Plan
from lab.light.swarm import Event, open_swarm, traffic
from protocol.errors import RoundAborted

LOOK_S = 0.2


class Orders:
    """What the community says to a member, and the member to it: JSON lines.

    Args:
        stop: set when the end is ordered, or nobody is there any more to order it.
    """

    def __init__(self, channel: socket.socket) -> None:
        self.stop = threading.Event()
        self._said: TextIO = channel.makefile("w")
        self._heard: queue.Queue[Event] = queue.Queue()
        threading.Thread(target=self._read, args=[channel], daemon=True).start()

    def say(self, **event: Any) -> None:
        self._said.write(json.dumps(event) + "\n")
        self._said.flush()

    def wait(self, order: str) -> Event:
        """The next order, which must be this one. Raises: RoundAborted: the end came instead."""
        event = self._heard.get()
        if event["order"] != order:
            raise RoundAborted(f"expected the order {order!r}, got {event['order']!r}")
        return event

    def _read(self, channel: socket.socket) -> None:
        with channel.makefile() as lines:
            for line in lines:
                event = json.loads(line)
                if event["order"] == "stop":
                    break
                self._heard.put(event)
        self.stop.set()
        self._heard.put({"order": "stop"})


class LightMember:
    """The member with this number; `run` is its whole life."""

    def __init__(self, plan: Plan, index: int, folder: Path, orders: Orders) -> None:
        self._plan, self._index, self._orders, self._stop = plan, index, orders, orders.stop
        self._log = (folder / f"member-{index:02}.jsonl").open("w")
        self._reasons: set[str] = set()  # for waiting, since the last round
        self._swarm = open_swarm(plan, index, folder, self._committed)
        self._p2pd: list[psutil.Process] = []

    def run(self) -> None:
        """Meet the others, work through all rounds, and stay for the others until told to end."""
        plan, orders = self._plan, self._orders
        with self._swarm as swarm:
            swarm.keep_quiet()
            swarm.set_run(0, plan.beginners())
            self._p2pd = [child for child in psutil.Process().children() if child.name().startswith("p2pd")]
            orders.say(event="started", peer=plan.identity(self._index).peer_id, addresses=swarm.addresses)
            swarm.add_addresses(orders.wait("meet")["addresses"])
            while len(swarm.members()) < plan.members - 1 and not self._stop.is_set():
                time.sleep(LOOK_S)
            orders.say(event="met")
            orders.wait("begin")
            time.sleep(plan.step_s * self._index / plan.members)  # not all step at the same instant
            while swarm.head.round < plan.rounds and not self._stop.is_set():
                self._one_round()
            orders.say(event="done", round=swarm.head.round, memory_mb=self._memory_mb())
            self._stop.wait()

    def _one_round(self) -> None:
        swarm, plan, step_tokens = self._swarm, self._plan, self._plan.step_tokens(self._index)
        head, tokens = swarm.begin_work(), 0
        while not (swarm.close_work.is_set() and tokens):
            time.sleep(plan.step_s)
            if self._stop.is_set():
                return
            tokens += step_tokens
            swarm.report_progress(tokens, plan.step_s)
            self._note_reason()
        self._write("handed", round=head.round + 1, tokens=tokens, **self._used())
        handed = swarm.hand_over(plan.update(self._index, head.round + 1, tokens), head.digest)
        while swarm.next_head(handed, LOOK_S) is None:
            self._note_reason()
            if self._stop.is_set():
                handed.cancel()
                return

    def _note_reason(self) -> None:
        if reason := self._swarm.waiting_for:
            self._reasons.add(str(reason))

    def _committed(self, event: Event) -> None:
        reasons, self._reasons = sorted(self._reasons), set()
        self._write("committed", **event, waiting_for=reasons, **self._used())

    def _used(self) -> Event:
        """Processor time and traffic so far."""
        p2pd = [process.cpu_times() for process in self._p2pd]
        p2pd_cpu_s = sum(item.user + item.system for item in p2pd)
        return {"cpu_s": time.process_time(), "p2pd_cpu_s": p2pd_cpu_s} | traffic(self._swarm)

    def _write(self, event: str, **fields: Any) -> None:
        self._log.write(json.dumps({"event": event, "time": time.time()} | fields) + "\n")
        self._log.flush()

    def _memory_mb(self) -> list[float]:
        """Proportional set size of this process and of its p2pd."""
        found = [process.memory_full_info().pss for process in [psutil.Process(), *self._p2pd]]
        return [round(size / 1e6, 1) for size in found]


def be(plan: Plan, index: int, folder: Path, channel: socket.socket) -> None:
    """Be this member, in a process of its own."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    LightMember(plan, index, folder, Orders(channel)).run()
