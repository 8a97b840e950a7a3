"""A swarm whose parts fail by a mistake of ours: nobody takes it for alive, and what can go on does."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.processes import eventually
from peer.limits.watch import Gate
from peer.net.gossip import Gossip
from peer.net.node import Node
from peer.net.place import Place, SwarmConfig
from peer.net.swarm import Swarm
from peer.round.core import Core
from peer.sync.shelf import Head
from peer.trainer import reduce
from peer.training.update import Update
from protocol.errors import PartFailed
from protocol.parts import Failure
from tests.swarm_kit import World, agreed, run, until

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:unclosed <StreamWriter:ResourceWarning"),  # what was being said when it ended
]


@contextmanager
def swarm_of_one(folder: Path) -> Iterator[tuple[Swarm, list[Failure]]]:
    """A swarm, and what it tells of its parts."""
    world, told = World(folder, values=1000), []
    swarm = Swarm(
        Place(
            world.identity(0),
            world.card,
            lambda: world.certificate(0),
            Head(world.genesis),
            config=SwarmConfig(listen="127.0.0.1:0"),
        ),
        world.identity_path(0),
        lambda head, report, average: None,
        on_failure=told.append,
    )
    with swarm:
        yield swarm, told


def planted(*args: Any) -> Any:
    raise LookupError("planted")


@pytest.mark.parametrize(("part", "owner", "name"), [("clock", Core, "step"), ("gossip", Gossip, "everyone")])
def test_a_swarm_whose_clock_or_gossip_died_says_so_to_its_trainer(
    tmp_path: Path,
    part: str,
    owner: type,
    name: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with swarm_of_one(tmp_path) as (swarm, told):
        head = swarm.begin_work()
        monkeypatch.setattr(owner, name, planted)
        swarm.set_run(0, b"")
        assert swarm.close_work.wait(60), "the trainer is called"
        with pytest.raises(PartFailed, match=f"{part}, has stopped: LookupError: planted"):
            swarm.hand_over(Update(torch.zeros(1000), 0, 0, 0, 1), head.digest)
        with pytest.raises(PartFailed):
            swarm.begin_work()
        with pytest.raises(PartFailed):
            reduce(swarm, 0, threading.Event(), Gate())
        assert [(item.part, item.is_final) for item in told] == [(part, True)]
        assert "Traceback" in caplog.text


def test_a_search_that_fails_goes_on_and_its_owner_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peer.net.search.SEARCH_INTERVAL_S", 0.01)
    monkeypatch.setattr("peer.net.swarm.SEARCH_INTERVAL_S", 0.01)
    found, searches = Node.find_records, 0

    async def fails_three_times(node: Node, key: str) -> dict[str, bytes]:
        nonlocal searches
        searches += 1
        if searches <= 3:
            planted()
        return await found(node, key)

    monkeypatch.setattr(Node, "find_records", fails_three_times)
    with swarm_of_one(tmp_path) as (swarm, told):
        eventually(lambda: searches >= 6)
        swarm.check()
        assert [(item.part, item.is_final) for item in told] == 3 * [("search", False)]


def test_an_address_that_cannot_even_be_tried_is_told(tmp_path: Path) -> None:
    with swarm_of_one(tmp_path) as (swarm, told):
        swarm._node.connect = planted  # type: ignore[method-assign,union-attr]
        swarm.add_addresses(["/ip4/127.0.0.1/tcp/1/p2p/x"])
        eventually(lambda: told)
        assert (told[0].part, told[0].is_final) == ("task", False)
        swarm.check()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_swarm_whose_thread_has_ended_closes_what_it_opened(tmp_path: Path) -> None:
    with swarm_of_one(tmp_path) as (swarm, told):

        def ends_the_loop() -> None:
            raise SystemExit(3)

        swarm._loop.call_soon_threadsafe(ends_the_loop)
        eventually(lambda: told)
        with pytest.raises(PartFailed, match="swarm, has stopped: SystemExit"):
            swarm.begin_work()
    assert swarm._node is not None and swarm._node._p2p._child.returncode is not None


def test_a_task_that_hivemind_leaves_behind_is_ended_before_the_loop_is_closed(tmp_path: Path) -> None:
    """Else asyncio complains of it over the owner's prompt: "Task was destroyed but it is pending"."""
    with swarm_of_one(tmp_path) as (swarm, _):
        left_behind = asyncio.run_coroutine_threadsafe(asyncio.sleep(600), swarm._loop)
    assert left_behind.cancelled()
    assert not [task for task in asyncio.all_tasks(swarm._loop) if not task.done()]


# ---- a group that breaks by a mistake of one member's ----------------------------------------------------------------


def test_the_others_go_on_without_a_member_whose_program_fails_in_every_group(tmp_path: Path) -> None:
    world = World(tmp_path, values=1000, round_tokens=None, round_seconds=0.7)

    async def main() -> None:
        async with (
            world.peers(2, work_s=0.1) as peers,
            world.peer(2, *peers, on_candidate=planted, work_s=0.1) as broken,
        ):
            blames = [peer.driver.state.blame for peer in peers]
            await until(lambda: any(broken.me in blame.spoilt(time.monotonic()) for blame in blames))
            at = max(peer.round for peer in peers)
            await agreed(peers, at + 2)

    run(main())
