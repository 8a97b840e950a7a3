"""Claims that are replayed, the whole way: who claimed what it did not do is found, and nobody else can be accused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from coordinator import evidence
from coordinator.evaluator import Evaluator
from lab import attackers
from lab.processes import CARD_TOKENS_PER_S, WAIT_S, Community
from lab.small_community import tiny_run
from lab.warm_start import WarmStart
from peer.disk.kept import KeptRounds
from peer.disk.peer_folder import PeerFolder
from peer.training.reveal import as_sent
from protocol import checkpoint
from protocol.keys import fingerprint, load_public_pem
from protocol.report import Answer, Report
from protocol.run_card import RunCard
from protocol.signed import Signed
from protocol.statements import Claim

HOLD = 3


@dataclass
class Audited:
    """A run in which mallory has claimed twice its work; all of it is over."""

    folder: Path
    run: Path
    homes: dict[str, Path]
    mallory: str  # what it said
    balances: list[dict[str, Any]]
    audit: subprocess.CompletedProcess[str]

    def __post_init__(self) -> None:
        info = checkpoint.read_info(self.run / "checkpoints" / "step-000000")
        self.card = RunCard.open(info.run_card_bytes, info.public_key)
        self.key = fingerprint(load_public_pem((self.run / "coordinator.pub").read_bytes()))
        data = Path(json.loads((self.run / "where.json").read_text())["data"])
        self.evaluator = Evaluator(self.card.spec, self.run / "checkpoints" / "step-000000" / "model", None, data)


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, glass_dir: Path, plays: Path, starter: WarmStart
) -> Iterator[Audited]:
    folder = tmp_path_factory.mktemp("audited")
    config: dict[str, Any] = tiny_run(folder, glass_dir, plays, "wood", round_seconds=2.0, wire="int4")
    config["sync"]["overlap"] = True
    config |= {"credit": {"hold_rounds": HOLD}, "audit": {"share": 0.2}}
    with Community(folder, config, starter=starter, tokens_per_s=CARD_TOKENS_PER_S) as community:

        def command(*arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", "potluck", *arguments],
                capture_output=True,
                text=True,
                timeout=WAIT_S,
                cwd=folder,
                env=community.environment("no-owner"),
            )

        community.more_environment["mallory"] = attackers.environment("tokens-x2")
        community.host()
        names = ("alice", "bob", "carol", "mallory")
        alice, bob, carol, mallory = (community.peer(name) for name in names)
        assert mallory.wait() == 1
        at = alice.round
        for peer in (alice, bob, carol):
            peer.wait_round(at + HOLD + 8)
        file = folder / "ledger.jsonl"
        assert command("ledger", "export", str(community.run), str(file)).returncode == 0
        audit = command("ledger", "audit", str(file))
        balances = json.loads(command("ledger", "balance", str(file), "--json").stdout)
        homes = {name: community.home(name) for name in names}
        (community.run / "where.json").write_text(json.dumps({"data": str(plays)}))
    yield Audited(folder, community.run, homes, mallory.said, balances, audit)


@pytest.mark.swarm
def test_who_claims_twice_its_work_is_banned_before_it_has_credit_and_the_others_are_cleared(run: Audited) -> None:
    assert "as far away as it may be" in run.mallory
    assert run.audit.returncode == 0 and "verified" in run.audit.stdout, run.audit.stdout
    cheat = next(row for row in run.balances if row["banned"])
    assert cheat["tokens"] == 0 and cheat["void"] > 0
    assert all(row["tokens"] > 0 and not row["void"] for row in run.balances if row is not cheat)


@pytest.mark.swarm
def test_anyone_can_replay_the_evidence_by_itself(run: Audited) -> None:
    (folder,) = (run.run / "evidence").iterdir()
    elsewhere = run.folder / "elsewhere" / folder.name
    shutil.copytree(folder, elsewhere)
    command = [sys.executable, "-m", "potluck", "verify", str(elsewhere), "--key", run.key]
    alone = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, cwd=run.folder)
    assert alone.returncode == 0 and "confirmed: claimed and not done" in alone.stdout, alone.stdout + alone.stderr
    stranger = evidence.verify_evidence(elsewhere, set())
    assert stranger.answer is Answer.REFUSED and "signed by a key that you have not confirmed" in stranger.verdict


def honest(run: Audited, name: str = "alice") -> tuple[Signed[Claim], Path]:
    """A claim that is true, and what its author would show of it."""
    home = PeerFolder(run.homes[name], run.card.run)
    kept = KeptRounds.open(home, run.card, run.evaluator.genesis_model)
    assert kept.shown is not None
    claim = next(note.claim for note in kept.shown.notes() if note.agreed)
    sent = as_sent(kept.shown.reveal(claim.digest))
    reveal = run.folder / "reveal"
    reveal.mkdir(exist_ok=True)
    (reveal / evidence.HEAD).write_bytes(sent.head)
    (reveal / evidence.BYTES).write_bytes(b"".join(map(bytes, sent.pieces)))
    home.close()
    return claim, reveal


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.unlink()  # it may be a link to the run's own
    path.write_bytes(data)


FRAMES: dict[str, tuple[Callable[[Path], None], str]] = {
    "as it is": (lambda folder: None, "work: the work is what"),
    "another reveal": (lambda folder: flip(folder / "reveal.bin"), "work: "),
    "another claim": (lambda folder: flip(folder / "claim.json"), "claim: "),
    "other data": (lambda folder: flip(folder / "data"), "data: other data than the run's"),
    "another model": (lambda folder: flip(folder / "step-000000" / "model" / "config.json"), "genesis: "),
}


@pytest.mark.swarm
@pytest.mark.parametrize("frame", FRAMES)
def test_nobody_who_is_honest_can_be_framed(run: Audited, frame: str) -> None:
    change, said = FRAMES[frame]
    claim, reveal = honest(run)
    folder = evidence.keep(run.folder / "framed", claim, reveal, run.evaluator, ())
    change(folder)
    report: Report = evidence.verify_evidence(folder, {run.key})
    assert report.answer is Answer.REFUSED and report.verdict.startswith(f"refused: {said}"), report.to_text()
