"""Preparing data: speed, memory and disk by size and number of processes, and what that makes for 1 TB.

    scripts/bench prepare                                   0.2 GB, with 1 process and with one for each core
    scripts/bench prepare --sizes 0.2,2 --processes 1,2     two minutes for each 0.1 GB and process, about

The data are the plays, by paragraphs, again and again with a counter, as JSONL; the tokenizer is the demo's, or that of
`--model`. What is measured is `potluck data prepare` itself. Memory is the most that its processes had together at one
time, pages that they share counted once (PSS).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import psutil

from lab import REPOSITORY
from lab.small_community import real_inputs

SAMPLE_S = 0.2
TB = 10**12
TOML = """
[run]
name = "prepare"
[model]
path = {model}
license = "MIT"
[[data]]
name = "plays"
kind = "jsonl"
path = "plays.jsonl"
license = "CC0-1.0"
[sequences]
sequence_length = 512
[sync]
round_tokens = 1000
"""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench prepare", description=__doc__.splitlines()[0])
    cores = os.cpu_count() or 1
    parser.add_argument("--sizes", default="0.2", help="GB of data")
    parser.add_argument("--processes", default=",".join(map(str, sorted({1, cores}))))
    parser.add_argument("--model", type=Path, help="a folder with a tokenizer; default: the demo's")
    parser.add_argument("--folder", type=Path, help="where there is room; default: the system's for temporary files")
    parser.add_argument("--json", type=Path, help="write the measurements there")
    options = parser.parse_args(arguments)
    results = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        inputs = real_inputs(folder / "inputs")
        model = (options.model or inputs.model).resolve()
        (folder / "run.toml").write_text(TOML.format(model=json.dumps(str(model))))
        print(f"\npreparing data: {model.name}, sequences of 512 tokens, {cores} cores\n{HEAD}", flush=True)
        for size in map(float, options.sizes.split(",")):
            write_data(folder / "plays.jsonl", inputs.text.read_text(), int(size * 1e9))
            for processes in map(int, options.processes.split(",")):
                results.append(measure(folder, processes) | {"gb": size})
                print(row(results[-1]), flush=True)
            if len({result["root"] for result in results if result["gb"] == size}) > 1:
                print("the roots differ", file=sys.stderr)
                return 1
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    return 0


HEAD = f"{'data':>8} {'processes':>10} {'MB/s':>7} {'tokens/s':>11} {'memory':>8} {'shards':>8}   1 TB takes"


def row(result: dict[str, Any]) -> str:
    size = result["gb"] * 1e9
    days, shards_gb = TB / size * result["wall_s"] / 86400, result["disk_bytes"] * TB / size / 1e9
    return (
        f"{result['gb']:5.1f} GB {result['processes']:10} {size / 1e6 / result['wall_s']:7.2f} "
        f"{result['tokens'] / result['wall_s']:11,.0f} {result['peak_bytes'] / 1e6:5,.0f} MB "
        f"{result['disk_bytes'] / 1e6:5,.0f} MB   {days:.1f} days, {shards_gb:,.0f} GB of shards"
    )


def write_data(path: Path, text: str, size_bytes: int) -> None:
    """The text's paragraphs, again and again, each record with a number of its own."""
    paragraphs = [part for part in text.split("\n\n") if part.strip()]
    with path.open("w") as file:
        for number, line in enumerate(records(paragraphs)):
            file.write(line)
            if number % 1000 == 0 and file.tell() >= size_bytes:
                return


def records(paragraphs: list[str]) -> Iterator[str]:
    for number in count():
        yield json.dumps({"text": f"{number}\n{paragraphs[number % len(paragraphs)]}"}) + "\n"


def measure(folder: Path, processes: int) -> dict[str, Any]:
    """One preparation, from nothing."""
    out = folder / f"run-{time.monotonic_ns()}"
    command = [sys.executable, "-m", "potluck", "data", "prepare", folder / "run.toml", "--folder", out]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [*command, "--processes", str(processes), "--json"], cwd=REPOSITORY, stdout=subprocess.PIPE, env=environment
    ) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, memory_of(process.pid))
            time.sleep(SAMPLE_S)
        assert process.stdout is not None
        said = process.stdout.read()
    if process.returncode:
        raise RuntimeError("the preparation failed; what went wrong stands above")
    value = json.loads(said)
    shards = sum(path.stat().st_size for path in (out / "data" / "shards").iterdir())
    return {
        "processes": processes,
        "wall_s": value["new_tokens"] / value["tokens_per_s"],
        "tokens": value["new_tokens"],
        "peak_bytes": peak,
        "disk_bytes": shards,
        "root": value["root"],
    }


def memory_of(pid: int) -> int:
    """PSS of a process and all that it has started."""
    total = 0
    with suppress(psutil.Error):
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            with suppress(psutil.Error):
                total += process.memory_full_info().pss
    return total


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
