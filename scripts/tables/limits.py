"""What an owner's limits come to on a running peer: pauses, shares, rates, threads, what a paused one costs, a sleep.

    scripts/bench limits                       all scenes: a quarter of an hour
    scripts/bench limits --only pause,idle

A host and three members, real processes on this machine, in rounds of some seconds; the limits are one member's. When
each of its steps began and ended is in a log of the steps, written from inside; all else is seen from outside.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from lab import pacing
from lab.processes import Community, LabProcess, eventually
from lab.small_community import llama_inputs, run_config
from lab.warm_start import WarmStart
from peer.limits.control import ask

NAMES = ("alice", "bob", "carol")
SMALL, LARGE = 4, 256  # sequences in a pass
PAUSES = 5
LOOK_S = 4.0  # that a pause is watched
ROUND_S = 4.0
DOWNLOAD_MBIT = 16.0
UPLOAD_MBIT = 8.0
SLEEP_S = 180.0
IDLE_S = 60.0
Row = tuple[str, str, str]  # what, seen, goal


class Household:
    """One run; `alice` is the member whose owner has limits."""

    def __init__(self, run: Community, folder: Path) -> None:
        self.run, self._steps = run, folder / "steps"
        self.limits = ""  # as they were written last
        run.more_environment["alice"] = pacing.steps(self._steps)
        run.host()
        self.members = {name: run.peer(name, "--threads", "2") for name in NAMES}
        for member in self.members.values():
            member.wait_round(1)

    @property
    def alice(self) -> LabProcess:
        return self.members["alice"]

    def steps(self, since: float) -> list[tuple[int, float, float]]:
        """(round, begin, end) of each step that ended later, in seconds since 1970."""
        return [item[:3] for item in self.logged(since)]

    def logged(self, since: float) -> list[tuple[int, float, float, int]]:
        """The same, and with how many threads."""
        found = [line.split() for line in self._steps.read_text().splitlines()]
        steps = [(int(item[0]), float(item[1]), float(item[2]), int(item[3])) for item in found if len(item) == 4]
        return [step for step in steps if step[2] >= since]

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        answer = ask(self.run.run_folder("alice"), {"do": do, **values})
        assert answer is not None, "alice runs"
        return answer["state"]

    def limit(self, text: str) -> None:
        """Write alice's limits.toml, while she runs."""
        self.limits = text
        path = self.run.home("alice") / "limits.toml"
        path.with_suffix(".new").write_text(text)
        path.with_suffix(".new").replace(path)

    def until(self, holds: Callable[[dict[str, Any]], object]) -> float:
        """Seconds until alice's status is so."""
        began = time.monotonic()
        eventually(lambda: holds(self.ask("status")))
        return time.monotonic() - began

    def works_again(self) -> float:
        """Seconds until the next step ends."""
        began = time.time()
        eventually(lambda: self.steps(began))
        return time.time() - began

    def tree(self) -> list[psutil.Process]:
        main = psutil.Process(self.alice.pid)
        return [main, *main.children(recursive=True)]


# ---- scenes ----------------------------------------------------------------------------------------------------------


def pause(home: Household) -> list[Row]:
    """From `potluck pause` to the end of the last pass."""
    late = []
    for _ in range(PAUSES):
        home.works_again()
        time.sleep(random.uniform(0, 3))
        asked = time.time()
        home.ask("pause")
        time.sleep(LOOK_S)
        late.append(max([0.0, *(end - asked for _, _, end in home.steps(asked))]))
        home.ask("resume")
    lengths = [end - begin for _, begin, end in home.steps(0)]
    seen = f"{statistics.median(late):.2f} s, {max(late):.2f} at most, of {PAUSES}; a pass takes "
    return [("from `pause` to no work", f"{seen}{statistics.median(lengths):.2f} s", "2 s")]


