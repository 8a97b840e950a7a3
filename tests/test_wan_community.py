"""Whole runs over home lines: a host and three peers, each in a network namespace of its own in the WAN lab."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from lab.processes import CARD_TOKENS_PER_S, LabProcess, eventually
from lab.training_fixtures import write_tiny_llama
from lab.wan.community import WanCommunity
from lab.wan.lab import Counters, Host, WanLab, available
from lab.warm_start import WarmStart

pytestmark = pytest.mark.swarm

HOME = Host(delay_ms=20, jitter_ms=2, up_mbit=20, down_mbit=100)
NAMES = ("alice", "bob", "carol")


@pytest.fixture(scope="module", autouse=True)
def lab() -> None:
    if reason := available():
        pytest.skip(f"no WAN lab here: {reason}")


@pytest.fixture(scope="module")
def llama(glass_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
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


def tell(peers: list[LabProcess], before: dict[str, Counters], after: dict[str, Counters], rounds: int) -> None:
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
    rounds = 5
    config = small_run(llama, plays, rounds=rounds)
    with (
        WanLab(dict.fromkeys(("host", *NAMES), HOME)) as lab,
        WanCommunity(tmp_path, config, lab, starter=starter, tokens_per_s=CARD_TOKENS_PER_S) as run,
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


def test_a_member_that_comes_to_another_network_is_in_the_next_rounds(
    tmp_path: Path, llama: Path, plays: Path, starter: WarmStart
) -> None:
    config = small_run(llama, plays, rounds=0)
    config["sync"] = {"method": "diloco", "round_seconds": 1.5, "wire": "int8", "min_peers": 2}
    with (
        WanLab(dict.fromkeys(("host", *NAMES), HOME)) as lab,
        WanCommunity(tmp_path, config, lab, starter=starter, tokens_per_s=CARD_TOKENS_PER_S) as run,
    ):
        run.host()
        peers = [run.peer("alice", "--listen", "0.0.0.0:0"), run.peer("bob"), run.peer("carol")]
        for peer in peers:
            peer.wait_for("committed", lambda event: event["members"] == 3 and event["took_part"])
        lab.move("alice", "10.77.0.200")
        moved = time.time()
        alice = peers[0]
        whole = alice.wait_for(  # a round that was as good as made then does not count
            "committed", lambda event: event["time"] > moved + 1.5 and event["members"] == 3 and event["took_part"]
        )
        alice.wait_for("waiting", key="back")
        alice.wait_for("credited", lambda event: event["newest"] >= whole["round"])
        without = [event for event in peers[1].committed().values() if moved < event["time"] < whole["time"] - 0.5]
        print(f"together again after {whole['time'] - moved:.1f} s, {len(without)} rounds later")
        assert len(without) <= 3, "libp2p's own signs of life take 40 s: ten rounds"
        assert "cannot be reached" not in alice.said, "its coordinator was there all the time"


@pytest.mark.slow
def test_a_split_swarm_goes_on_in_one_half_and_is_whole_again_two_rounds_after_it_heals(
    tmp_path: Path, llama: Path, plays: Path, starter: WarmStart
) -> None:
    config = small_run(llama, plays, rounds=0)
    config["sync"] = {"method": "diloco", "round_seconds": 1.5, "wire": "int8", "min_peers": 2}
    names = (*NAMES, "dave", "erin")
    with (
        WanLab(dict.fromkeys(("host", *names), HOME)) as lab,
        WanCommunity(tmp_path, config, lab, starter=starter, tokens_per_s=CARD_TOKENS_PER_S) as run,
    ):
        run.host()
        peers = {name: run.peer(name) for name in names}
        for peer in peers.values():
            peer.wait_for("committed", lambda event: event["members"] == 5 and event["took_part"])
        lab.split([["host", *names[:2]], names[2:]])
        at = max(peer.round for peer in peers.values())
        halves = [[peers[name] for name in part] for part in (names[:2], names[2:])]
        eventually(
            lambda: any(all(peer.round >= at + 3 for peer in half) for half in halves)
        )  # the weights decide which
        halves.sort(key=lambda half: min(peer.round for peer in half))
        minority = halves[0]
        for peer in minority:
            peer.wait_for("waiting", lambda event: "too few" in event["reason"])
        assert max(peer.round for peer in minority) <= at + 1, "only one half goes on"
        lab.heal()
        healed = time.time()
        whole = [
            peer.wait_for("committed", lambda event: event["members"] == 5 and event["time"] > healed)
            for peer in peers.values()
        ]
        rounds = {event["round"] for event in whole}
        after = [event for peer in minority for event in peer.events if event["event"] == "committed"]
        heard = min(event["round"] for event in after if event["time"] > healed)
        print(f"split at round {at}; healed; first heard of round {heard}, whole again in round {min(rounds)}")
        assert min(rounds) <= heard + 2
        states = [{number: event["state"] for number, event in peer.committed().items()} for peer in peers.values()]
        for number in set().union(*states):
            assert len({of_one[number] for of_one in states if number in of_one}) == 1, f"round {number}"


@pytest.mark.slow
def test_peers_behind_firewalls_and_on_very_slow_lines_take_part(
    tmp_path: Path, llama: Path, plays: Path, starter: WarmStart
) -> None:
    rounds = 4
    config = small_run(llama, plays, rounds=rounds)
    config["sync"] |= {"wire": "fp32"}
    slow = Host(delay_ms=40, up_mbit=0.5, down_mbit=4, firewall_s=60)
    lines = {"host": HOME, "alice": HOME, "bob": slow, "carol": slow}
    with (
        WanLab(lines) as lab,
        WanCommunity(tmp_path, config, lab, starter=starter, tokens_per_s=CARD_TOKENS_PER_S) as run,
    ):
        run.host()
        peers = [run.peer(name) for name in NAMES]
        for peer in peers:
            peer.wait_round(rounds, timeout_s=200)
        counted = lab.counters()
        tell(peers, {name: Counters(0, 0, 0, 0, 0) for name in NAMES}, counted, rounds)
        states = [{number: event["state"] for number, event in peer.committed().items()} for peer in peers]
        for number in set().union(*states):
            assert len({of_one[number] for of_one in states if number in of_one}) == 1, f"round {number}"
        assert any(event["members"] == 3 for event in peers[1].committed().values())
