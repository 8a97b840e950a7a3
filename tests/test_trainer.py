"""The trainer's loop over real swarms: it gives up when no round can be made, and it hands over on leaving."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.processes import eventually
from lab.training_fixtures import make_genesis, make_spec, write_tiny_llama
from peer.disk.moments import Moments
from peer.limits.watch import Gate
from peer.net.place import Place, SwarmConfig
from peer.net.swarm import Swarm
from peer.round.report import RoundReport
from peer.round.turns import Waiting
from peer.sync.averages import Average
from peer.sync.shelf import Head
from peer.trainer import Ended, WorkReport, train
from peer.training.codecs.codec import EncodedUpdate
from peer.training.data import load_dataset
from peer.training.model import load_trainable
from peer.training.state import SharedState
from peer.training.update import StepResult
from peer.training.work import LocalWork
from protocol.beginners import Beginners
from protocol.keys import PeerIdentity
from protocol.run_card import RunCard
from tests.swarm_kit import World

pytestmark = [
    pytest.mark.swarm,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # hivemind's way to find p2pd
]
PATIENCE_S = 1.0
WAIT_S = 240.0


class Peer:
    """A swarm, a real model, and the trainer's loop in a thread; notes what it is told."""

    def __init__(self, world: World, card: RunCard, index: int, folder: Path, glass: Path, plays: Path) -> None:
        genesis = make_genesis(card.spec, glass, folder / f"genesis-{index}")
        model = load_trainable(card.spec, folder / f"genesis-{index}")
        identity, token = world.identity(index), world.certificate(index, run=card.run)
        self.work = LocalWork(model, load_dataset(card.spec, model.tokenizer, plays), card.spec, identity.peer_id)
        self.reports: list[RoundReport] = []
        self.heads: list[Head] = []
        self.told: list[str] = []  # why it waits or is paused, the newest last
        self.is_paused = False
        self.steps = 0
        self.stop, self.gate = threading.Event(), Gate()
        self.swarm = Swarm(
            Place(identity, card, lambda: token, Head(genesis), config=SwarmConfig(listen="127.0.0.1:0")),
            world.identity_path(index),
            self._committed,
        )
        self.peer_id, self.folder = identity.peer_id, folder
        self.named = Beginners(run=card.run, peers=(world.identity(0).peer_id,)).sign(PeerIdentity(world.key)).data
        moments = Moments(self.work, folder / f"optimizer-{index}.safetensors")
        arguments = (self.swarm, self.work, 0, self.stop, self, self.gate, moments, PATIENCE_S)
        self.ended: Ended | None = None
        self.thread = threading.Thread(target=self._train, args=arguments)

    def __enter__(self) -> Peer:
        self.swarm.__enter__()
        self.swarm.set_run(1, b"")
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join(30)
        self.swarm.__exit__(None, None, None)

    def _train(self, *arguments: Any) -> None:
        self.ended = train(*arguments)

    def _committed(self, head: Head, report: RoundReport, average: Average | None) -> None:
        self.heads.append(head)
        self.reports.append(report)

    def working(self, report: WorkReport) -> None:
        self.steps += report.loss is None

    def held(self) -> None:
        self.told.append("held")

    def waiting(self, reason: Waiting | None) -> None:
        self.is_paused = False
        self.told.append(reason.key if reason else "")

    def paused(self, reason: Waiting) -> None:
        self.is_paused = True
        self.told.append(reason.key)


@pytest.fixture(params=[{}, {"overlap": True}], ids=["", "overlap"])
def new_peer(
    request: pytest.FixtureRequest, tmp_path: Path, glass_dir: Path, plays: Path
) -> Iterator[Callable[[int], Peer]]:
    glass = write_tiny_llama(tmp_path / "tiny", glass_dir)
    spec = make_spec(glass, plays, sync={"min_peers": 2, "round_tokens": 2000} | request.param)
    world = World(tmp_path, spec=spec)
    genesis = make_genesis(spec, glass, tmp_path / "genesis")
    card = world.card.model_copy(update={"run": spec.digest, "spec": spec, "genesis": genesis.digest})
    with ExitStack() as stack:
        yield lambda index: stack.enter_context(Peer(world, card, index, tmp_path, glass, plays))


def slow_down(work: LocalWork, step_s: float) -> None:
    step = work.step

    def slow_step() -> StepResult:
        time.sleep(step_s)
        return step()

    work.step = slow_step  # type: ignore[method-assign]


