"""A peer whose disk is full says so, harms nobody, and goes on by itself when there is room again."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import pacing
from lab.processes import CARD_TOKENS_PER_S, Community, eventually
from lab.small_community import tiny_run
from lab.warm_start import WarmStart

pytestmark = pytest.mark.swarm
DISK_BYTES = 24 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """alice's home: a disk of its own."""
    home = tmp_path / "alice"
    home.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(home)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True, timeout=10, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here: that needs root on Linux")
    try:
        yield home
    finally:
        subprocess.run(["umount", "--lazy", str(home)], check=True, timeout=10)


@pytest.fixture
def community(
    small_disk: Path, tmp_path: Path, glass_dir: Path, plays: Path, starter: WarmStart
) -> Iterator[Community]:
    config = tiny_run(tmp_path, glass_dir, plays, "full", round_seconds=1.0, min_peers=2)
    with Community(tmp_path, config, starter=starter, tokens_per_s=CARD_TOKENS_PER_S) as opened:
        # so slow that the others have the majority whoever was in the last round: it cannot vote while its disk is full
        opened.more_environment["alice"] = pacing.environment(CARD_TOKENS_PER_S / 4)
        yield opened


def fill(folder: Path) -> Path:
    """Take all the room that is left on a disk; returns the file that has it."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert os.statvfs(folder).f_bavail == 0
    return filler


def test_a_full_disk_is_told_and_costs_the_others_nothing(community: Community, small_disk: Path) -> None:
    community.host()
    alice, bob, carol = peers = [community.peer(name) for name in ("alice", "bob", "carol")]
    for peer in peers:
        peer.wait_for("committed", members=3)
    filler = fill(small_disk)
    eventually(lambda: "the disk is full" in alice.said)
    now = bob.round
    for peer in (bob, carol):
        peer.wait_round(now + 4)
    filler.unlink()
    freed = max(peer.round for peer in peers)
    alice.wait_for("committed", lambda event: event["round"] > freed and event["took_part"])
    alice.wait_round(freed + 3)
    assert alice.stop() == 0
    assert "Traceback" not in alice.said
    states = sorted(path.name for path in (community.run_folder("alice") / "states").glob("*.json"))
    assert states[-1] >= f"round-{freed + 1:06d}.json", "what is agreed is on disk again"

    filler = fill(small_disk)
    full = community.peer("alice")
    assert full.wait() == 2
    assert "the disk is full" in full.said and "hint: free some space" in full.said and "Traceback" not in full.said
    filler.unlink()
    again = community.peer("alice")
    back = again.wait_for("committed", took_part=True)
    assert back["round"] > freed
    rounds = {number: event["state"] for part in (alice, again, bob) for number, event in part.committed().items()}
    assert all(rounds[number] == event["state"] for number, event in carol.committed().items() if number in rounds)
