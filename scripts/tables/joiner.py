"""How long a newcomer on a home line takes from `potluck join` to its first counted work.

In the WAN lab: a coordinator and two peers on fast lines, who are some rounds into a run, and one who joins on a line
of 50 Mbit/s each way and 20 ms. It fetches the genesis and the data from the coordinator, the state of the moment from
the peers, and works until the round ends in which its claim is part of the agreement. The physical limit is what that
many bytes take on the line: the model once (it must have the parameters), and everything that came down until then.

    scripts/bench joiner --sizes glassllm,10M

Not counted: Python's imports (the processes are forked from one that has them), about 5 s on a fresh machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from lab import pacing
from lab.processes import LabProcess
from lab.small_community import Inputs, llama_inputs, real_inputs, run_config
from lab.wan.community import WanCommunity
from lab.wan.lab import Host, WanLab, available
from lab.warm_start import WarmStart

FAST = Host(delay_ms=10)
WAIT_S = 400.0
LLAMAS = {"10M": (320, 8), "25M": (512, 8), "60M": (768, 8)}  # hidden size, layers


@dataclass(frozen=True)
class Joined:
    """How one newcomer fared; seconds are since its start."""

    model: str
    model_bytes: int
    down_bytes: int
    states: int  # how often it fetched the others' state: more than once when a round ended meanwhile
    admitted_s: float  # files fetched and verified
    standing_s: float  # on the state of the others
    counted_s: float  # its work is part of an agreement
    round_s: float  # mean time of the others' rounds

    def row(self, mbit: float) -> str:
        model_s, down_s = (size * 8e-6 / mbit for size in (self.model_bytes, self.down_bytes))
        return (
            f"{self.model:10} {self.model_bytes / 1e6:9.1f} {self.down_bytes / 1e6:8.1f} {self.states:7d} "
            f"{model_s:12.1f} {down_s:12.1f} {self.admitted_s:10.1f} {self.standing_s:9.1f} "
            f"{self.counted_s:9.1f} {self.round_s:8.1f}"
        )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench joiner", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sizes", type=lambda text: text.split(","), default=["glassllm", "10M"], help="glassllm, 10M, 25M, 60M"
    )
    parser.add_argument("--mbit", type=float, default=50.0, help="of the newcomer's line, each way")
    parser.add_argument("--round-seconds", type=float, default=15.0)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args(arguments)
    if reason := available():
        sys.stderr.write(f"error: there is no WAN lab here: {reason}\nhint: run it as root on Linux\n")
        return 2
    found = []
    with tempfile.TemporaryDirectory() as folder, WarmStart() as starter:
        for size in options.sizes:
            place = Path(folder) / size
            if size in LLAMAS:
                hidden, layers = LLAMAS[size]
                inputs = llama_inputs(place, hidden=hidden, layers=layers)
            else:
                inputs = real_inputs(place)
            found.append(join(size, inputs, place / "run", options, starter))
    print(
        f"\na newcomer on {options.mbit:g} Mbit/s, rounds of {options.round_seconds:g} s, {time.strftime('%Y-%m-%d')}"
    )
    print(
        f"{'model':10} {'model, MB':>9} {'down, MB':>8} {'states':>7} {'model at':>12} {'all at':>12} {'admitted':>10} "
        f"{'standing':>9} {'counted':>9} {'a round':>8}\n{'':37} {'line rate, s':>12} {'line rate, s':>12} "
        f"{'after, s':>10} {'after, s':>9} {'after, s':>9} {'takes, s':>8}"
    )
    for item in found:
        print(item.row(options.mbit))
    if options.json:
        options.json.write_text(json.dumps([dataclasses.asdict(item) for item in found], indent=2) + "\n")
    return 0


def join(size: str, inputs: Inputs, folder: Path, options: argparse.Namespace, starter: WarmStart) -> Joined:
    """Let one newcomer join a run of two."""
    folder.mkdir()
    line = Host(delay_ms=10, up_mbit=options.mbit, down_mbit=options.mbit)
    config = run_config(
        inputs,
        sync={"round_seconds": options.round_seconds, "min_peers": 2},
        inner={"micro_batch": 1, "batch": 1},
    )
    with (
        WanLab({"host": FAST, "one": FAST, "two": FAST, "late": line}) as lab,
        WanCommunity(folder, config, lab, starter=starter) as run,
    ):
        for name in ("one", "two", "late"):
            run.more_environment[name] = pacing.environment(64)  # they are here to be joined, not to train
        run.host()
        early = [run.peer("one"), run.peer("two")]
        for peer in early:
            peer.wait_round(2, WAIT_S)
        started = time.time()
        late = run.peer("late", "--verbose")
        counted = late.wait_for("committed", took_part=True, timeout_s=WAIT_S)
        down = lab.counters()["late"].bytes_down
        return Joined(
            size,
            weights_bytes(inputs.model),
            down,
            late.said.count("fetched round"),
            late.wait_for("step", step="finding-members")["time"] - started,
            late.wait_for("committed")["time"] - started,
            counted["time"] - started,
            round_seconds(early[0]),
        )


def weights_bytes(model: Path) -> int:
    return sum(path.stat().st_size for path in model.glob("*.safetensors"))


def round_seconds(peer: LabProcess) -> float:
    """From its first round to its last, a round's mean."""
    times = sorted((number, event["time"]) for number, event in peer.committed().items())
    return (times[-1][1] - times[0][1]) / (times[-1][0] - times[0][0])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
