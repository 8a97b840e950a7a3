"""Long calls cannot hold the service: their number is limited, and those that stand still are ended."""

from __future__ import annotations

import threading

import pytest

from coordinator.streams import MAX_STREAMS, MAX_STREAMS_PER_PEER, Streams
from protocol.errors import NetworkError


def test_call_that_stands_still_is_cancelled() -> None:
    cancelled = threading.Event()
    with Streams(idle_s=0.05, watch_every_s=0.02) as streams, streams.open("peer", cancelled.set, 60):
        assert cancelled.wait(60)


def test_call_over_its_limit_is_cancelled_though_it_moves() -> None:
    cancelled = threading.Event()
    with Streams(idle_s=60, watch_every_s=0.02) as streams, streams.open("peer", cancelled.set, 0.1) as touch:
        while not cancelled.wait(0.01):
            touch()


def test_one_peer_has_a_few_calls_and_all_together_a_few_more() -> None:
    streams = Streams()
    mine = [streams.open("peer", bool, 60) for _ in range(MAX_STREAMS_PER_PEER)]
    for call in mine:
        call.__enter__()
    with pytest.raises(NetworkError, match="busy"), streams.open("peer", bool, 60):
        pass
    others = [streams.open(f"peer {number}", bool, 60) for number in range(MAX_STREAMS - len(mine))]
    for call in others:
        call.__enter__()
    with pytest.raises(NetworkError, match="busy"), streams.open("one more", bool, 60):
        pass
    for call in mine:
        call.__exit__(None, None, None)
    with streams.open("one more", bool, 60):
        pass
    for call in others:
        call.__exit__(None, None, None)
