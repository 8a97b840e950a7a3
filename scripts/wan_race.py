"""Runs one arm of `scripts/bench wan` in the WAN lab, and says what it came to.

The lines are set when all peers stand ready, so nobody is charged for fetching the model and the text. Stock peers begin
together; Potluck's each when it is ready, so its clock starts at the mean of these times. States are kept on
the way and evaluated afterwards, when nothing else runs. An arm ends when its peers have used up the token budget, or at
`limit_s`, whichever is first.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pacing
from processes import Part
from small_community import Inputs, run_config
from wan_arms import DILOCO, HIVEMIND, PRESETS
from wan_community import WanCommunity
from wan_lab import Counters, Host, WanLab
from wan_namespace import kill_all_in
from wan_plan import Course
from wan_report import Outcome
from wan_scale import PEERS
from wan_training import Bench, Task, sections
from warm_start import WarmStart

from peer.training.state import SharedState

NAMES = tuple(f"peer-{number}" for number in range(PEERS))
VICTIM = NAMES[-1]
READY_S = 300.0
LOOK_S = 0.2
MOST_EVALUATIONS = 60
SCRIPTS = Path(__file__).resolve().parent
NOTHING = Counters(0, 0, 0, 0, 0)


@dataclass
class Trace:
    """What was noted on the way; times are those of time.time()."""

    started: float = 0.0
    ended: float = 0.0
    tokens: int = 0
    busy: float = 0.0
    late_s: float = 0.0
    states: list[tuple[float, Path]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    counters: dict[str, tuple[Counters, Counters]] = field(default_factory=dict)  # before, after


def race(course: Course, inputs: Inputs, folder: Path, judge: Bench, starter: WarmStart) -> Outcome:
    """Run one arm, evaluate what it made.

    Raises:
        AssertionError: its processes did not get ready.
    """
    folder.mkdir(parents=True)
    run = _ours if course.arm in PRESETS else _stock
    trace = run(course, inputs, folder, starter)
    wall_s = trace.ended - trace.started
    sent = [
        (after.bytes_up - before.bytes_up, after.bytes_down - before.bytes_down)
        for before, after in trace.counters.values()
    ]
    points = [(0.0, judge.loss_of(judge.genesis.parameters))]
    for at, path in _some(trace.states):
        points.append((at - trace.started, judge.loss_of(SharedState.load(path).parameters)))
    shutil.rmtree(folder)
    return Outcome(
        course.arm, course.kind, course.line, course.variant, course.seed, course.lr,
        wall_s, trace.tokens, sum(up for up, _ in sent) / PEERS, sum(down for _, down in sent) / PEERS,
        trace.busy, trace.late_s / wall_s, points, trace.problems[:20],
    )  # fmt: skip


def _some(states: list[tuple[float, Path]]) -> list[tuple[float, Path]]:
    """At most so many, evenly, the last one among them."""
    step = max(1, -(-len(states) // MOST_EVALUATIONS))
    return states[::-1][::step][::-1]


def _config(course: Course, inputs: Inputs, **more: Any) -> dict[str, Any]:
    config = run_config(inputs, **sections(course.kind, course.lr, course.seed))
    for name, section in more.items():
        config[name] = config.get(name, {}) | section
    return config


def _set_lines(lab: WanLab, course: Course) -> None:
    line = course.scale.line(course.line)
    values = {name: getattr(line, name) for name in ("delay_ms", "up_mbit", "down_mbit", "loss", "queue_bytes")}
    for name in NAMES:
        lab.set(name, **values)


def _kill(lab: WanLab, name: str) -> None:
    """SIGKILL everything on this host, as a power cut does."""
    lab.cut(name)
    kill_all_in([os.stat(lab.namespace(name)).st_ino])


# ---- Potluck -------------------------------------------------------------------------------------------------------------


def _ours(course: Course, inputs: Inputs, folder: Path, starter: WarmStart) -> Trace:
    preset = PRESETS[course.arm][course.kind]
    round_tokens = preset["round_steps"] * PEERS * course.scale.tokens_per_step
    more = {name: section for name, section in preset.items() if name != "round_steps"}
    more["sync"] = more.get("sync", {}) | {"round_tokens": round_tokens, "min_peers": PEERS}
    trace = Trace()
    with (
        WanLab(dict.fromkeys(("host", *NAMES), Host()), seed=course.seed) as lab,
        WanCommunity(folder, _config(course, inputs, **more), lab, starter=starter) as run,
    ):
        for number, name in enumerate(NAMES):
            run.more_environment[name] = pacing.environment(course.speed(number))
        run.host()
        peers = [run.peer(name) for name in NAMES]
        ready = [peer.wait_for("step", step="finding-members", timeout_s=READY_S)["time"] for peer in peers]
        _set_lines(lab, course)
        before = lab.counters()
        trace.started = sum(ready) / len(ready)  # as much card time is used before it as is missing after it
        with _states_kept(run, peers[0], folder / "kept", trace):
            killed_at = _watch_ours(course, lab, peers, trace)
        after = lab.counters()
        trace.counters = {name: (before[name], after[name]) for name in NAMES}
    _sum_up_ours(course, peers, trace, killed_at)
    return trace


def _watch_ours(course: Course, lab: WanLab, peers: list[Part], trace: Trace) -> float | None:
    """Until the budget is used up, or the limit; when the victim was killed."""
    killed_at = None
    while time.time() < trace.started + course.limit_s:
        time.sleep(LOOK_S)
        trace.tokens = sum(event["tokens"] for event in peers[0].committed().values())
        if course.variant == "killed" and killed_at is None and trace.tokens >= course.budget / 2:
            killed_at = time.time()
            _kill(lab, VICTIM)
        if trace.tokens >= course.budget:
            break
    trace.ended = time.time()
    return killed_at


def _sum_up_ours(course: Course, peers: list[Part], trace: Trace, killed_at: float | None) -> None:
    shares = []
    for peer in peers:
        end = killed_at if killed_at is not None and peer.name == VICTIM else trace.ended
        waited = sum(event["waited_s"] for event in peer.committed().values() if event["time"] <= end)
        shares.append(1 - waited / (end - trace.started))
        trace.problems += [
            f"{peer.name}: {item['reason']}" for item in peer.events if item["event"] == "waiting" and item["reason"]
        ]
    trace.busy = sum(shares) / len(shares)


@contextmanager
def _states_kept(run: WanCommunity, peer: Part, kept: Path, trace: Trace) -> Iterator[None]:
    """Copy each state that this peer commits, while it is on its disk."""
    kept.mkdir()
    done = threading.Event()

    def copy() -> None:
        seen: set[int] = set()
        while not done.wait(LOOK_S):
            for number, event in sorted(peer.committed().items()):
                if number in seen:
                    continue
                seen.add(number)
                name = f"round-{number:06d}.safetensors"
                try:
                    shutil.copyfile(run.run_folder(peer.name) / "states" / name, kept / name)
                except FileNotFoundError:  # two newer ones have taken its place
                    continue
                trace.states.append((event["time"], kept / name))

    thread = threading.Thread(target=copy)
    thread.start()
    try:
        yield
    finally:
        time.sleep(2 * LOOK_S)
        done.set()
        thread.join()


# ---- the others ----------------------------------------------------------------------------------------------------------


class _Process:
    """One peer of a stock arm."""

    def __init__(self, lab: WanLab, script: str, settings: dict[str, Any], log: Path, stack: ExitStack) -> None:
        self.name = settings["name"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HIVEMIND_LOGLEVEL": "INFO"}
        self._popen = lab.run(
            self.name, [sys.executable, "-W", "ignore", SCRIPTS / script, json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stack.enter_context(log.open("w")),
            env=environment, text=True, start_new_session=True,
        )  # fmt: skip
        self.log = log
        self.tokens, self.busy_s, self.late_s = 0, 0.0, 0.0
        self.news: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            if not line.startswith("{"):
                continue
            event = json.loads(line)
            if event["event"] == "worked":
                self.tokens, self.busy_s, self.late_s = event["tokens"], event["busy_s"], event["late_s"]
            else:
                self.news.put(event)
        self.news.put({"event": "gone"})

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


def _stock(course: Course, inputs: Inputs, folder: Path, starter: WarmStart) -> Trace:
    task = Task.make(folder, _config(course, inputs, sync={"round_tokens": 1}))
    script = "wan_hivemind.py" if course.arm in HIVEMIND else "wan_diloco.py"
    (folder / "kept").mkdir()
    settings = {
        "task": task.to_json(),
        "target": (HIVEMIND | DILOCO)[course.arm],
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
        _set_lines(lab, course)
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
            _kill(lab, VICTIM)
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
