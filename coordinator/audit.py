"""The seam between an agreed claim and granted credit. `reports` asks it about every round it commits.

Today every agreed claim is granted what the members agreed it counts for. An audit that replays claims answers
differently here (withholding some for now) and nothing around it has to change: credit is granted when `decide` says
so, and only then becomes a leaf of the ledger. Local work that began from more than the agreed base
(`peer.training.work.keeps_own`) cannot be replayed from its claim alone: it would first have to say where it began.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from protocol.agreement import Agreement


@dataclass(frozen=True)
class Grant:
    """What one member is credited with for one round."""

    tokens: int
    flops: int


def decide(agreement: Agreement) -> Mapping[str, Grant]:
    """Peer id -> grant, for each member whose claim is accepted now.

    The tokens are the agreed weight, which caps what a claim may count for; FLOPs shrink with it.
    """
    return {
        peer_id: Grant(tokens=agreement.weights[peer_id], flops=claim.flops * agreement.weights[peer_id] // claim.worth)
        for peer_id, claim in agreement.by_peer.items()
    }
