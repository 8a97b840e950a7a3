"""The soak: thousands of rounds, as short as they can be, and a sampler of everything that may grow.

A coordinator and three peers, fresh processes all, train a tiny model over loopback sockets. Every few seconds the
sampler notes for each peer, all its processes together, and for the coordinator: memory (PSS: shared pages divided
among those who share them), open files, threads, processor time for each round; the mean time of a round since the last
sample, which other work on the machine makes longer; files in /dev/shm and sockets of p2pd.

    scripts/soak --minutes 60 --out soak        soak/soak.csv and soak/soak.png

Printed at the end: the mean of the first and of the last tenth of the samples, after a warm-up, and their ratio.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from lab.outcomes import counted_twice, divergences
from lab.processes import Community, LabProcess, leave_in_turn, marked
from lab.small_community import run_config, tiny_inputs

NAMES = ("alice", "bob", "carol")
PANELS = {
    "memory, MB (PSS)": ("peer_mb", "host_mb"),
    "open files": ("peer_files", "host_files"),
    "threads": ("peer_threads", "host_threads"),
    "processor seconds per round": ("peer_cpu_s", "host_cpu_s"),
    "seconds per round": ("round_s",),
    "files in /dev/shm, p2pd sockets": ("shm_files", "sockets"),
}
Sample = dict[str, float]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every-s", type=float, default=5.0, help="between two samples")
    parser.add_argument("--round-tokens", type=int, default=192, help="of all peers in a round")
    parser.add_argument("--warm-up", type=float, default=0.05, help="share of the samples that is not compared")
    parser.add_argument("--out", type=Path, default=Path("soak"), help="folder for soak.csv and soak.png")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        inputs = tiny_inputs(Path(folder) / "inputs")
        place = Path(folder) / "run"
        place.mkdir()
        sync = {"round_tokens": options.round_tokens, "min_peers": len(NAMES)}
        config = run_config(inputs, sync=sync, inner={"micro_batch": 2, "batch": 2})
        with Community(place, config) as run:
            samples = soak(run, options)
    draw(samples, options.out / "soak.png")
    return tell(samples, options)


def soak(run: Community, options: argparse.Namespace) -> list[Sample]:
    """Start everyone, and sample until the time is over; the CSV file is written as it goes."""
    host = run.host()
    peers = [run.peer(name) for name in NAMES]
    for peer in peers:
        peer.wait_round(1)
    samples: list[Sample] = []
    started, last = time.monotonic(), sample(run, peers, None, 0.0)
    with (options.out / "soak.csv").open("w", newline="") as file:
        table = csv.DictWriter(
            file,
            fieldnames=["time_s", "round", *(name for names in PANELS.values() for name in names)],
            extrasaction="ignore",
        )
        table.writeheader()
        while time.monotonic() - started < 60 * options.minutes:
            time.sleep(options.every_s)
            last = sample(run, peers, last, time.monotonic() - started)
            samples.append(last)
            table.writerow({name: round(value, 4) for name, value in samples[-1].items()})
            file.flush()
    leave_in_turn(peers)
    host.stop(signal.SIGINT)
    assert not divergences(peers), "two states in one round"
    assert not counted_twice(run), "work was counted twice"
    return samples


def sample(run: Community, peers: list[LabProcess], last: Sample | None, now: float) -> Sample:
    """One look at everything."""
    rounds = min(peer.round for peer in peers)
    used = [usage(processes_of(run, peer.name)) for peer in peers]
    host = usage(processes_of(run, "host"))
    run.note_sockets()
    done = rounds - (last["round"] if last else 0)
    found: Sample = {
        "time_s": now,
        "round": rounds,
        "round_s": (now - (last["time_s"] if last else 0.0)) / max(done, 1),
        "shm_files": len(list(Path("/dev/shm").iterdir())),
        "sockets": len(run.sockets()),
        **{f"peer_{key}": statistics.mean(item[key] for item in used) for key in host},
        **{f"host_{key}": host[key] for key in host},
    }
    for who in ("peer", "host"):
        total = f"{who}_cpu_total_s"
        found[f"{who}_cpu_s"] = (found[total] - (last[total] if last else 0.0)) / max(done, 1)
    return found


def processes_of(run: Community, name: str) -> list[psutil.Process]:
    """A part's processes: itself, p2pd, and what watches over that."""
    found = []
    for pid in marked(f"{run.folder}:{name};"):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return found


def usage(processes: Iterable[psutil.Process]) -> dict[str, float]:
    """Memory in MB, open files, threads, and processor time since their start, of all together."""
    total = {"mb": 0.0, "files": 0.0, "threads": 0.0, "cpu_total_s": 0.0}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            total["mb"] += process.memory_full_info().pss / 1e6
            total["files"] += process.num_fds()
            total["threads"] += process.num_threads()
            total["cpu_total_s"] += process.cpu_times().user + process.cpu_times().system
    return total


def compared(samples: list[Sample], name: str, warm_up: float) -> tuple[float, float]:
    """The mean of the first tenth after the warm-up, and of the last tenth."""
    values = [item[name] for item in samples][int(warm_up * len(samples)) :]
    tenth = max(1, len(values) // 10)
    return statistics.mean(values[:tenth]), statistics.mean(values[-tenth:])


def draw(samples: list[Sample], path: Path) -> None:
    """One panel for each kind of figure, over the rounds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(PANELS), 1, figsize=(9, 2.4 * len(PANELS)), sharex=True, layout="constrained")
    rounds = [item["round"] for item in samples]
    for axis, (title, names) in zip(axes, PANELS.items(), strict=True):
        for name in names:
            axis.plot(rounds, [item[name] for item in samples], label=name.split("_")[0], linewidth=1)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_ylim(bottom=0)
        if len(names) > 1:
            axis.legend(fontsize=8, loc="lower right")
    axes[-1].set_xlabel("round")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def tell(samples: list[Sample], options: argparse.Namespace) -> int:
    print(
        f"\nthree peers and a coordinator, {samples[-1]['round']:.0f} rounds in {samples[-1]['time_s'] / 60:.1f} "
        f"minutes, {time.strftime('%Y-%m-%d')}"
    )
    print(f"{'':14} {'first tenth':>12} {'last tenth':>12} {'ratio':>7}")
    for names in PANELS.values():
        for name in names:
            first, last = compared(samples, name, options.warm_up)
            ratio = f"{last / first:.3f}" if first else "-"
            print(f"{name:14} {first:12.3f} {last:12.3f} {ratio:>7}")
    print(f"{options.out / 'soak.csv'}, {options.out / 'soak.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