def others(home: Household) -> list[Row]:
    """Rounds of those who do not pause, without and with one who does every minute."""
    rows = []
    for name, pauses in (("nobody pauses", 0), ("alice pauses for 15 s of each minute", 3)):
        began = time.time()
        for _ in range(3):
            if pauses:
                home.ask("pause", seconds=15)
            time.sleep(60)
        home.ask("resume")
        found = sorted(e["time"] for e in home.members["bob"].committed().values() if e["time"] > began)
        lengths = [later - sooner for sooner, later in itertools.pairwise(found)]
        seen = f"{statistics.median(lengths):.2f} s median, {max(lengths):.2f} longest, {len(lengths)} rounds"
        rows.append((f"the others' rounds, {name}", seen, "no change beyond noise"))
    return rows


def share(home: Household) -> list[Row]:
    """Part of the time in which steps are done, between two of one round."""
    rows = []
    for wanted in (0.5, 0.25):
        home.limit(f"share = {wanted}\n")
        took = home.until(lambda state: state["share"] == float(home.limits.removeprefix("share = ")))
        began = time.time()
        time.sleep(45)
        steps = home.steps(began)[1:]
        pairs = [(a, b) for a, b in itertools.pairwise(steps) if a[0] == b[0]]
        busy = sum(end - begin for (_, begin, end), _ in pairs) / sum(b[1] - a[1] for a, b in pairs)
        rows.append((f"`share = {wanted}`", f"{busy:.3f} of the time; in force after {took:.1f} s", "within 5 %"))
    home.limit("")
    return rows


def threads(home: Household) -> list[Row]:
    """What the steps compute with."""
    rows = []
    for wanted in (2, 1):
        home.limit(f"threads = {wanted}\nniceness = 10\n")
        asked = time.time()
        home.works_again()
        time.sleep(5)
        late = [begin - asked for _, begin, _, used in home.logged(asked) if used != wanted]
        seen = f"until the last step with another number: {max([0.0, *late]):.1f} s"
        rows.append((f"`threads = {wanted}`", seen, "2 s"))
    rows.append(("`niceness = 10`", f"{os.getpriority(os.PRIO_PROCESS, home.alice.pid)}", "10"))
    home.limit("")
    return rows


def closed(home: Household) -> list[Row]:
    """Limits that stop all work, changed while it runs."""
    free = psutil.disk_usage(str(home.run.folder)).free / 1e9
    rows = []
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as program:
        name = psutil.Process(program.pid).name()
        for text in (f"disk_free_gb = {free + 50:.0f}", 'hours = ["00:00-00:01"]', f'programs = ["{name}"]'):
            home.limit(text + "\n")
            took = home.until(lambda state: not state["may_work"])
            why = home.ask("status")["why"]
            home.limit("")
            again = home.until(lambda state: state["may_work"])
            rows.append((f"`{text}`", f"closed after {took:.1f} s ({why}), open {again:.1f} s after it is gone", "2 s"))
        program.kill()
    return rows


def idle(home: Household) -> list[Row]:
    """What a paused peer costs."""
    home.ask("pause")
    eventually(lambda: len(home.tree()) == 1)
    before, told = _cpu_s(home.tree()), _counted(home.tree())
    time.sleep(IDLE_S)
    cores, now = (_cpu_s(home.tree()) - before) / IDLE_S, _counted(home.tree())
    each_s = sum(count - told.get(line, 0) for line, count in now.items()) / IDLE_S
    open_lines = [line for line in home.tree()[0].net_connections("tcp") if line.status == psutil.CONN_ESTABLISHED]
    home.ask("resume")
    took = home.works_again()
    costs = f"{100 * cores:.2f} % of a core, {len(open_lines)} connections, {each_s:.0f} B/s"
    seen = f"{costs}; works {took:.1f} s after `resume`"
    return [("a paused peer", seen, "1 %, 1 kB/s")]


def download(home: Household) -> list[Row]:
    """A newcomer's fetching, of the model's largest file."""
    began = time.time()
    dave = home.run.peer("dave", "--limit", f"download_mbit={DOWNLOAD_MBIT:g}")
    event = dave.wait_for("fetched", lambda item: item["bytes"] > 1e6)
    before = [item["time"] for item in dave.events if item["time"] < event["time"] and item["event"] != "fetched"]
    mbit = 8e-6 * event["bytes"] / (event["time"] - max([began, *before]))
    dave.kill()
    seen = f"{mbit:.1f} Mbit/s over {event['bytes'] / 1e6:.0f} MB"
    return [(f"`download_mbit = {DOWNLOAD_MBIT:g}`", seen, "within 5 %")]