def meet(first: Peer, second: Peer) -> None:
    for peer in (first, second):
        peer.swarm.set_run(0, peer.named)
    first.swarm.add_addresses(second.swarm.addresses)
    second.swarm.add_addresses(first.swarm.addresses)


def test_a_peer_that_waits_too_long_pauses_keeps_its_work_and_goes_on_by_itself(
    new_peer: Callable[[int], Peer],
) -> None:
    alone = new_peer(0)
    eventually(lambda: alone.is_paused, WAIT_S)
    assert alone.told[-1] == "wants-more-peers"
    tokens, steps = alone.work.tokens, alone.steps
    assert tokens >= 2000
    time.sleep(1.0)  # ten looks
    assert (alone.work.tokens, alone.steps) == (tokens, steps), "no step is done while it is paused"
    assert alone.is_paused

    other = new_peer(1)
    meet(alone, other)
    eventually(lambda: alone.reports and alone.reports[0].took_part, WAIT_S)
    agreed = alone.heads[0].agreement
    assert agreed is not None and agreed.by_peer[alone.peer_id].tokens >= tokens, (
        "what was done before the pause counts"
    )
    eventually(lambda: len(alone.reports) >= 2 and not alone.is_paused, WAIT_S)
    other.stop.set()
    other.thread.join(30)
    assert not other.thread.is_alive()


def test_who_was_not_reached_at_first_is_tried_again_when_nobody_else_is_there(new_peer: Callable[[int], Peer]) -> None:
    """Two that dial each other at once may both fail, and the coordinator may be away since."""
    one, two = new_peer(0), new_peer(1)
    assert one.swarm._node is not None
    connect, tried = one.swarm._node.connect, []

    async def fails_once(addresses: Iterable[str]) -> set[str]:
        if wanted := set(addresses):  # a search may know of none yet
            tried.append(wanted)
        return await connect(wanted) if len(tried) > 1 else set()

    one.swarm._node.connect = fails_once  # type: ignore[method-assign]
    for peer in (one, two):
        peer.swarm.set_run(0, peer.named)
    one.swarm.add_addresses(two.swarm.addresses)
    eventually(lambda: one.reports and two.reports, WAIT_S)
    assert len(tried) >= 2


