"""Who missed a round makes its state from the round's average, as it travelled; a wrong average costs nothing but its bytes."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from peer.net.average_fetch import AverageFetch
from peer.sync.averages import Average, is_small
from peer.sync.shelf import Head, Shelf
from peer.training.codecs.codec import codec
from peer.training.state import SharedState
from peer.training.work import Update
from protocol.errors import FormatError, NetworkError
from protocol.signed import Signed
from protocol.statements import Claim
from tests.swarm_kit import Peer, World, agreed, run, until

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
VALUES = 300_000


def misses(peer: Peer) -> None:
    """It is not in time for every second round: its trainer hands over when that is made."""
    hand_over = peer.driver.own.hand_over

    async def late(update: Update, base: str) -> Signed[Claim] | None:
        while base == peer.driver.head.digest and peer.round % 2:
            await asyncio.sleep(0.02)
        return await hand_over(update, base)

    peer.driver.own.hand_over = late  # type: ignore[method-assign]


@pytest.mark.parametrize(("wire", "fragments"), [("int4", 1), ("topk", 1), ("int2", 3)])
def test_a_round_that_was_missed_is_made_up_from_its_average(
    tmp_path: Path, wire: str, fragments: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world = World(tmp_path, values=VALUES, wire=wire, fragments=fragments, round_tokens=900, min_peers=2)

    async def main() -> None:
        async with world.peers(2) as (one, two), world.peer(2, one, two, tokens=200, train=False) as late:
            misses(late)
            late.train()
            await until(lambda: late.reports and late.reports[-1].took_part)
            caplog.clear()
            at = one.round
            await agreed([one, two, late], at + 3)
            missed = [report.round for report in late.reports if not report.took_part and report.round > at]
            assert missed, "it missed a round"
        assert any("made round" in message for message in caplog.messages)
        assert not any("fetched round" in message for message in caplog.messages)

    run(main())


def test_an_average_that_leads_elsewhere_is_thrown_away_and_the_state_is_fetched(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world = World(tmp_path, values=VALUES, wire="int8", round_tokens=900, min_peers=2)

    def lies(peer: Peer) -> None:
        real = peer.driver.shelf.average

        def other(state: str) -> Average | None:
            found = real(state)
            if found is None:
                return None
            wrong = codec("int8").encode(torch.ones(65536))
            return replace(found, chunks=(wrong, *found.chunks[1:]))

        peer.driver.shelf.average = other  # type: ignore[method-assign]

    async def main() -> None:
        async with world.peers(2) as (one, two), world.peer(2, one, two, tokens=200, train=False) as late:
            misses(late)
            late.train()
            for peer in (one, two):
                lies(peer)
            await until(lambda: late.reports and late.reports[-1].took_part)
            caplog.clear()
            at = one.round
            await agreed([one, two, late], at + 3)
        assert any("no average that leads to its state" in message for message in caplog.messages)
        assert any("fetched round" in message for message in caplog.messages)

    run(main())


def test_a_part_that_is_too_large_or_another_one_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path)

    async def main() -> None:
        async with world.nodes(2) as (asker, source):
            from peer.net import frames
            from protocol import swarm_pb2

            answers = [
                swarm_pb2.Part(chunk=0, data=bytes(1 << 18)),
                swarm_pb2.Part(chunk=1, data=bytes(10)),
                swarm_pb2.Part(error="not here"),
            ]

            async def answer(peer: str, reader: Any, writer: Any) -> None:
                await frames.receive(reader, swarm_pb2.AverageRequest, timeout_s=30)
                await frames.send(writer, answers.pop(0), timeout_s=30)

            await source.serve("average", answer)
            fetch = AverageFetch(asker, "average", lambda: world.certificate(0), lambda peer, size: None)
            for words in ("bytes", "expected 0", "not here"):
                with pytest.raises((FormatError, NetworkError), match=words):
                    await fetch.run("a" * 64, "int4", 100_000, [source.peer_id])
            with pytest.raises(NetworkError, match="no member"):
                await fetch.run("a" * 64, "int4", 100_000, [])

    run(main())


def test_only_as_many_averages_are_kept_as_half_a_copy_of_the_parameters() -> None:
    shelf = Shelf(Head(SharedState(0, (("w", (1000,)),), torch.zeros(1000))))
    for number in range(5):
        shelf.keep_average(f"{number}", Average("int4", 1000, (bytes(600),)))
    assert [shelf.average(f"{number}") is not None for number in range(5)] == [False, False, True, True, True]
    shelf.keep_average("large", Average("fp32", 1000, (bytes(4000),)))
    assert shelf.average("large") is None
    assert [is_small(name) for name in ("fp32", "fp16", "int8", "int4", "topk")] == [False, True, True, True, True]
