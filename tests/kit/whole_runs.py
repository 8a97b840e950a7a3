"""Whole runs of a tiny model, and what must be true of one that has ended: on the screens, in the ledger, on disk."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.outcomes import divergences, ledger_entries
from lab.processes import Community, LabProcess, eventually
from protocol.checkpoint import step_name
from protocol.keys import PeerIdentity, fingerprint, load_public_pem
from protocol.verify import verify_receipt

Opener = Callable[..., Community]
NAMES = ("alice", "bob", "carol")


def small_run(model: Path, data: Path, sections: dict[str, Any]) -> dict[str, Any]:
    """A run.toml whose rounds take a fraction of a second; `sections` are merged in, several of a name put in."""
    config: dict[str, Any] = {
        "run": {"name": "small", "seed": 7},
        "model": {"path": str(model), "license": "MIT"},
        "data": {"path": str(data), "license": "CC0-1.0", "sequence_length": 32, "held_out_sequences": 16},
        "method": {"kind": "full"},
        "sync": {"method": "diloco", "round_tokens": 1500, "wire": "int8"},
        "inner": {"lr": 1e-3, "micro_batch": 4, "batch": 4},
        "publish": {"every_rounds": 10},
    }
    for name, section in sections.items():
        config[name] = config.get(name, {}) | section if isinstance(section, dict) else section
    return config


def tell(peers: list[LabProcess]) -> None:
    """Print what the rounds cost; shown by `pytest -s`, and when a test fails."""
    for peer in peers:
        assert "Traceback" not in peer.said, peer.said
        rounds = list(peer.committed().values())
        waited = sorted(event["waited_s"] for event in rounds)
        attempts = {event["round"]: event["attempts"] for event in rounds if event["attempts"] > 1}
        median = waited[len(waited) // 2] if waited else 0
        print(
            f"{peer.name}: {len(rounds)} rounds, median wait {median:.3f} s, "
            f"longest {waited[-1] if waited else 0:.3f} s"
        )
        if attempts:
            print(f"  more than one attempt: {attempts}")


def check_agreement(peers: list[LabProcess], rounds: range) -> None:
    """Every peer committed each of these rounds, to the same state, and different rounds to different states."""
    states = [[peer.committed()[number]["state"] for number in rounds] for peer in peers]
    assert all(of_one == states[0] for of_one in states)
    assert len(set(states[0])) == len(states[0])


def check_same_states(peers: list[LabProcess]) -> None:
    """No two peers committed different states for one round."""
    assert not divergences(peers)


def check_ledger(run: Community, peers: list[LabProcess]) -> int:
    """One credit for each (round, peer), each round's credits what its members agreed on; returns the newest round."""
    credits = [entry for entry in ledger_entries(run) if entry["type"] == "credit"]
    assert max(Counter((entry["round"], entry["peer_id"]) for entry in credits).values()) == 1
    tokens: Counter[int] = Counter()
    for entry in credits:
        tokens[entry["round"]] += entry["tokens"]
    agreed = {number: event["tokens"] for peer in peers for number, event in peer.committed().items()}
    members = {number: event["members"] for peer in peers for number, event in peer.committed().items()}
    states = {number: event["state"] for peer in peers for number, event in peer.committed().items()}
    assert sorted(tokens) == list(range(1, max(tokens) + 1))
    for number in sorted(set(agreed) & set(tokens)):
        of_round = [entry for entry in credits if entry["round"] == number]
        assert tokens[number] == agreed[number]
        assert len(of_round) == members[number]
        assert {entry["state"] for entry in of_round} == {states[number]}
    return max(tokens)


def receipts(run: Community, name: str) -> list[Path]:
    return sorted((run.run_folder(name) / "receipts").glob("round-*.json"))


def wait_for_receipts(run: Community, names: list[str], number: int) -> None:
    """Wait until each peer holds a receipt for this round or a later one, and so for all before."""
    for name in names:
        eventually(lambda: receipts(run, name)[-1:] >= [run.run_folder(name) / "receipts" / f"round-{number:06d}.json"])  # noqa: B023


def check_receipts(run: Community, names: list[str], rounds: int) -> None:
    """Up to this round, each peer holds a receipt for exactly what the ledger credits it with; every one verifies."""
    trusted = {root_fingerprint(run)}
    for name in names:
        me = PeerIdentity.load_or_create(run.home(name) / "identity").peer_id
        entries = [entry for entry in ledger_entries(run) if entry.get("peer_id") == me]
        credited = {entry["round"]: entry["tokens"] for entry in entries if entry["round"] <= rounds}
        reports = [verify_receipt(path, trusted) for path in receipts(run, name)]
        assert all(report.ok for report in reports), [report.to_text() for report in reports if not report.ok]
        held = {report.facts["round"]: report.facts["tokens"] for report in reports}
        assert {number: tokens for number, tokens in held.items() if number <= rounds} == credited


def root_fingerprint(run: Community) -> str:
    return fingerprint(load_public_pem((run.run / "coordinator.pub").read_bytes()))


def check_published(run: Community, last_round: int) -> None:
    """The last checkpoint verifies back to genesis, by our command and the stock one; stock libraries load it."""
    step, key = run.run / "checkpoints" / step_name(last_round), run.run / "coordinator.pub"
    done = command(run, sys.executable, "-m", "potluck", "verify", step, "--key", key, "--checkpoints", step.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "back to genesis" in done.stdout
    stock = Path(sys.executable).with_name("model_signing")
    signature = ("--signature", step / "model.sig", "--public_key", key, "--no-ignore-git-paths")
    done = command(run, stock, "verify", "key", step / "model", *signature)
    assert done.returncode == 0, done.stdout + done.stderr


LOAD = """
import sys
for name in ("potluck", "protocol", "peer", "coordinator"):
    sys.modules[name] = None  # from here on, importing it fails
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
step, base = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base or step)
if base:
    from peft import PeftModel
    model = PeftModel.from_pretrained(model, step)
tokens = AutoTokenizer.from_pretrained(step)("To be, or not to be", return_tensors="pt")["input_ids"]
with torch.no_grad():
    assert torch.isfinite(model(tokens).logits).all()
print("loaded", type(model).__name__)
"""


def check_loads_without_us(run: Community, last_round: int, base: Path | None) -> None:
    """`model/` is a plain transformers model, or a plain adapter for one."""
    model = run.run / "checkpoints" / step_name(last_round) / "model"
    done = command(run, sys.executable, "-c", LOAD, model, base or "")
    assert done.returncode == 0, done.stderr
    assert "loaded" in done.stdout


def command(run: Community, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a stranger would: with a home of its own that trusts nobody."""
    environment = run.environment("no-one") | {"POTLUCK_HOME": str(run.folder / "stranger")}
    command = [str(item) for item in arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=run.folder)
