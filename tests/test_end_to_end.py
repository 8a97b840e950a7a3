"""Whole runs, as people start them: a coordinator and peers as processes of their own, over loopback sockets.

Nothing is replaced: the model is small and random, everything else is what `potluck` does anywhere. What the processes
say of themselves is read from their JSON lines; what they leave on disk is read from disk.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from lab import REPOSITORY
from lab.outcomes import divergences, ledger_entries
from lab.processes import (
    CARD_TOKENS_PER_S,
    GONE_S,
    MARK,
    WAIT_S,
    Community,
    Part,
    eventually,
    leave_in_turn,
    marked,
)
from lab.training_fixtures import write_tiny_llama
from lab.warm_start import WarmStart
from protocol.checkpoint import step_name
from protocol.keys import PeerIdentity, fingerprint, load_public_pem
from protocol.succession import PROBATION
from protocol.verify import verify_receipt

pytestmark = pytest.mark.swarm

Opener = Callable[..., Community]
NAMES = ("alice", "bob", "carol")
BY_THE_CLOCK = {"round_seconds": 2.0, "round_tokens": 10**9}  # longer than it takes to tell each other and to fetch


@pytest.fixture(scope="session")
def llama(glass_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("llama") / "tiny", glass_dir)


@pytest.fixture
def community(tmp_path: Path, llama: Path, plays: Path, starter: WarmStart) -> Iterator[Opener]:
    """Opens communities of a tiny model; kills whatever is left of them."""
    with ExitStack() as stack:

        def open_one(*, fixed_ports: bool = False, **sections: dict[str, Any]) -> Community:
            config = small_run(llama, plays, sections)
            return stack.enter_context(
                Community(tmp_path, config, starter=starter, fixed_ports=fixed_ports, tokens_per_s=CARD_TOKENS_PER_S)
            )

        yield open_one


def small_run(model: Path, data: Path, sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A run.toml whose rounds take a fraction of a second; `sections` are merged in."""
    config: dict[str, dict[str, Any]] = {
        "run": {"name": "small", "seed": 7},
        "model": {"path": str(model), "license": "MIT"},
        "data": {"path": str(data), "license": "CC0-1.0", "sequence_length": 32, "held_out_sequences": 16},
        "method": {"kind": "full"},
        "sync": {"method": "diloco", "round_tokens": 1500, "wire": "int8"},
        "inner": {"lr": 1e-3, "micro_batch": 4, "batch": 4},
        "publish": {"every_rounds": 10},
    }
    for name, section in sections.items():
        config[name] = config.get(name, {}) | section
    return config


OVERLAPPED = ("int4", "int2", "topk")

# ---- all of it, in each of its forms ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "method", "wire"),
    [
        pytest.param("full", "diloco", "fp32", marks=pytest.mark.slow),
        ("full", "diloco", "int8"),
        pytest.param("full", "gradient", "fp32", marks=pytest.mark.slow),
        pytest.param("full", "diloco", "topk", marks=pytest.mark.slow),
        ("full", "diloco", "int2"),
        ("full", "gradient", "int8"),
        pytest.param("lora", "diloco", "fp16", marks=pytest.mark.slow),
        ("lora", "diloco", "int4"),
        pytest.param("lora", "diloco", "int8", marks=pytest.mark.slow),
        pytest.param("lora", "gradient", "fp32", marks=pytest.mark.slow),
        pytest.param("lora", "gradient", "int8", marks=pytest.mark.slow),
    ],
)
def test_three_peers_agree_on_every_round_and_what_is_published_verifies(
    community: Opener, llama: Path, kind: str, method: str, wire: str
) -> None:
    rounds = 10
    run = community(
        run={"rounds": rounds},
        publish={"every_rounds": rounds // 2},
        method={"kind": kind, "rank": 4, "alpha": 8} if kind == "lora" else {"kind": kind},
        sync={
            "method": method,
            "wire": wire,
            "min_peers": 3,
            "overlap": wire in OVERLAPPED,
            "fragments": 3 if wire == "int2" else 1,
        },
        outer={"lr": 1e-3} if method == "gradient" else {"lr": 1.0},
    )
    host = run.host()
    peers = [run.peer(name) for name in NAMES]
    for peer in peers:
        peer.wait_round(1)
    run.note_sockets()
    for peer in peers:
        peer.wait_for("step", step="done")
        assert peer.wait() == 0
    host.wait_for("status", lambda event: event["status"]["finished"])
    assert host.stop() == 0
    run.check_nothing_left()

    tell(peers)
    check_agreement(peers, rounds=range(1, rounds + 1))
    assert check_ledger(run, peers) == rounds
    check_receipts(run, list(NAMES), rounds=rounds)
    check_published(run, rounds)
    if (kind, method, wire) in (("full", "diloco", "int8"), ("lora", "diloco", "int4")):
        check_loads_without_us(run, rounds, llama if kind == "lora" else None)


def tell(peers: list[Part]) -> None:
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


def check_agreement(peers: list[Part], rounds: range) -> None:
    """Every peer committed each of these rounds, to the same state, and different rounds to different states."""
    states = [[peer.committed()[number]["state"] for number in rounds] for peer in peers]
    assert all(of_one == states[0] for of_one in states)
    assert len(set(states[0])) == len(states[0])


def check_same_states(peers: list[Part]) -> None:
    """No two peers committed different states for one round."""
    assert not divergences(peers)


def check_ledger(run: Community, peers: list[Part]) -> int:
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


# ---- peers come, go, and are killed ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_the_clock(
    tmp_path_factory: pytest.TempPathFactory, llama: Path, plays: Path, starter: WarmStart
) -> Iterator[Community]:
    """A run that goes on while peers come and go; afterwards what all of them agreed on is in the ledger, once."""
    config = small_run(llama, plays, {"sync": BY_THE_CLOCK, "publish": {"every_rounds": 1000}})
    folder = tmp_path_factory.mktemp("clock")
    with Community(folder, config, starter=starter, tokens_per_s=CARD_TOKENS_PER_S) as run:
        host = run.host()
        for name in NAMES:
            run.peer(name)
        yield run
        peers = [part for part in run.parts if part is not host]
        staying = all_of_them(run)
        last = max(peer.round for peer in staying) + 2
        for peer in staying:
            peer.wait_round(last)
        wait_for_receipts(run, list(NAMES), last)
        run.note_sockets()
        for peer in staying:
            assert peer.stop() == 0
        host.wait_for("status", lambda event: event["status"]["round"] >= last)
        assert host.stop() == 0
        run.check_nothing_left()
        tell(peers)
        check_same_states(peers)
        assert check_ledger(run, peers) >= last
        check_receipts(run, list(NAMES), rounds=last)


