"""What a peer's processes weigh beyond torch and the model, against stock hivemind's.

Three arms in one run, each a process tree of its own on the same machine, all with the demo's model: Python with torch
and transformers and the model, AdamW and its gradient, and nothing else; a stock `hivemind.Optimizer` with its DHT,
after two epochs with another one; a Potluck peer after two rounds with another one. Memory is the proportional set size
(shared pages divided among those who share them) of all processes of one peer, the others having been killed a moment
before.

    scripts/bench memory --json memory.json

Goal: the overhead beyond torch and the model is at most half of stock hivemind's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from lab.processes import Community, marked
from lab.small_community import real_inputs, run_config

GOAL = 0.5
READY_S = 180.0

ALONE = """
import sys, time, torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
for _ in range(3):
    ids = torch.randint(0, 500, (4, 64))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
print("ready", flush=True)
time.sleep(600)
"""

STOCK = """
import sys, time, hivemind, torch
from transformers import AutoModelForCausalLM
if __name__ == "__main__":
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
    dht = hivemind.DHT(start=True, host_maddrs=["/ip4/127.0.0.1/tcp/0"], initial_peers=sys.argv[2:])
    optimizer = hivemind.Optimizer(
        dht=dht, run_id="memory", target_batch_size=64, batch_size_per_step=4, params=model.parameters(),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-4), matchmaking_time=2.0,
        averaging_timeout=30.0, verbose=False)
    print(*map(str, dht.get_visible_maddrs()), flush=True)
    ended = time.time() + 120
    while optimizer.local_epoch < 2 and time.time() < ended:
        ids = torch.randint(0, 500, (4, 64))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        time.sleep(0.1)
    print("ready", optimizer.local_epoch, flush=True)
    time.sleep(600)
"""


def pss_mb(pids: list[int]) -> float:
    """Of these processes together."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def tree(pid: int) -> list[int]:
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def run_script(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def end(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        for pid in reversed(tree(process.pid)):
            psutil.Process(pid).kill()
        process.wait(10)


def alone(model: Path) -> tuple[float, int]:
    process = run_script(ALONE, str(model))
    try:
        assert process.stdout is not None and process.stdout.readline().startswith("ready")
        return pss_mb(tree(process.pid)), 1
    finally:
        end(process)


def stock(model: Path, folder: Path) -> tuple[float, int]:
    script = folder / "stock.py"  # hivemind starts its processes by a fork server that imports the main file
    script.write_text(STOCK)

    def start(*addresses: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script), str(model), *addresses],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    first = start()
    assert first.stdout is not None
    addresses = first.stdout.readline().split()
    second = start(*addresses)
    try:
        said = first.stdout.readline()
        assert said.startswith("ready"), said
        end(second)  # pages that it shares count for the other one alone
        return pss_mb(tree(first.pid)), len(tree(first.pid))
    finally:
        end(*(process for process in (first, second) if process.poll() is None))


def ours(place: Path, config: dict) -> tuple[float, int]:
    with Community(place, config) as run:
        host = run.host()
        peers = [run.peer(name) for name in ("alice", "bob")]
        for peer in peers:
            peer.wait_round(2, timeout_s=READY_S)
        for other in (host, peers[1]):
            other.kill()
        time.sleep(2.0)  # until their p2pd are gone too
        pids = marked(f"{run.folder}:alice;")
        return pss_mb(pids), len(pids)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench memory", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = real_inputs(folder / "inputs")
        place = folder / "run"
        place.mkdir()
        config = run_config(inputs, sync={"round_seconds": 4.0, "min_peers": 2})
        found = {
            "torch and the model": alone(inputs.model),
            "stock hivemind": stock(inputs.model, folder),
            "a Potluck peer": ours(place, config),
        }
    base, theirs = found["torch and the model"][0], found["stock hivemind"][0]
    print(
        "\n| | processes | memory, MB | beyond torch and the model, MB | of stock hivemind's |\n|---|---|---|---|---|"
    )
    for label, (size, processes) in found.items():
        over, share = size - base, (size - base) / (theirs - base)
        print(f"| {label} | {processes} | {size:.0f} | {over:.0f} | {share:.2f} |")
    ratio = (found["a Potluck peer"][0] - base) / (theirs - base)
    print(f"\nratio {ratio:.2f}, goal at most {GOAL} ({time.monotonic() - started:.0f} s)")
    if options.json:
        options.json.write_text(json.dumps({label: {"mb": size, "processes": n} for label, (size, n) in found.items()}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