def test_no_more_addresses_are_remembered_than_fit_however_many_are_announced(
    new_peer: Callable[[int], Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = new_peer(0), new_peer(1)
    monkeypatch.setattr("peer.net.search.MAX_CONTACTS", 3)
    one.swarm.add_addresses(f"/ip4/127.0.0.1/tcp/{port}/p2p/{two.peer_id}" for port in range(1, 9))
    one.swarm.add_addresses(two.swarm.addresses)
    for peer in (one, two):
        peer.swarm.set_run(0, peer.named)
    eventually(lambda: one.reports and two.reports, WAIT_S)
    assert len(one.swarm.known_addresses) == 3


def test_a_paused_peer_leaves_when_it_is_told_to(new_peer: Callable[[int], Peer]) -> None:
    alone = new_peer(0)
    eventually(lambda: alone.is_paused, WAIT_S)
    alone.stop.set()
    alone.thread.join(5)
    assert not alone.thread.is_alive()


def test_what_was_handed_over_counts_although_its_owner_leaves(new_peer: Callable[[int], Peer]) -> None:
    leaver, other = new_peer(0), new_peer(1)
    meet(leaver, other)
    eventually(lambda: leaver.reports and other.reports, WAIT_S)
    slow_down(leaver.work, 0.5)  # so that its owner stops it before it has handed over
    made = len(leaver.reports)
    eventually(lambda: len(leaver.reports) > made, WAIT_S)
    eventually(lambda: not leaver.swarm.close_work.is_set(), WAIT_S)
    made = len(leaver.reports)
    assert leaver.swarm.close_work.wait(WAIT_S)  # a round is being closed
    leaver.stop.set()
    leaver.thread.join(WAIT_S)
    assert not leaver.thread.is_alive()
    eventually(lambda: len(leaver.reports) > made, WAIT_S)
    assert leaver.reports[-1].took_part
    again = LocalWork(leaver.work.model, leaver.work.dataset, leaver.work.spec, leaver.peer_id)
    assert Moments(again, leaver.folder / "optimizer-0.safetensors").load(), (
        "what AdamW remembers is kept for a restart"
    )


def test_who_may_not_work_any_more_hands_over_what_it_has_and_stands_aside(new_peer: Callable[[int], Peer]) -> None:
    one, other = new_peer(0), new_peer(1)
    meet(one, other)
    eventually(lambda: one.reports and other.reports, WAIT_S)
    for peer in (one, other):
        slow_down(peer.work, 0.3)
    made = len(one.reports)
    eventually(lambda: len(one.reports) > made and one.work.tokens and not one.swarm.close_work.is_set(), WAIT_S)
    one.gate.closed.set()
    time.sleep(0.5)  # a step in hand ends
    round, steps, tokens = one.work.round, one.steps, one.work.tokens
    one.thread.join(WAIT_S)
    assert one.ended is Ended.ASIDE and one.steps == steps and "held" in one.told
    handed = [
        head.agreement.by_peer[one.peer_id].tokens for head in one.heads if head.round == round and head.agreement
    ]
    assert handed == [tokens] or not tokens


def test_who_stands_aside_with_nothing_in_hand_does_so_at_once_and_goes_on_from_there(
    new_peer: Callable[[int], Peer],
) -> None:
    one = new_peer(0)
    eventually(lambda: one.is_paused, WAIT_S)
    one.gate.closed.set()
    one.stop.set()
    one.thread.join(WAIT_S)
    tokens, base = one.work.tokens, one.work.base
    assert tokens and one.work.stands_on(base)
    one.gate.closed.clear()
    one.stop.clear()
    seen: list[int] = []
    step = one.work.step

    def noted_step() -> StepResult:
        seen.append(one.work.tokens)
        return step()

    one.work.step = noted_step  # type: ignore[method-assign]
    again = threading.Thread(target=train, args=(one.swarm, one.work, 0, one.stop, one, one.gate, None, 0.1))
    again.start()
    eventually(lambda: seen, WAIT_S)
    one.stop.set()
    again.join(WAIT_S)
    assert seen[0] == tokens, "what was done before is not done again"


@pytest.mark.parametrize("new_peer", [{"overlap": True, "wire": "int2", "fragments": 3}], indirect=True, ids=["int2"])
def test_what_the_others_do_not_have_stays_in_the_model_until_they_do(new_peer: Callable[[int], Peer]) -> None:
    """Each round, to the value: what the model was, the step of the state, and less what was sent and used."""
    one, two = new_peer(0), new_peer(1)
    taken: list[bool] = []  # whether a round had this peer's work in it
    jumped: list[int] = []
    rebase = one.work.rebase

    def checked(base: SharedState, sent: EncodedUpdate | None) -> None:
        before, old = one.work.model.read(), one.work._base
        rebase(base, sent)
        if old is None:
            return
        if base.round != old.round + 1:  # it missed more than one: a busy machine
            jumped.append(base.round)
            return
        wanted = before + base.parameters - old.parameters
        if sent is not None:
            wanted[one.work.spec.sync.fragment(base.round, len(wanted))] += sent.decode()
        assert torch.allclose(one.work.model.read(), wanted, atol=1e-6)
        head = next(head for head in one.heads if head.round == base.round)
        assert (sent is not None) == (one.peer_id in head.weights)
        taken.append(sent is not None)

    one.work.rebase = checked  # type: ignore[method-assign]
    three = new_peer(2)  # so that the others can make a round without the first
    for peer in (one, two, three):  # rounds of two seconds, so that whoever misses one misses no more
        slow_down(peer.work, 0.3)
    meet(one, two)
    meet(one, three)
    two.swarm.add_addresses(three.swarm.addresses)
    eventually(lambda: len(taken) >= 8, 2 * WAIT_S)
    assert taken.count(True) >= 5, (taken, jumped)


@pytest.mark.parametrize("new_peer", [{"overlap": True}], indirect=True, ids=["overlap"])
def test_where_rounds_overlap_the_trainer_works_on_while_the_members_average(new_peer: Callable[[int], Peer]) -> None:
    one, two = new_peer(0), new_peer(1)
    ahead: list[int] = []
    step = one.work.step

    def noted_step() -> StepResult:
        if one.swarm.close_work.is_set():  # its round is being closed
            ahead.append(one.work.round)
        return step()

    one.work.step = noted_step  # type: ignore[method-assign]
    meet(one, two)
    eventually(lambda: min(len(one.reports), len(two.reports)) >= 4, WAIT_S)
    assert len(set(ahead)) >= 2, "steps for the next round while its base was being agreed"
    shared = {head.round: head.digest for head in one.heads}.items() & {h.round: h.digest for h in two.heads}.items()
    assert len(shared) >= 3, "the agreed states are the same"
    assert all(report.took_part for report in one.reports[1:4])
