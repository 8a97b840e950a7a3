"""`potluck host` with `[[data]]`: it prepares its sources, and members fetch the shards that their draws need."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab.processes import Community
from protocol.data_manifest import DataManifest
from protocol.data_spec import PinnedDataSet
from protocol.run_spec import RunSpec
from tests.kit.whole_runs import NAMES, Opener, check_agreement, check_ledger, check_published, tell

pytestmark = pytest.mark.swarm

ROUNDS = 6


def several(community: Opener, tmp_path: Path, plays: Path) -> Community:
    """A run of plays, and of a tenth as many records, one of them bad."""
    lines = [json.dumps({"text": f"When everyone brings wood, fire {number} burns high."}) for number in range(600)]
    (tmp_path / "wood.jsonl").write_text("\n".join([*lines, '{"text": 3}']) + "\n")
    return community(
        run={"rounds": ROUNDS},
        publish={"every_rounds": ROUNDS},
        sync={"min_peers": 3},
        data=[
            {"name": "plays", "path": str(plays), "license": "CC0-1.0", "weight": 3.0},
            {"name": "wood", "path": "wood.jsonl", "kind": "jsonl", "license": "MIT", "on_bad": "skip"},
        ],
        sequences={"sequence_length": 32, "held_out": 0.02, "held_out_sequences": 16},
    )


def test_members_train_on_prepared_data_and_what_is_published_verifies(
    community: Opener, tmp_path: Path, plays: Path
) -> None:
    run = several(community, tmp_path, plays)
    host = run.host()
    told = host.find("note", where=lambda event: event["text"].startswith("wood: 1 files, 600 records"))
    assert told is not None and told["text"].endswith("1 bad records left out"), host.said
    peers = [run.peer(name, "--data-cache", "0.1") for name in NAMES]
    peers[0].wait_round(2)
    assert peers[0].stop() == 0
    peers.append(run.peer(NAMES[0], "--data-cache", "0.1"))  # it goes on with the shards that it has
    for peer in peers[1:]:
        assert peer.wait() == 0
    host.wait_for("status", lambda event: event["status"]["finished"])
    assert host.stop() == 0

    tell(peers)
    check_agreement(peers[1:3], rounds=range(1, ROUNDS + 1))
    assert check_ledger(run, peers) == ROUNDS
    check_published(run, ROUNDS)
    spec = RunSpec.from_bytes((run.run / "run.json").read_bytes())
    manifest = DataManifest.from_bytes((run.run / "data" / "manifest.json").read_bytes())
    assert isinstance(spec.data, PinnedDataSet) and [item.name for item in manifest.sources] == ["plays", "wood"]
    named = {shard.digest for shard in manifest.shards}
    for name in NAMES:
        here = {path.stem for path in run.run_folder(name).rglob("*.safetensors") if path.stem in named}
        assert here, "what a member trains on lies in its cache"
        assert manifest.held_out.digest not in {path.stem for path in run.run_folder(name).rglob("*.safetensors")}
    card = (run.run / "checkpoints" / f"step-{ROUNDS:06d}" / "model" / "README.md").read_text()
    assert "plays: 75.0%" in card and "wood: 25.0%" in card


def test_a_later_start_goes_on_with_what_was_prepared_or_says_what_has_changed(
    community: Opener, tmp_path: Path, plays: Path
) -> None:
    run = several(community, tmp_path, plays)
    assert run.host().stop() == 0
    (tmp_path / "wood.jsonl").unlink()  # it was needed once
    assert run.host().stop() == 0
    manifest = run.run / "data" / "manifest.json"
    before = manifest.read_bytes()
    manifest.write_bytes(before.replace(b'"wood"', b'"food"'))
    changed = run.start("host", "host", str(run.config), "--folder", str(run.run), "--json")
    assert changed.wait() == 2 and "data.digest: was" in changed.said
    manifest.unlink()
    gone = run.start("host", "host", str(run.config), "--folder", str(run.run), "--json")
    assert gone.wait() == 2 and "potluck data prepare" in gone.said
