"""How a light member makes the product's swarm, and what it reads from it: change this when the swarm's face does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.light.plan import Plan
from peer.net.place import Place, SwarmConfig
from peer.net.swarm import Swarm
from peer.round.report import RoundReport
from peer.sync.shelf import Head
from protocol.disk import write_file

Event = dict[str, Any]


def open_swarm(plan: Plan, index: int, folder: Path, on_commit: Callable[[Event], None]) -> Swarm:
    """A member's swarm, to be entered; `on_commit` is told of each round in a thread, before the next one begins."""
    identity = plan.identity(index)
    token = plan.certificate(index)
    box = folder / f"box-{index:02}"
    return Swarm(
        Place(
            identity,
            plan.card,
            lambda: token,
            Head(plan.genesis),
            save_box=lambda data: write_file(box, data, private=True),
            config=SwarmConfig(listen="127.0.0.1:0"),
        ),
        plan.identity_file(index, folder),
        lambda head, report, average: on_commit(_committed(identity.peer_id, head, report)),
    )


def _committed(me: str, head: Head, report: RoundReport) -> Event:
    """What a member says of a round."""
    agreement = head.agreement
    assert agreement is not None, "only rounds are committed, and genesis is none"
    return {
        "round": head.round,
        "state": head.digest,
        "weights": dict(agreement.weights),
        "took_part": report.took_part,
        "attempts": report.attempts,
        "waited_s": report.waited_s,
    } | _claimed(agreement.by_peer.get(me))


def _claimed(claim: Any) -> Event:
    """A member's own tokens in a round: those of the round, and how many of older ones count."""
    if claim is None:
        return {"tokens": 0, "late_counted": 0}
    return {"tokens": claim.tokens, "late_counted": claim.late.worth if claim.late else 0}


def traffic(swarm: Swarm) -> Event:
    """Bytes of control, and by kind; streams opened."""
    counted = swarm.traffic
    sent, received = counted.control_bytes()
    return {
        "control_sent": sent,
        "control_received": received,
        "sent": dict(counted.sent),
        "received": dict(counted.received),
        "opened": dict(counted.opened),
    }
