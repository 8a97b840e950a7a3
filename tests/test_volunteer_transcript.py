"""A volunteer's afternoon in a real terminal: doctor, join, pause, limits, keys, finish, and another day, leave."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.processes import CARD_TOKENS_PER_S, WAIT_S, Community, eventually
from lab.small_community import tiny_run
from lab.warm_start import WarmStart
from peer.screen.messages import text
from tests.kit.terminal import Terminal

pytestmark = pytest.mark.swarm
JOIN = ("--device", "cpu", "--threads", "1", "--listen", "127.0.0.1:0")


@pytest.fixture
def community(tmp_path: Path, glass_dir: Path, plays: Path, starter: WarmStart) -> Iterator[Community]:
    config = tiny_run(tmp_path, glass_dir, plays, "wood", round_seconds=2.0, min_peers=1)
    with Community(tmp_path, config, starter=starter, tokens_per_s=CARD_TOKENS_PER_S) as opened:
        yield opened


def terminal(community: Community, *arguments: str) -> Terminal:
    environment = community.environment("alice") | {
        "TERM": "xterm-256color", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "PYTHONUTF8": "1",
    }  # fmt: skip
    environment.pop("NO_COLOR", None)
    return Terminal([*arguments, "--home", str(community.home("alice"))], environment, community.folder)


def ask(community: Community, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "potluck", *arguments, "--home", str(community.home("alice"))],
        capture_output=True, text=True, timeout=WAIT_S, cwd=community.folder, env=community.environment("no-owner"),
    )  # fmt: skip


def test_an_afternoon_and_another_day(community: Community) -> None:
    community.host()
    community.peer("bob")
    home = community.home("alice")

    with terminal(community, "doctor", community.invite) as doctor:
        doctor.sees("wood", "memory")
        assert doctor.end() == 0, doctor.shown

    with terminal(community, "join", community.invite, *JOIN) as alice:
        alice.sees("This run wants to use your computer:", "wood", "is sent", "[y/N]")
        alice.press("y\n")
        alice.sees("working", "? help")

        paused = ask(community, "pause", "--for", "30min")
        assert (paused.returncode, paused.stdout) == (0, "wood: paused; potluck resume goes on\n"), paused.stderr
        alice.sees("paused by you; `potluck resume` goes on", "until")
        (seen,) = json.loads(ask(community, "status", "--json").stdout)
        assert seen["running"] and not seen["live"]["may_work"] and seen["live"]["why"] == "owner-paused"
        assert ask(community, "resume").returncode == 0
        alice.sees("working")

        limits = home / "limits.toml"
        limits.write_text("disk_free_gb = 900000\n")
        alice.sees("less than 900000 GB is free on the disk")
        limits.write_text("disk_free_gb = 'much'\n")
        alice.sees("limits.toml has a mistake, the limits stay as they were")
        assert ask(community, "limits").returncode == 2
        limits.write_text("share = 0.9\n")
        alice.sees("working")

        alice.press("p")
        alice.sees("paused; r goes on", "paused by you")
        alice.press("r")
        alice.sees("goes on", "working")
        alice.press("?")
        alice.sees(text("key-p-long", "en"))
        alice.press("x")
        alice.sees("working")  # two keys at once would be pasted text
        alice.press("l")
        alice.sees("l again leaves; any other key stays")
        alice.press("x")
        alice.sees("? help")

        assert ask(community, "finish").returncode == 0
        assert alice.end() == 0, alice.shown[-2000:]
        assert "left. Your identity and your receipts stay on this disk." in " ".join(alice.shown[-600:].split())
    identity = (home / "identity").read_bytes()

    with terminal(community, "join", community.invite, *JOIN, "--yes") as again:
        again.sees("working")
        assert ask(community, "leave").returncode == 0
        assert again.end() in (0, 4), again.shown[-2000:]
    assert (home / "identity").read_bytes() == identity
    eventually(lambda: "no peer runs here" in ask(community, "leave").stdout)
