"""`potluck join --reduce-only`, with real processes: a friend of the host reduces for two who cannot be reached."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.outcomes import divergences
from lab.processes import CARD_TOKENS_PER_S, Community
from lab.small_community import tiny_run
from lab.warm_start import WarmStart
from protocol.invite import Invite

pytestmark = pytest.mark.swarm


def test_a_friend_of_the_host_reduces_and_trains_nothing(
    tmp_path: Path, glass_dir: Path, plays: Path, starter: WarmStart
) -> None:
    config = tiny_run(tmp_path, glass_dir, plays, "homes", round_seconds=1.0, min_peers=2)
    config["host"] = {"code": "firewood", "reducer_code": "a friend of mine"}
    with Community(tmp_path, config, starter=starter, tokens_per_s=CARD_TOKENS_PER_S) as run:
        started = run.host().wait_for("started")
        invite, reducers = (Invite.parse(started[name]) for name in ("invite", "reducer_invite"))
        assert (invite.code, reducers.code) == ("firewood", "a friend of mine")
        refused = run.peer("stranger", "--reduce-only", invite=str(invite))
        assert refused.wait() == 1 and "this invite is not for reducing only" in refused.said

        friend = run.peer("friend", "--reduce-only", invite=str(reducers))
        friend.wait_for("step", step="reducing")
        homes = [run.peer(name) for name in ("alice", "bob")]
        for home in homes:
            home.wait_round(3)
        reducing = friend.wait_for("committed", lambda event: event["round"] >= 3)
        assert not reducing["took_part"] and reducing["members"] == 2
        folder = run.run_folder("friend")
        assert not (folder / "data" / "data").exists(), "what only a trainer needs is not fetched"
        assert not divergences([*homes, friend])
        at = max(home.round for home in homes)
        assert friend.stop() == 0
        for home in homes:
            home.wait_round(at + 3)
        assert "Traceback" not in friend.said
