"""Rounds that are as long as averaging needs."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from peer.round import length
from peer.round.length import LEAST_S, MOST_S, RoundLength
from tests.swarm_kit import World, agreed, run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize(
    ("overlap", "fragments", "seconds"), [(False, 1, 190.0), (False, 6, 190.0), (True, 1, 10.0), (True, 6, 2.0)]
)
def test_averaging_takes_its_share_of_the_time_and_no_more(overlap: bool, fragments: int, seconds: float) -> None:
    length = RoundLength(overlap=overlap, fragments=fragments)
    for waited_s in (10.0, 10.0, 300.0, 10.0):
        length.waited(waited_s)
    assert length.seconds == pytest.approx(seconds), "one bad round among them changes nothing"


def test_rounds_are_neither_shorter_nor_longer_than_makes_sense() -> None:
    short, long = RoundLength(overlap=True), RoundLength(overlap=False)
    short.waited(0.001)
    long.waited(3600.0)
    assert (short.seconds, long.seconds) == (LEAST_S, MOST_S)


def test_rounds_become_as_long_as_the_exchange_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(length, "FIRST_S", 0.5)
    monkeypatch.setattr(length, "LEAST_S", 0.2)
    world = World(tmp_path, round_tokens=None, round_seconds="auto", min_peers=2)

    async def main() -> None:
        async with world.peers(2) as peers:
            await agreed(peers, 3)
            for peer in peers:
                waited = [report.waited_s for report in peer.reports if report.took_part]
                assert peer.driver.state.length.seconds == pytest.approx(max(19 * statistics.median(waited[-5:]), 0.2))

    run(main())
