"""Claims that are replayed, the whole way: who claimed what it did not do is found, and nobody else is accused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lab import attackers
from lab.processes import CARD_TOKENS_PER_S, WAIT_S, Community
from lab.small_community import tiny_run
from lab.warm_start import WarmStart

HOLD = 3


def command(community: Community, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "potluck", *arguments],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        cwd=community.folder,
        env=community.environment("no-owner"),
    )


@pytest.mark.swarm
def test_who_claims_twice_its_work_is_banned_before_it_has_credit_and_the_others_are_cleared(
    tmp_path: Path, glass_dir: Path, plays: Path, starter: WarmStart
) -> None:
    config: dict[str, Any] = tiny_run(tmp_path, glass_dir, plays, "wood", round_seconds=2.0, wire="int4")
    config |= {"credit": {"hold_rounds": HOLD}, "audit": {"share": 0.2}}
    with Community(tmp_path, config, starter=starter, tokens_per_s=CARD_TOKENS_PER_S) as community:
        community.more_environment["mallory"] = attackers.environment("tokens-x2")
        community.host()
        alice, bob, carol, mallory = (community.peer(name) for name in ("alice", "bob", "carol", "mallory"))
        assert mallory.wait() == 1 and "as far away as it may be" in mallory.said
        at = alice.round
        for peer in (alice, bob, carol):
            peer.wait_round(at + HOLD + 8)
        file = tmp_path / "ledger.jsonl"
        assert command(community, "ledger", "export", str(community.run), str(file)).returncode == 0
        audit = command(community, "ledger", "audit", str(file))
        assert audit.returncode == 0 and "verified" in audit.stdout, audit.stdout
        balances = json.loads(command(community, "ledger", "balance", str(file), "--json").stdout)
    cheat = next(row for row in balances if row["banned"])
    assert cheat["tokens"] == 0 and cheat["void"] > 0
    assert all(row["tokens"] > 0 and not row["void"] for row in balances if row is not cheat)