def upload(home: Household) -> list[Row]:
    """What leaves her p2pd while her parts of an average are under way, as the kernel counts it."""
    home.limit(f"upload_mbit = {UPLOAD_MBIT:g}\n")
    time.sleep(2 * ROUND_S)
    seen, ends = [(time.monotonic(), _sent(home))], time.monotonic() + 60
    while time.monotonic() < ends:
        time.sleep(0.25)
        seen.append((time.monotonic(), _sent(home)))
    home.limit("")
    steps = [
        (later - sooner, 8e-6 * sum(count - before.get(line, 0) for line, count in after.items()))
        for (sooner, before), (later, after) in itertools.pairwise(seen)
    ]
    least = UPLOAD_MBIT / 4  # in a second: less is talk, or the beginning and the end of a part
    busy = [here for before, here, after in zip(steps, steps[1:], steps[2:], strict=False)
            if all(mbit > least * took for took, mbit in (before, here, after))]  # fmt: skip
    mbit, took = sum(mbit for _, mbit in busy), sum(took for took, _ in busy)
    return [
        (
            f"`upload_mbit = {UPLOAD_MBIT:g}`",
            f"{mbit / max(took, 1e-9):.2f} Mbit/s in {took:.0f} s of sending",
            "within 5 %",
        )
    ]


def _sent(home: Household) -> dict[str, int]:
    """Bytes sent by each connection of alice's p2pd, which speaks to her own program by a Unix socket."""
    return _counted(home.tree()[1:], "bytes_sent")


def _counted(processes: list[psutil.Process], what: str = "bytes_sent|bytes_received") -> dict[str, int]:
    """Bytes of each open TCP connection, as the kernel counts them."""
    pids = {process.pid for process in processes}
    lines = subprocess.run(["ss", "-tinpHO"], capture_output=True, text=True, check=True).stdout.splitlines()
    found = {}
    for line in lines:
        owner, counts = re.search(r"pid=(\d+)", line), re.findall(rf"(?:{what}):(\d+)", line)
        if owner and counts and int(owner[1]) in pids:
            found[" ".join(line.split()[3:5])] = sum(map(int, counts))
    return found


def sleep(home: Household) -> list[Row]:
    """A computer that sleeps: all its processes stand still."""
    processes = home.tree()
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    time.sleep(SLEEP_S)
    before = home.alice.round
    for process in processes:
        process.send_signal(signal.SIGCONT)
    began = time.monotonic()
    eventually(lambda: any(e["took_part"] for r, e in home.alice.committed().items() if r > before))
    there = [r for r, e in home.alice.committed().items() if r > before and e["took_part"]]
    late = min(there) - home.members["bob"].round
    seen = f"its work is in a round {time.monotonic() - began:.1f} s after it wakes, {-late} rounds before the newest"
    return [(f"asleep for {SLEEP_S:.0f} s", seen, "back in the next round")]


SCENES = {scene.__name__: scene for scene in (pause, others, share, threads, closed, idle, download, upload, sleep)}


# ---- the table -------------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench limits", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(SCENES), help="scenes, of " + ", ".join(SCENES))
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    options = parser.parse_args(arguments)
    names = options.only.split(",")
    rows: list[Row] = []
    with WarmStart() as starter:
        rows += play(starter, SMALL, names)
        if "pause" in names:
            rows += play(starter, LARGE, ["pause"])
    print("\n| limit | seen | goal |\n|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return 0


def play(starter: WarmStart, batch: int, names: list[str]) -> list[Row]:
    """Some scenes of one run."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config = run_config(
            llama_inputs(folder / "inputs", hidden=256, layers=8),
            inner={"lr": 1e-3, "micro_batch": batch, "batch": batch},
            sync={"round_seconds": ROUND_S, "min_peers": 2},
        )
        with Community(folder, config, starter=starter) as run:
            home = Household(run, folder)
            for name in names:
                print(f"{name}, {batch} sequences a pass …", flush=True)
                found = SCENES[name](home)
                print(*(f"  {what}: {seen}" for what, seen, _ in found), sep="\n", flush=True)
                rows += found
    return rows


def _cpu_s(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)
