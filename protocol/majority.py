"""Majorities of weight: who decides, once some have left. Members, coordinator and verifier count by these and by
nothing else.

Two majorities of the same weights share somebody, who signs for one state only: so a round has one state.
`peer.round_rules` says what keeps that true over several attempts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache

from protocol import canonical


def has_majority(voters: Collection[str], of: Mapping[str, int]) -> bool:
    """Whether `voters` hold more than half of the weight; an even split goes to the side of the first peer id by
    digest.

    With no weights at all (before round 1 was agreed) everyone has a majority.
    """
    total = sum(of.values())
    if total == 0:
        return True
    held = sum(weight for peer_id, weight in of.items() if peer_id in voters)
    if 2 * held == total:
        return first_of(of) in voters
    return 2 * held > total


def first_of(peers: Collection[str]) -> str:
    """The peer id that decides even splits: the first by digest; empty where there is none."""
    return min(peers, key=_digest, default="")


@lru_cache(maxsize=1 << 16)
def _digest(peer_id: str) -> str:
    return canonical.sha256_hex(peer_id.encode())


def acceptors_after(weights: Mapping[str, int], farewells: Mapping[str, str]) -> dict[str, int]:
    """Who speaks for how much in a round, once some of its acceptors have left.

    All weights are doubled, and the first acceptor by digest, who decides even splits, has one more: so that there are
    no ties, whoever speaks for that one now. Chains are followed; members of a circle speak for themselves.

    Args:
        weights: the acceptors of the round.
        farewells: who leaves -> whom it names.

    >>> acceptors_after({"a": 3, "b": 1}, {"a": "c", "c": "d"}) in ({"d": 7, "b": 2}, {"d": 6, "b": 3})
    True
    """
    first = first_of(weights)
    counted: dict[str, int] = {}
    for peer, weight in weights.items():
        voice, seen = peer, set()
        while voice in farewells and voice not in seen:
            seen.add(voice)
            voice = farewells[voice]
        counted[voice] = counted.get(voice, 0) + 2 * weight + (peer == first)
    return counted
