"""Shares: how much of the update each member of a group reduces, so that all lines are done at the same time.

>>> shares({"fast": 5e6, "slow": 1e6, "new": 0.0, "firewalled": 2e6}, {"fast", "slow", "new"})
{'fast': 667, 'slow': 0, 'new': 333, 'firewalled': 0}
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping

SHARES = 1000  # shares are parts of about so many
SHARE_CAP = 2.0  # times the equal share: what a member says of its line is not checked


def shares(up_bytes_s: Mapping[str, float], reducers: Collection[str]) -> dict[str, int]:
    """How much of the update each member reduces, so that all uplinks are done at the same time.

    A member of a group of n uploads its own update but for the share s that it reduces, and n - 1 times that share:
    1 + s (n - 2) updates. So the slower lines reduce less, or nothing.

    Args:
        up_bytes_s: all members -> bytes/s; 0: not measured.
        reducers: those that others can open streams to; at least one.

    Returns:
        peer id -> a part of the sum of all.
    """
    known = [rate for rate in up_bytes_s.values() if rate > 0]
    others, equal = len(up_bytes_s) - 2, 1 / len(reducers)
    if others <= 0 or len(known) < 2:
        return {peer: int(peer in reducers) for peer in up_bytes_s}
    usual = statistics.median(known)
    rates = {peer: up_bytes_s[peer] or usual for peer in sorted(reducers)}
    cap = min(1.0, SHARE_CAP * equal)

    def at(updates_per_rate: float) -> dict[str, float]:
        return {peer: min(max((updates_per_rate * rate - 1) / others, 0.0), cap) for peer, rate in rates.items()}

    low, high = 0.0, (1 + others * cap) / min(rates.values())
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(at(middle).values()) < 1 else (low, middle)
    found = at(high)
    return {peer: round(SHARES * found.get(peer, 0.0)) for peer in up_bytes_s}
