"""Who missed a round makes its state from the round's average, as it travelled; a wrong one costs only its bytes."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from peer.net import frames
from peer.net.average_fetch import AverageFetch
from peer.sync.averages import Average, is_small
from peer.sync.shelf import Head, Shelf
from peer.training.codecs.codec import CHUNK_VALUES, codec
from peer.training.state import SharedState
from protocol import swarm_pb2
from protocol.errors import FormatError, NetworkError
from tests.swarm_kit import World, agreed, run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
VALUES = 300_000


@pytest.mark.parametrize(("wire", "fragments"), [("int4", 1), ("topk", 1), ("int2", 3)])
def test_a_round_that_was_missed_is_made_up_from_its_average(
    tmp_path: Path, wire: str, fragments: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world = World(tmp_path, values=VALUES, wire=wire, fragments=fragments, round_tokens=800)

    async def main() -> None:
        async with world.peers(2, work_s=0.7) as (one, two), world.peer(2, one, two, train=False) as late:
            await agreed([one, two, late], 3)
            assert not any(report.took_part for report in late.reports)

    run(main())
    assert any("made round" in message for message in caplog.messages)
    assert not any("fetched round" in message for message in caplog.messages)


def test_an_average_that_leads_elsewhere_is_thrown_away_and_the_state_is_fetched(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world = World(tmp_path, values=VALUES, wire="int8", round_tokens=800)
    wrong = codec("int8").encode(torch.ones(CHUNK_VALUES))

    async def main() -> None:
        async with world.peers(2, work_s=0.7) as peers, world.peer(2, *peers, train=False) as late:
            for peer in peers:

                def lies(head: Head, shelf: Shelf = peer.driver.shelf) -> None:
                    found = shelf.average(head.digest)
                    if found is not None:
                        shelf.keep_average(head.digest, replace(found, chunks=(wrong, *found.chunks[1:])))

                peer.ways.keeps = lies
            await agreed([*peers, late], 3)

    run(main())
    assert any("no average that leads to its state" in message for message in caplog.messages)
    assert any("fetched round" in message for message in caplog.messages)


def test_a_part_that_is_too_large_or_another_one_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path)

    async def main() -> None:
        async with world.nodes(2) as (asker, source):
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
