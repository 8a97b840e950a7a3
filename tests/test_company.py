"""Whom a leader asks, and who leads: in memory, from what the members say of themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from peer.swarm import leading, members
from peer.swarm.company import IDLE_ASKED_EVERY, IDLE_ROUNDS, MISSED, Company
from peer.swarm.members import MemberBook
from peer.swarm.standing import BROKEN_FREE, Standing

from peer.sync.shelf import Head, Position
from protocol import swarm_pb2
from tests.swarm_kit import World

ME, NEEDED, IDLE = "me", ["b", "c", "d", "e", "f"], [f"idle-{number:02}" for number in range(63)]


class Scene:
    """One member's view of a run in its first round: the beginners, and whoever says that it is there."""

    def __init__(self, folder: Path, beginners: list[str], **sync: int) -> None:
        world = World(folder, values=10, **sync)
        self.book = MemberBook(world.card.run, world.card.member_key)
        self.standing, self.position = Standing(), Position(Head(world.genesis))
        self.company = Company(ME, world.spec, self.book, self.standing, self.position)
        self.company.weights = lambda: dict.fromkeys(beginners, 1)  # type: ignore[method-assign]

    def says(self, *peers: str, tokens: int = 0, hears: int = 3) -> None:
        for peer in peers:
            message = swarm_pb2.Progress(
                round=self.position.round, base=self.position.head.digest, tokens=tokens, hears=hears
            )
            self.book.note(peer, message)

    @property
    def asked(self) -> list[str]:
        return [view.peer_id for view in self.company.to_ask()]


def test_those_whom_the_majority_needs_are_asked_first_then_who_has_work_however_many_idle_keys_there_are(
    tmp_path: Path,
) -> None:
    scene = Scene(tmp_path, [ME, *NEEDED], max_group=8)
    scene.says(*IDLE)
    scene.says("worker", tokens=100)
    scene.says(*NEEDED)
    assert set(scene.asked[:5]) == set(NEEDED) and scene.asked[5] == "worker" and len(scene.asked) == 7


def test_idle_keys_are_no_more_peers_than_the_host_asked_for(tmp_path: Path) -> None:
    scene = Scene(tmp_path, [ME], min_peers=2)
    scene.company.named = b"named"
    scene.says(*IDLE)
    assert not scene.company.is_enough() and "1 more peers" in scene.company.waiting_for
    scene.says("worker", tokens=100)
    assert scene.company.is_enough(), scene.company.waiting_for


def test_who_has_done_nothing_for_rounds_is_asked_seldom_until_it_has_work(tmp_path: Path) -> None:
    scene = Scene(tmp_path, [ME])
    scene.says("idle", "slow")
    for _ in range(IDLE_ROUNDS):
        assert set(scene.asked) == {"idle", "slow"}, "a newcomer may just have begun"
        scene.company.round_made({ME})
    assert scene.asked == []
    scene.says("slow", tokens=5)
    assert scene.asked == ["slow"]
    assert scene.company._resting(IDLE_ASKED_EVERY) == set()


def test_who_keeps_the_others_waiting_for_nothing_is_not_asked_for_a_while_unless_its_vote_decides(
    tmp_path: Path,
) -> None:
    scene = Scene(tmp_path, [ME, "b"])
    scene.says("b", "liar", tokens=10**6)
    for _ in range(BROKEN_FREE + 1):
        assert set(scene.asked) == {"b", "liar"}
        scene.standing.asked([], ["b", "liar"])
    assert scene.asked == ["b"]


@pytest.mark.parametrize("hears", [3, 4096])
def test_only_those_lead_whose_votes_decide_and_boasting_of_hearing_all_puts_nobody_first(
    tmp_path: Path, hears: int
) -> None:
    scene = Scene(tmp_path, [ME, "b", "c"])
    scene.says("b", "c", "stranger", hears=3)
    honest = scene.company.place_in_line()
    scene.says("b", "stranger", hears=hears)
    assert scene.company.place_in_line() == honest is not None
    assert scene.company.may_lead("b") and not scene.company.may_lead("stranger")
    scene.company.weights = lambda: {"b": 1}  # type: ignore[method-assign]
    assert scene.company.place_in_line() is None


def test_a_round_is_held_back_while_one_at_work_may_be_gone_and_not_for_one_that_is_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, now = Scene(tmp_path, [ME, "needed"]), [0.0]
    monkeypatch.setattr(members.time, "monotonic", lambda: now[0])
    scene.says("needed")
    scene.says("worker", tokens=100)
    scene.says("idle")
    now[0] += (MISSED + 1) * scene.book.interval_s
    assert scene.company.falls_silent()
    scene.says("worker", tokens=100)
    assert scene.company.falls_silent(), "its vote decides"
    scene.says("needed")
    assert not scene.company.falls_silent(), "the idle one alone is silent"
    now[0] += (MISSED + 1) * scene.book.interval_s
    scene.says("needed")
    assert scene.company.falls_silent(), "it has work"
    now[0] += 60.0
    scene.says("needed")
    assert not scene.company.falls_silent(), "it is gone, and nobody is taken for present who is not"


class Mute:
    """Stands for a member's talk: nobody ever answers."""

    def __init__(self, book: MemberBook) -> None:
        self.book = book

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.create_task(coroutine)

    async def call(self, *arguments: object, **options: object) -> None:
        await asyncio.Event().wait()


def test_who_has_done_nothing_is_waited_for_less_than_who_works_and_who_works_less_than_whose_vote_decides(
    tmp_path: Path,
) -> None:
    scene, over = Scene(tmp_path, [ME, "needed"]), list[str]()
    scene.says("needed", "worker", tokens=100)
    scene.says("idle")

    async def ask(peer: str) -> None:
        views = [view for view in scene.company.others() if view.peer_id == peer]
        proposal = swarm_pb2.Proposal(timeout_s=0.9)
        answers = await leading.gather(Mute(scene.book), views, proposal, None, {"needed"})  # type: ignore[arg-type]
        over.append(peer)
        assert answers.silent == {peer} and "no answer" in answers.left_out[peer]

    async def main() -> None:
        await asyncio.gather(*(ask(peer) for peer in ("needed", "worker", "idle")))

    asyncio.run(main())
    assert over == ["idle", "worker", "needed"]