def all_of_them(run: Community) -> list[Part]:
    """Alice, bob and carol, once rounds are made by all three; whoever of them is not there is started again."""
    peers = [next(part for part in reversed(run.parts) if part.name == name) for name in NAMES]
    peers = [peer if peer.running else run.peer(peer.name) for peer in peers]
    # none of them a newcomer any more, whose weight is so small that the run would wait for one of the others
    now = max(peer.round for peer in peers) + PROBATION
    for peer in peers:
        peer.wait_for("committed", lambda event: event["round"] > now and event["took_part"] and event["members"] >= 3)
    return peers


@pytest.mark.parametrize("victims", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_killed_peer_costs_the_others_a_round_at_most_and_comes_back(by_the_clock: Community, victims: int) -> None:
    run, dice = by_the_clock, random.Random(os.environ.get("PYTEST_SEED"))
    peers = {peer.name: peer for peer in all_of_them(run)}
    for victim in dice.sample(sorted(peers), victims):
        others = [peer for name, peer in peers.items() if name != victim]
        now = max(peer.round for peer in others)
        others[0].wait_round(now + 1)  # a round begins
        time.sleep(dice.uniform(0, 0.4))  # somewhere in the work, the averaging or the vote
        run.note_sockets()
        peers[victim].kill()
        before = max(peer.round for peer in others)
        for other in others:
            other.wait_round(before + 2)
        run.check_nothing_left(victim)
        peers[victim] = run.peer(victim)
        back = peers[victim].wait_for("committed", took_part=True, members=3)
        print(f"{victim} killed after round {before}, took part again in round {back['round']}")


def test_a_late_joiner_fetches_the_state_and_takes_part_within_two_rounds(by_the_clock: Community) -> None:
    run = by_the_clock
    early = all_of_them(run)
    for peer in early:
        peer.wait_round(4)
    late = run.peer("late")
    try:
        first = late.wait_for("committed")
        assert first["round"] > 1, "it did not start from genesis"
        partaken = late.wait_for("committed", took_part=True)
        assert partaken["round"] <= first["round"] + 2
        for peer in early:
            peer.wait_round(partaken["round"])
        run.note_sockets()
        assert late.stop() == 0
    finally:
        late.kill()  # the others' tests know nothing of it
    run.check_nothing_left("late")
    check_same_states([*early, late])
    me = PeerIdentity.load_or_create(run.home("late") / "identity").peer_id
    eventually(lambda: credited(run, me))
    assert min(credited(run, me)) == partaken["round"]


def credited(run: Community, peer_id: str) -> list[int]:
    """The rounds that the ledger credits a peer with."""
    return [entry["round"] for entry in ledger_entries(run) if entry.get("peer_id") == peer_id]


def test_a_peer_that_leaves_costs_the_others_no_round(by_the_clock: Community) -> None:
    run = by_the_clock
    peers = all_of_them(run)
    together = max(peer.round for peer in peers)
    others = peers
    for number, name in ((signal.SIGINT, "alice"), (signal.SIGTERM, "bob")):
        run.note_sockets()
        leaver = next(peer for peer in peers if peer.name == name)
        others = [peer for peer in others if peer is not leaver]
        assert leaver.stop(number) == 0
        assert leaver.find("step", step="left")
        run.check_nothing_left(name)
        now = max(peer.round for peer in others)
        for other in others:
            other.wait_round(now + 3)
    check_same_states(peers)
    (carol,) = others
    rounds = {round: event for round, event in carol.committed().items() if round >= together}
    assert all(event["took_part"] for event in rounds.values()), "carol's work of every round counted"
    assert sorted(rounds) == list(range(min(rounds), max(rounds) + 1))


def test_a_run_whose_peers_are_all_gone_goes_on_where_it_was(community: Opener) -> None:
    run = community(publish={"every_rounds": 1000}, sync={"min_peers": 2})
    host = run.host()
    peers = [run.peer("alice"), run.peer("bob")]
    for peer in peers:
        peer.wait_round(3)
    for how in (signal.SIGINT, signal.SIGKILL):
        left = leave_together(peers, how)
        peers = [run.peer("alice"), run.peer("bob")]
        for peer in peers:
            peer.wait_round(left + 2)
        assert min(min(peer.committed()) for peer in peers) >= left
    wait_for_receipts(run, ["alice", "bob"], left + 2)
    run.note_sockets()
    leave_in_turn(peers)
    host.wait_for("status", lambda event: event["status"]["round"] >= left + 2)
    assert host.stop() == 0
    run.check_nothing_left()
    everyone = [part for part in run.parts if part is not host]
    tell(everyone)
    check_same_states(everyone)
    check_ledger(run, everyone)
    check_receipts(run, ["alice", "bob"], rounds=left + 2)


def leave_together(peers: list[Part], how: signal.Signals) -> int:
    """End all peers at once; returns the last round that any of them committed."""
    for peer in peers:
        peer.send(how)
    for peer in peers:
        assert peer.wait() in ((0, 4) if how == signal.SIGINT else (-how,))  # 4: the run waits for it, and it says so
    return max(peer.round for peer in peers)


# ---- the coordinator goes and comes back -----------------------------------------------------------------------------


def test_a_killed_coordinator_is_not_missed_and_every_claim_is_credited_once(community: Opener) -> None:
    rounds = 16
    run = community(fixed_ports=True, run={"rounds": rounds}, sync={"round_tokens": 6000, "min_peers": 3})
    host = run.host()
    peers = [run.peer(name) for name in NAMES]
    for peer in peers:
        peer.wait_round(3)
    run.note_sockets()
    host.kill()
    run.check_nothing_left("host")
    away = max(peer.round for peer in peers)
    for peer in peers:
        peer.wait_round(away + 3)
    again = run.host()
    print(f"the coordinator was away from round {away} to round {max(peer.round for peer in peers)}")
    for peer in peers:
        peer.wait_for("step", step="done")
        assert peer.wait() == 0
    again.wait_for("status", lambda event: event["status"]["finished"])
    run.note_sockets()
    assert again.stop() == 0
    run.check_nothing_left()

    tell(peers)
    check_agreement(peers, rounds=range(1, rounds + 1))
    assert check_ledger(run, peers) == rounds
    check_receipts(run, list(NAMES), rounds=rounds)
    check_published(run, rounds)
    for name in NAMES:
        assert not list((run.run_folder(name) / "outbox").glob("*.json")), "every report was answered"


# ---- the demo --------------------------------------------------------------------------------------------------------


def test_ctrl_c_in_the_middle_of_the_demo_leaves_nothing_behind(tmp_path: Path) -> None:
    mark = f"{tmp_path}:demo;"
    with (tmp_path / "demo.log").open("w") as log:
        demo = subprocess.Popen(
            [sys.executable, "-m", "scripts.demo", "--out", str(tmp_path / "out")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {MARK: mark},
            cwd=REPOSITORY,
            start_new_session=True,
        )
    try:
        told = re.compile(r"round [1-9]")
        eventually(lambda: told.search((tmp_path / "demo.log").read_text()) or demo.poll() is not None)
        assert demo.poll() is None, (tmp_path / "demo.log").read_text()
        assert len(marked(mark)) > 5, "a coordinator, three peers, and what they started"
        demo.send_signal(signal.SIGINT)
        assert demo.wait(WAIT_S) == 130
        eventually(lambda: not marked(mark), GONE_S)
    finally:
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)
        demo.wait(GONE_S)
