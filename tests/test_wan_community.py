"""Whole runs over home lines: a host and three peers, each in a network namespace of its own in the WAN lab."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import Part
from training_fixtures import write_tiny_llama
from wan_community import WanCommunity
from wan_lab import Counters, Host, WanLab, available
from warm_start import WarmStart

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(300)]

HOME = Host(delay_ms=20, jitter_ms=2, up_mbit=20, down_mbit=100)
NAMES = ("alice", "bob", "carol")


@pytest.fixture(scope="module")
def starter() -> Iterator[WarmStart]:
    if reason := available():
        pytest.skip(f"no WAN lab here: {reason}")
    with WarmStart() as started:
        yield started


@pytest.fixture(scope="module")
def llama(starter: WarmStart, glass_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("llama") / "tiny", glass_dir)


def small_run(model: Path, data: Path, **run: Any) -> dict[str, Any]:
    """A run.toml whose rounds take a fraction of a second of work."""
    return {
        "run": {"name": "small", "seed": 7} | run,
        "model": {"path": str(model), "license": "MIT"},
        "data": {"path": str(data), "license": "CC0-1.0", "sequence_length": 32, "held_out_sequences": 16},
        "method": {"kind": "full"},
        "sync": {"method": "diloco", "round_tokens": 3000, "wire": "int8", "min_peers": 3},
        "inner": {"lr": 1e-3, "micro_batch": 4, "batch": 4},
        "publish": {"every_rounds": 10},
    }


def tell(peers: list[Part], before: dict[str, Counters], after: dict[str, Counters], rounds: int) -> None:
    """What the rounds cost: shown by `pytest -s`, and when a test fails."""
    for peer in peers:
        events = peer.committed().values()
        up, down = ((after[peer.name][way] - before[peer.name][way]) / rounds / 1e3 for way in (0, 1))
        waited = ", ".join(f"{event['waited_s']:.2f}" for event in events)
        attempts = {event["round"]: event["attempts"] for event in events if event["attempts"] > 1}
        print(f"{peer.name}: waited {waited} s; {up:.0f} kB up, {down:.0f} kB down a round; attempts {attempts}")


def test_three_peers_on_home_lines_agree_on_every_round(
    tmp_path: Path, llama: Path, plays: Path, starter: WarmStart
) -> None:
    rounds = 8
    config = small_run(llama, plays, rounds=rounds)
    with (
        WanLab(dict.fromkeys(("host", *NAMES), HOME)) as lab,
        WanCommunity(tmp_path, config, lab, starter=starter) as run,
    ):
        host = run.host()
        peers = [run.peer(name) for name in NAMES]
        first = [peer.wait_round(1) for peer in peers]
        before = lab.counters()
        last = [peer.wait_round(rounds) for peer in peers]
        after = lab.counters()
        seconds = max(event["time"] for event in last) - min(event["time"] for event in first)
        print(f"{rounds - 1} rounds in {seconds:.1f} s; start to first round:")
        for peer, event in zip(peers, first, strict=True):
            asked = peer.wait_for("step", step="asking-coordinator")["time"]
            print(f"  {peer.name}: {event['time'] - asked:.1f} s")
        tell(peers, before, after, rounds - 1)
        print(lab.strain())
        assert [peer.wait() for peer in peers] == [0, 0, 0]
        assert host.stop(signal.SIGINT) == 0
        states = [{number: event["state"] for number, event in peer.committed().items()} for peer in peers]
        assert sorted(states[0]) == list(range(1, rounds + 1))
        assert all(of_one == states[0] for of_one in states)
        assert all(after[name].bytes_up > before[name].bytes_up for name in NAMES)
