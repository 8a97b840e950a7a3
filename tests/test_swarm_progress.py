"""Progress: how often members tell each other, by a clock of the test's own."""

from __future__ import annotations

from builders import fixed_ed25519

from peer.swarm.members import INTERVAL_MOST_S, INTERVAL_S, MemberBook
from peer.swarm.progress import LOOKS, Gossip


def exchanges(*callers: str, seconds: float = 60.0, interval_s: float = 0.3) -> dict[str, int]:
    """How many exchanges each of two members begins; only `callers` can reach the other."""
    sides = {name: Gossip(None, None, None) for name in ("a", "b")}  # type: ignore[arg-type]
    other = {"a": "b", "b": "a"}
    begun = dict.fromkeys(sides, 0)
    ticks = int(seconds * LOOKS / interval_s)
    for tick in range(ticks):
        for name, late in (("a", 0.0), ("b", 0.37)):
            now = (tick + late) * interval_s / LOOKS
            if not sides[name]._is_due(other[name], now, interval_s):
                continue
            sides[name]._began[other[name]] = now
            if name in callers:
                begun[name] += 1
                for one in sides:
                    sides[one]._noted[other[one]] = now
    return begun


def test_an_exchange_serves_both_sides_and_they_take_turns() -> None:
    begun = exchanges("a", "b")
    assert 160 <= sum(begun.values()) <= 220, begun  # 60 s, every 0.3 s; 400 if each told the other without listening
    assert min(begun.values()) > 0.4 * sum(begun.values()), begun


def test_where_only_one_can_call_it_calls_almost_as_often() -> None:
    begun = exchanges("b")
    assert 120 <= begun["b"] <= 220, begun


def test_members_of_long_rounds_talk_less_often() -> None:
    book = MemberBook("0" * 64, fixed_ed25519("membership").public_key())
    found = []
    for book.round_s in (0.0, 5.0, 60.0, 3600.0):
        found.append(book.interval_s)
    assert found == [INTERVAL_S, INTERVAL_S, 0.6, INTERVAL_MOST_S]
