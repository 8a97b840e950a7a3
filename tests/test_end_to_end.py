"""Whole runs, as people start them: a coordinator and peers as processes of their own, over loopback sockets.

Nothing is replaced: the model is small and random, everything else is what `potluck` does anywhere. What the processes
say of themselves is read from their JSON lines; what they leave on disk is read from disk.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol import checkpoint
from protocol.keys import PeerIdentity
from tests.kit.whole_runs import (
    NAMES,
    Opener,
    check_agreement,
    check_ledger,
    check_loads_without_us,
    check_published,
    check_receipts,
    tell,
)

pytestmark = pytest.mark.swarm


OVERLAPPED = ("int4", "int2", "topk")


@pytest.mark.parametrize(
    ("kind", "method", "wire"),
    [
        pytest.param("full", "diloco", "fp32", marks=pytest.mark.slow),
        ("full", "diloco", "int8"),
        pytest.param("full", "gradient", "fp32", marks=pytest.mark.slow),
        pytest.param("full", "diloco", "topk", marks=pytest.mark.slow),
        pytest.param("full", "diloco", "int2", marks=pytest.mark.slow),
        ("full", "gradient", "int8"),
        pytest.param("lora", "diloco", "fp16", marks=pytest.mark.slow),
        ("lora", "diloco", "int4"),
        pytest.param("lora", "diloco", "int8", marks=pytest.mark.slow),
        pytest.param("lora", "gradient", "fp32", marks=pytest.mark.slow),
        pytest.param("lora", "gradient", "int8", marks=pytest.mark.slow),
    ],
)
def test_three_peers_agree_on_every_round_and_what_is_published_verifies(
    community: Opener, tmp_path: Path, llama: Path, kind: str, method: str, wire: str
) -> None:
    """In one of them a member measures the held-out loss, the last one too, and the host never does."""
    rounds, host_measures = 10, (kind, wire) != ("lora", "int4")
    alice = PeerIdentity.load_or_create(tmp_path / "alice" / "identity").peer_id
    run = community(
        host={} if host_measures else {"evaluate_on": "none", "evaluators": [alice]},
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
    for number in (rounds // 2, rounds):
        info = checkpoint.read_info(run.run / "checkpoints" / checkpoint.step_name(number))
        measured_by = info.evaluation.check_measured(info.run, info.round, info.state.digest)
        assert measured_by == (None if host_measures else alice)
    if (kind, method, wire) in (("full", "diloco", "int8"), ("lora", "diloco", "int4")):
        check_loads_without_us(run, rounds, llama if kind == "lora" else None)
