"""A swarm whose parts fail by a mistake of ours: nobody takes it for alive, and what can go on does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peer.round_rules import BallotBox

from lab.processes import eventually
from peer import volunteer
from peer.net.swarm import DaemonEnded, Swarm, SwarmConfig
from peer.round.group import Group
from peer.round.report import Rounds
from peer.screen.json_lines import JsonScreen
from peer.screen.messages import text
from peer.sync.shelf import Head
from peer.trainer import reduce
from peer.training.work import Update
from peer.volunteer import PeerConfig, Volunteer
from protocol.errors import PartFailed
from protocol.invite import Invite
from protocol.leaving import Leaving
from protocol.parts import MOST_FAILURES, Failure
from tests.swarm_kit import World, agreed, run, until

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@contextmanager
def swarm_of_one(folder: Path) -> Iterator[tuple[Swarm, list[Failure]]]:
    """A swarm, and what it tells of its parts."""
    world, told = World(folder, values=1000), []
    swarm = Swarm(
        world.identity(0),
        world.identity_path(0),
        world.card,
        lambda: world.certificate(0),
        BallotBox(),
        Head(world.genesis),
        lambda head, report, average: None,
        SwarmConfig(listen="127.0.0.1:0"),
        on_failure=told.append,
    )
    with swarm:
        yield swarm, told


def planted(*args: Any) -> Any:
    raise LookupError("planted")


@pytest.mark.parametrize("part", ["clock", "gossip"])
def test_a_swarm_whose_clock_or_gossip_died_says_so_to_its_trainer(
    tmp_path: Path, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    with swarm_of_one(tmp_path) as (swarm, told):
        head = swarm.begin_work()
        if part == "clock":
            swarm._rounds._caught_up = planted  # type: ignore[method-assign]
        else:
            swarm._rounds.gossip._everyone = planted  # type: ignore[method-assign]
        assert swarm.close_work.wait(60), "the trainer is called"
        with pytest.raises(PartFailed, match=f"{part}, has stopped: LookupError: planted"):
            swarm.hand_over(Update(torch.zeros(1000), 0, 0, 0, 1), head.digest)
        with pytest.raises(PartFailed):
            swarm.begin_work()
        with pytest.raises(PartFailed):
            reduce(swarm, 0, threading.Event())
        assert [(item.part, item.is_final) for item in told] == [(part, True)]
        assert "Traceback" in caplog.text


def test_a_search_that_fails_goes_on_and_its_owner_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peer.net.swarm.SEARCH_INTERVAL_S", 0.01)
    with swarm_of_one(tmp_path) as (swarm, told):
        found, searches = swarm._find_members, 0

        async def fails_three_times() -> None:
            nonlocal searches
            searches += 1
            if searches <= 3:
                planted()
            await found()

        swarm._find_members = fails_three_times  # type: ignore[method-assign]
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
@pytest.mark.filterwarnings("ignore:unclosed <StreamWriter:ResourceWarning")  # what was being said when it ended
def test_a_swarm_whose_thread_has_ended_closes_what_it_opened(tmp_path: Path) -> None:
    with swarm_of_one(tmp_path) as (swarm, told):

        def ends_the_loop() -> None:
            raise SystemExit(3)

        swarm._loop.call_soon_threadsafe(ends_the_loop)
        eventually(lambda: told)
        with pytest.raises(PartFailed, match="swarm, has stopped: SystemExit"):
            swarm.begin_work()
    assert swarm._node is not None and swarm._node._p2p._child.returncode is not None


@pytest.mark.filterwarnings("ignore:unclosed <StreamWriter:ResourceWarning")  # what was being said when it ended
def test_a_task_that_hivemind_leaves_behind_is_ended_before_the_loop_is_closed(tmp_path: Path) -> None:
    """Else asyncio complains of it over the owner's prompt: "Task was destroyed but it is pending"."""
    with swarm_of_one(tmp_path) as (swarm, _):
        left_behind = asyncio.run_coroutine_threadsafe(asyncio.sleep(600), swarm._loop)
    assert left_behind.cancelled()
    assert not [task for task in asyncio.all_tasks(swarm._loop) if not task.done()]


# ---- a group that breaks by a mistake of one member's ------------------------------------------------------------------


def test_the_others_go_on_without_a_member_whose_program_fails_in_every_group(tmp_path: Path) -> None:
    world = World(tmp_path, values=1000, round_tokens=None, round_seconds=0.7)

    class Broken(Rounds):
        def _start_group(self, group: Group) -> None:
            super()._start_group(group)
            self.group._outer_step = planted  # type: ignore[method-assign]

    async def main() -> None:
        async with world.peers(2, work_s=0.1) as peers, world.peer(2, *peers, engine=Broken, work_s=0.1) as broken:
            await until(lambda: any(broken.me in peer.rounds._standing.spoilt() for peer in peers))
            at = max(peer.round for peer in peers)
            await agreed(peers, at + 2)

    run(main())


# ---- starting again -----------------------------------------------------------------------------------------------------


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Volunteer:
    monkeypatch.setattr(volunteer, "FIRST_PAUSE_S", 1e-6)
    monkeypatch.setattr(volunteer, "LONGEST_PAUSE_S", 1e-6)
    invite = Invite(addresses=("127.0.0.1:1",), run="a" * 64, tls="b" * 64, root="c" * 64)
    return Volunteer(invite, PeerConfig(tmp_path), JsonScreen(), Leaving(lambda: None))


@pytest.mark.parametrize("a_round_each_time", [False, True])
def test_a_swarm_that_fails_starts_again_and_after_some_times_without_a_round_the_peer_ends(
    peer: Volunteer, a_round_each_time: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    starts = 0

    def once(*args: Any) -> PartFailed | None:
        nonlocal starts
        starts += 1
        peer._kept_round += a_round_each_time
        return Failure("clock", "LookupError: planted").error() if starts <= 3 * MOST_FAILURES else None

    peer._train_once = once  # type: ignore[method-assign,assignment]
    if a_round_each_time:
        peer._train(None, None, None)  # type: ignore[arg-type]
        assert starts == 3 * MOST_FAILURES + 1
    else:
        with pytest.raises(PartFailed, match="clock") as caught:
            peer._train(None, None, None)  # type: ignore[arg-type]
        assert starts == MOST_FAILURES and caught.value.exit_code == 5
    assert text("swarm-restarts", "en") in capsys.readouterr().out


def test_a_network_daemon_that_dies_often_is_started_again_each_time(peer: Volunteer) -> None:
    ends: list[DaemonEnded | None] = [DaemonEnded("p2pd has ended")] * (3 * MOST_FAILURES)
    ends.append(None)
    peer._train_once = lambda *args: ends.pop(0)  # type: ignore[method-assign,assignment]
    peer._train(None, None, None)  # type: ignore[arg-type]
    assert not ends


@pytest.mark.parametrize("language", ["en", "zh"])
def test_each_part_of_a_peer_has_a_name_in_words(peer: Volunteer, language: str) -> None:
    for part in (
        "clock",
        "gossip",
        "search",
        "swarm",
        "p2pd-watch",
        "task",
        "coordinator-link",
        "signals",
        "save-optimizer",
    ):
        assert text(f"part-{part}", language)
        peer.failed(Failure(part, "LookupError: planted"))
