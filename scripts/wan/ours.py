"""Runs a preset of ours for `scripts/bench wan`: `potluck host` and four `potluck join`, unchanged, in the WAN lab.

The host stands on a line without limits and publishes nothing: it is not on the training path, and an upload of the
state for each evaluation would be charged to a peer's line. The states are copied from a peer's disk instead.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import pacing
from lab.processes import LabProcess
from lab.small_community import Inputs
from lab.wan.community import WanCommunity
from lab.wan.lab import Host, WanLab
from lab.warm_start import WarmStart
from peer.disk.kept_states import AVERAGE, WHOLE
from protocol.keys import load_public_pem
from protocol.run_card import RunCard
from protocol.run_spec import RunSpec
from scripts.wan.arms import PRESETS
from scripts.wan.plan import Course
from scripts.wan.scale import PEERS
from scripts.wan.trace import LOOK_S, NAMES, READY_S, VICTIM, Trace, config, kill, set_lines


def run_ours(course: Course, inputs: Inputs, folder: Path, starter: WarmStart) -> Trace:
    """Raises: AssertionError: its processes did not get ready."""
    preset = PRESETS[course.arm][course.kind]
    least = PEERS - 1 if course.variant == "killed" else PEERS  # or the others may not go on
    more = {name: section for name, section in preset.items() if name != "round_steps"}
    more["sync"] = more.get("sync", {}) | {"min_peers": least}
    if course.scale.compress == 1 and course.arm == "potluck":
        more["sync"]["round_seconds"] = "auto"  # as the preset has it; what it measures is as in reality
    elif "round_seconds" not in more["sync"]:
        more["sync"]["round_tokens"] = preset["round_steps"] * PEERS * course.scale.tokens_per_step
    trace = Trace()
    with (
        WanLab(dict.fromkeys(("host", *NAMES), Host()), seed=course.seed) as lab,
        WanCommunity(folder, config(course, inputs, **more), lab, starter=starter) as run,
    ):
        for number, name in enumerate(NAMES):
            run.more_environment[name] = pacing.environment(course.speed(number))
        run.host()
        peers = [run.peer(name, "--precision", "fp32") for name in NAMES]  # as the other arms compute
        ready = [peer.wait_for("step", step="finding-members", timeout_s=READY_S)["time"] for peer in peers]
        set_lines(lab, course)
        before = lab.counters()
        trace.spec = _spec(run.run_folder(peers[0].name))
        trace.started = sum(ready) / len(ready)  # as much card time is used before it as is missing after it
        with _states_kept(run, peers[0], folder / "kept", trace):
            killed_at = _watch_ours(course, lab, peers, trace)
        after = lab.counters()
        trace.counters = {name: (before[name], after[name]) for name in NAMES}
    _sum_up_ours(course, peers, trace, killed_at)
    return trace


def _spec(folder: Path) -> RunSpec:
    """Of the run that this peer is in."""
    root = load_public_pem((folder / "root.pem").read_bytes())
    return RunCard.open((folder / "run-card.json").read_bytes(), root).spec


def _watch_ours(course: Course, lab: WanLab, peers: list[LabProcess], trace: Trace) -> float | None:
    """Until the budget is used up, or the limit; when the victim was killed."""
    killed_at = None
    while time.time() < trace.started + course.limit_s:
        time.sleep(LOOK_S)
        trace.tokens = sum(event["tokens"] for event in peers[0].committed().values())
        if course.variant == "killed" and killed_at is None and trace.tokens >= course.budget / 2:
            killed_at = time.time()
            kill(lab, VICTIM)
        if trace.tokens >= course.budget:
            break
    trace.ended = time.time()
    return killed_at


def _sum_up_ours(course: Course, peers: list[LabProcess], trace: Trace, killed_at: float | None) -> None:
    """Busy: what the tokens of all finished work take at the card's speed, and the time since, in which it works on."""
    shares, slow = [], []
    overlap = PRESETS[course.arm][course.kind]["sync"].get("overlap", False)
    for number, peer in enumerate(peers):
        end = killed_at if killed_at is not None and peer.name == VICTIM else trace.ended
        worked = [item for item in peer.events if item["event"] == "worked" and item["time"] <= end]
        slow += [max(0.0, 1 - item["tokens_per_s"] / course.speed(number)) for item in worked]
        last = worked[-1]["time"] if worked else trace.started
        agreed = [event["time"] for event in peer.committed().values() if last <= event["time"] <= end]
        resumed = last if overlap else min(agreed, default=end)
        busy_s = sum(item["tokens"] for item in worked) / course.speed(number) + end - resumed
        shares.append(busy_s / (end - trace.started))
        trace.problems += [
            f"{peer.name}: {item['reason']}" for item in peer.events if item["event"] == "waiting" and item["reason"]
        ]
    trace.busy = sum(shares) / len(shares)
    trace.late_s = sum(slow) / max(1, len(slow)) * (trace.ended - trace.started)


@contextmanager
def _states_kept(run: WanCommunity, peer: LabProcess, kept: Path, trace: Trace) -> Iterator[None]:
    """Copy each state that this peer commits, or the average that led to it, while it is on its disk."""
    kept.mkdir()
    done = threading.Event()

    def copy() -> None:
        seen: set[int] = set()
        while not done.wait(LOOK_S):
            for number, event in sorted(peer.committed().items()):
                if number in seen:
                    continue
                seen.add(number)
                for name in (f"round-{number:06d}{suffix}" for suffix in (WHOLE, AVERAGE)):
                    with contextlib.suppress(FileNotFoundError):  # it is the other, or newer ones have taken its place
                        shutil.copyfile(run.run_folder(peer.name) / "states" / name, kept / name)
                        trace.states.append((event["time"], kept / name))

    thread = threading.Thread(target=copy)
    thread.start()
    try:
        yield
    finally:
        time.sleep(2 * LOOK_S)
        done.set()
        thread.join()
