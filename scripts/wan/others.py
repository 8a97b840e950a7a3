"""Runs an arm that is not ours for `scripts/bench wan`: four of `hivemind_peer` or `diloco_peer` in the WAN lab.

Everything that they start, hivemind's daemons too, lives in the lab's namespaces and is killed when the lab closes.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lab import REPOSITORY
from lab.small_community import Inputs
from lab.wan.lab import Host, WanLab
from scripts.wan.arms import DILOCO, HIVEMIND
from scripts.wan.plan import Course
from scripts.wan.scale import BATCH, PEERS, REAL_BATCH
from scripts.wan.trace import LOOK_S, NAMES, READY_S, VICTIM, Trace, config, kill, set_lines
from scripts.wan.training import Task


class _Process:
    """One peer of a stock arm."""

    def __init__(self, lab: WanLab, script: str, settings: dict[str, Any], log: Path, stack: ExitStack) -> None:
        self.name = settings["name"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HIVEMIND_LOGLEVEL": "INFO"}
        self._popen = lab.run(
            self.name, [sys.executable, "-W", "ignore", "-m", f"scripts.wan.{script}", json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stack.enter_context(log.open("w")),
            env=environment, cwd=REPOSITORY, text=True, start_new_session=True,
        )  # fmt: skip
        stack.callback(self._close_stdin)
        self.log = log
        self.tokens, self.busy_s, self.late_s = 0, 0.0, 0.0
        self.news: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as lines:
            for line in lines:
                if not line.startswith("{"):
                    continue
                event = json.loads(line)
                if event["event"] == "worked":
                    self.tokens, self.busy_s, self.late_s = event["tokens"], event["busy_s"], event["late_s"]
                else:
                    self.news.put(event)
        self.news.put({"event": "gone"})

    def _close_stdin(self) -> None:
        assert self._popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.close()

    def tell(self, word: str) -> None:
        assert self._popen.stdin is not None
        try:
            self._popen.stdin.write(word + "\n")
            self._popen.stdin.flush()
        except BrokenPipeError:
            return  # it has ended; its "gone" says so

    def wait_ready(self) -> list[str]:
        try:
            event = self.news.get(timeout=READY_S)
        except queue.Empty:
            event = {"event": "silence"}
        if event["event"] != "ready":
            raise AssertionError(f"{self.name} did not get ready: {event}\n{self.log.read_text()[-3000:]}")
        return list(event["addresses"])


def run_others(course: Course, inputs: Inputs, folder: Path) -> Trace:
    """Raises: AssertionError: its processes did not get ready, or one ended early."""
    task = Task.make(folder, config(course, inputs, sync={"round_tokens": 1}))
    script = "hivemind_peer" if course.arm in HIVEMIND else "diloco_peer"
    (folder / "kept").mkdir()
    batch = BATCH[course.kind]
    target = HIVEMIND[course.arm] * batch // REAL_BATCH if course.arm in HIVEMIND else DILOCO[course.arm]
    settings = {
        "task": task.to_json(),
        "target": target,
        "compress": course.scale.compress,
        "exchange_s": course.scale.exchange_s(course.line, 2),
    }
    trace = Trace()
    with ExitStack() as stack:
        lab = stack.enter_context(WanLab(dict.fromkeys(NAMES, Host()), seed=course.seed))
        processes: list[_Process] = []
        initial: list[str] = []
        for number, name in enumerate(NAMES):
            own = {
                "name": name,
                "address": lab.address(name),
                "initial_peers": initial,
                "out": str(folder / "kept") if number == 0 else None,
                "tokens_per_s": course.speed(number),
            }
            processes.append(_Process(lab, script, settings | own, folder / f"{name}.log", stack))
            if number == 0:
                initial = processes[0].wait_ready()
        for process in processes[1:]:
            process.wait_ready()
        set_lines(lab, course)
        before = lab.counters()
        trace.started = time.time()
        for process in processes:
            process.tell("go")
        alive_s = _watch_stock(course, lab, processes, trace)
        after = lab.counters()
        trace.counters = {name: (before[name], after[name]) for name in NAMES}
    trace.busy = sum(process.busy_s / alive_s[process.name] for process in processes) / PEERS
    trace.late_s = sum(process.late_s for process in processes) / PEERS
    return trace


def _watch_stock(course: Course, lab: WanLab, processes: list[_Process], trace: Trace) -> dict[str, float]:
    """Until the budget is used up and the first peer has ended, or the limit; returns how long each lived."""
    first, killed_at, stopped = processes[0], None, False
    trace.ended = trace.started
    while time.time() < trace.started + course.limit_s:
        trace.tokens = sum(process.tokens for process in processes)
        if course.variant == "killed" and killed_at is None and trace.tokens >= course.budget / 2:
            killed_at = time.time()
            kill(lab, VICTIM)
        if not stopped and trace.tokens >= course.budget:
            stopped = True
            for process in processes:
                process.tell("stop")
        try:
            event = first.news.get(timeout=LOOK_S)
        except queue.Empty:
            continue
        if event["event"] == "state":
            trace.states.append((event["time"], Path(event["path"])))
            trace.ended = event["time"]
        elif event["event"] == "problem":
            trace.problems.append(event["message"])
        elif event["event"] in ("ended", "gone"):
            if not stopped:
                raise AssertionError(f"{first.name} ended early: {event}\n{first.log.read_text()[-3000:]}")
            break
    else:
        trace.ended = time.time()
    for process in processes[1:]:
        while not process.news.empty():
            event = process.news.get()
            if event["event"] == "problem":
                trace.problems.append(f"{process.name}: {event['message']}")
    lived = dict.fromkeys(NAMES, trace.ended - trace.started)
    if killed_at is not None:
        lived[VICTIM] = killed_at - trace.started
    return lived
