"""Rounds between real engines over loopback: they commit, or abort and keep the work, whoever vanishes or lies."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from peer.round_rules import Ballot, BallotBox
from peer.swarm.standing import Standing

from peer.net import frames
from peer.net.node import Node
from peer.net.pace import Limits
from peer.round.group import Group
from peer.round.report import FREE_ATTEMPTS, Rounds
from peer.sync.shelf import Head
from peer.training.codecs.codec import EncodedUpdate
from peer.training.outer import outer_step
from peer.training.state import SharedState
from protocol import swarm_pb2
from protocol.agreement import Agreement, Counts, group_digest
from protocol.counting import growth_capped
from protocol.errors import NetworkError
from protocol.keys import PeerIdentity
from protocol.statements import Cast, Promise, Vote, open_vote
from tests.swarm_kit import Peer, World, acquaint, agreed, meet, run, until, with_chunk

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SMALL = 1000  # values; one chunk


def small(tmp_path: Path, **options: Any) -> World:
    return World(tmp_path, **({"values": SMALL} | options))


# ---- when all is well -----------------------------------------------------------------------------------------------------


def test_rounds_commit_with_one_state_for_all_and_every_claim_in_them(tmp_path: Path) -> None:
    world = World(tmp_path, min_peers=3, wire="int8")

    async def main() -> None:
        async with world.peers(3) as peers:
            for number in (1, 2, 3):
                await agreed(peers, number)
            agreement = next(head.agreement for head in peers[0].heads if head.round == 1)
            assert agreement is not None
            assert set(agreement.by_peer) == {peer.me for peer in peers}
            again = Agreement.from_bytes(agreement.to_bytes(), run=world.card.run, membership_key=world.card.member_key)
            assert again.state == peers[0].state(1)
            updates = [EncodedUpdate.encode(world.update(index), "int8").decode() for index in range(3)]
            mean = torch.stack(updates).double().mean(0)
            wanted = world.genesis.parameters.double() - mean
            got = next(head.state.parameters for head in peers[0].heads if head.round == 1)
            assert (got.double() - wanted).abs().max().item() < 0.05

    run(main())


@pytest.mark.parametrize("wire", ["int8", "topk"])
def test_a_member_whose_update_is_a_thousand_times_too_long_moves_the_state_by_twice_the_others_length(
    tmp_path: Path, wire: str
) -> None:
    """By the run's `sync.clip`, in whichever member reduces its chunks."""

    class Loud(World):
        def update(self, index: int, round: int = 1) -> torch.Tensor:
            return super().update(index, round) * (-1000.0 if index == 0 else 1.0)

    world = Loud(tmp_path, min_peers=3, wire=wire, clip=2.0)

    async def main() -> None:
        async with world.peers(3) as peers:
            await agreed(peers, 1)
            head = next(head for head in peers[1].heads if head.round == 1)
            by = (head.state.parameters - world.genesis.parameters).norm().item()
            assert 0 < by < 2 * world.update(1).norm().item()

    run(main())


def test_a_member_alone_makes_rounds_alone_unless_the_host_asked_for_more(tmp_path: Path) -> None:
    async def main() -> None:
        async with small(tmp_path, round_tokens=100).peers(1) as (peer,):
            await agreed([peer], 2)
        async with small(tmp_path, round_tokens=100, min_peers=2).peers(1) as (peer,):
            await until(lambda: peer.rounds.company.waiting_for)
            assert "1 more peers" in peer.rounds.company.waiting_for and peer.round == 0

    run(main())


def test_a_late_joiner_fetches_the_state_and_takes_part_within_two_rounds(tmp_path: Path) -> None:
    world = small(tmp_path, round_tokens=800)

    async def main() -> None:
        async with world.peers(2, work_s=1.5) as peers:
            await agreed(peers, 3)
            async with world.peer(2, *peers, work_s=1.5) as late:
                await until(lambda: any(report.took_part for report in late.reports), what="the late one to take part")
                first = next(report.round for report in late.reports if report.took_part)
                joined = late.heads[0].round
                assert joined >= 3 and first <= joined + 2
                await agreed([*peers, late], first)

    run(main())


def test_a_member_that_leaves_costs_the_others_nothing(tmp_path: Path) -> None:
    world = small(tmp_path, round_tokens=400)

    async def main() -> None:
        async with world.peers(2) as (one, two):
            await agreed([one, two], 1)
            await two.stop()
            at = one.round
            await agreed([one], at + 2)

    run(main())


# ---- who vanishes ---------------------------------------------------------------------------------------------------------


class Mute(Rounds):
    """Takes part in everything but sends no part of its update."""

    muted = True

    def _start_group(self, group: Group) -> None:
        super()._start_group(group)
        if self.group.reduction is not None and self.muted:

            async def nothing(writer: Any, chunks: range) -> None:
                await asyncio.sleep(60)

            self.group.reduction._send_chunks = nothing  # type: ignore[method-assign]


def test_a_member_that_is_silent_in_mid_round_is_left_out_and_no_work_is_lost(tmp_path: Path) -> None:
    world = World(tmp_path, round_tokens=800)

    async def main() -> None:
        async with world.peers(2, work_s=0.4) as peers, world.peer(2, *peers, engine=Mute, tokens=800) as mute:
            await until(
                lambda: peers[0].rounds.group.reduction and len(peers[0].rounds.group.reduction.group.members) == 3
            )
            start = peers[0].round
            await until(lambda: all(peer.round >= start + 2 for peer in peers), what="two more rounds")
            await agreed(peers, start + 2)
            for peer in peers:
                assert len(peer.handed_over) == len(set(peer.handed_over)), "work was done twice for one base"
            assert any(report.attempts > 1 for report in peers[0].reports)
            reasons = [reason for report in peers[0].reports for who, reason in report.left_out if who == mute.me]
            assert any("no data" in reason for reason in reasons), reasons

    run(main())


def test_a_member_that_is_killed_in_mid_round_does_not_stop_the_others(tmp_path: Path) -> None:
    world = World(tmp_path, round_tokens=None, round_seconds=0.7, min_peers=2)

    async def main() -> None:
        async with world.peers(3) as peers:
            victim = peers[2]

            def all_average() -> bool:
                reduction = victim.rounds.group.reduction
                return (
                    len(victim.rounds.head.weights) == 3 and reduction is not None and len(reduction.group.members) == 3
                )

            await until(all_average, what="a group of all three, after another one")
            await victim.vanish()
            at = peers[0].round
            await agreed(peers[:2], at + 2)

    run(main())


class Torn(Rounds):
    """Joins another leader's attempt between its answer to the first leader and that one's group."""

    torn: ClassVar[list[int]] = []

    async def _answer_group(self, message: swarm_pb2.Group, reader: Any, writer: Any, peer: str) -> None:
        if not self.torn and len(self.head.weights) == 3:
            self.torn.append(message.round)
            self._box.promise(message.round, message.attempt + 1, "another leader")
        await super()._answer_group(message, reader, writer, peer)


def test_a_member_that_another_leader_has_bound_meanwhile_is_not_blamed_for_it(tmp_path: Path) -> None:
    world = small(tmp_path, round_tokens=None, round_seconds=1.0)

    async def main() -> None:
        async with world.peers(2, work_s=0.1) as peers, world.peer(2, *peers, engine=Torn, work_s=0.1) as torn:
            await until(lambda: Torn.torn, what="a group that is refused")
            (at,) = Torn.torn
            await agreed(peers, at)
            assert not any(torn.me in peer.rounds._standing.spoilt() for peer in peers)
            await until(lambda: torn.round > at + 1, what="two more rounds")
            assert any(report.took_part and report.round in (at, at + 1, at + 2) for report in torn.reports)

    run(main())


def test_a_member_that_refuses_again_and_again_is_left_out() -> None:
    standing = Standing()
    assert [standing.balked("a") for _ in range(3)] == [False, True, True]
    standing.kept_their_word("leader", ["a"])
    assert not standing.balked("a") and not standing.balked("b")


def test_whoever_does_not_see_it_hears_who_spoilt_the_group(tmp_path: Path) -> None:
    """Only the reducer of a chunk sees that it is not what its sender claimed; the group is over for the others, too."""
    world = World(tmp_path, min_peers=2, round_tokens=None, round_seconds=1.0)
    spoilt: list[str] = []

    class Spoiling(Rounds):
        def _start_group(self, group: Group) -> None:
            super()._start_group(group)
            reduction = self.group.reduction
            if reduction is not None and len(group.members) == 3 and not spoilt:
                spoilt.append(group.digest)
                ours = reduction._update
                chunk = group.ranges(len(ours.chunks))[witness[0]][0]
                reduction._update = with_chunk(ours, chunk, bytes(len(ours.chunks[chunk])))

    witness: list[str] = []

    async def main() -> None:
        async with world.peers(2, work_s=0.1) as peers:
            witness.append(peers[0].me)
            async with world.peer(2, *peers, engine=Spoiling, work_s=0.1) as liar:
                await until(
                    lambda: all(liar.me in peer.rounds._standing.spoilt() for peer in peers), what="both to know"
                )
                assert spoilt

    run(main())


def test_a_leader_that_dies_after_its_proposal_is_replaced_and_the_work_is_kept(tmp_path: Path) -> None:
    world = small(tmp_path, round_tokens=None, round_seconds=0.7, min_peers=2)

    dead_ones: list[str] = []

    class Dying(Rounds):
        def _choose_group(self, *args: Any) -> Group:
            # after a round of all three: the two that stay must hold its majority; the first to lead alone dies
            if len(self.head.weights) == 3 and not dead_ones:
                dead_ones.append(self.me)
                self._leaving = True  # the clock stops; nobody hears of this member again
                raise NetworkError("the leader is dead")
            return super()._choose_group(*args)

    async def main() -> None:
        async with world.peers(3, engine=Dying) as peers:
            await agreed(peers, 1)
            await until(lambda: any(peer.rounds._leaving for peer in peers), what="a leader to die")
            dead = next(peer for peer in peers if peer.rounds._leaving)
            await dead.vanish()
            alive = [peer for peer in peers if peer is not dead]
            await agreed(alive, dead.round + 2)
            for peer in alive:
                assert len(peer.handed_over) == len(set(peer.handed_over))

    run(main())


def test_a_minority_does_not_commit_and_says_why(tmp_path: Path) -> None:
    world = small(tmp_path, round_tokens=300)

    async def main() -> None:
        async with world.peers(3) as peers:
            await agreed(peers, 1)
            lone = peers[0]
            for other in peers[1:]:
                await other.vanish()
            at = lone.round
            weights = lone.rounds.head.weights
            await until(lambda: "too few" in lone.rounds.company.waiting_for or lone.round > at + 3)
            if len(weights) == 3:  # one of three equal members
                assert lone.round <= at + 1
                before = lone.round
                await asyncio.sleep(1)
                assert lone.round == before

    run(main())


def test_of_two_equal_members_that_lose_each_other_exactly_one_goes_on(tmp_path: Path) -> None:
    world = small(tmp_path, round_tokens=None, round_seconds=1.0)

    async def main() -> None:
        async with world.peers(2, work_s=0.3) as (one, two):
            await until(lambda: any(report.members == 2 for report in one.reports), what="a round of both")
            for peer, other in ((one, two), (two, one)):
                await peer.node._p2p._client.disconnect(other.node._p2p.peer_id)
                cut(peer, {other.me})
            start = max(one.round, two.round)
            await until(lambda: max(one.round, two.round) >= start + 2, what="one of them to go on")
            assert min(one.round, two.round) <= start + 1

    run(main())


def cut(peer: Peer, others: set[str]) -> None:
    """This peer's network to others is gone, both ways."""
    node, opened = peer.node, peer.node._open_stream

    async def refused(to: Any, name: str) -> Any:
        if to.to_base58() in others:
            raise OSError("no route to host")
        return await opened(to, name)

    node._open_stream = refused  # type: ignore[method-assign]
    admit = peer.rounds.book.admit

    def unheard(peer_id: str, token: str) -> None:
        if peer_id in others:
            raise NetworkError("not heard")
        admit(peer_id, token)

    peer.rounds.book.admit = unheard  # type: ignore[method-assign]


# ---- who differs ----------------------------------------------------------------------------------------------------------


class Differing(Rounds):
    """Gets another state from its outer step in round 2."""

    differed = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        real = self.group._outer_step

        def outer_step(averaged: torch.Tensor) -> SharedState:
            if self.position.round == 2:
                averaged, self.differed = averaged + 1, True
            return real(averaged)

        self.group._outer_step = outer_step  # type: ignore[method-assign]


def test_a_member_whose_state_differs_takes_the_one_of_the_majority_and_no_majority_hangs_on_one_vote(
    tmp_path: Path,
) -> None:
    world = small(tmp_path, min_peers=3)

    async def main() -> None:
        async with world.peers(2) as peers, world.peer(2, *peers, engine=Differing) as odd:
            await agreed([*peers, odd], 3)
            assert odd.state(2) == peers[0].state(2)
            assert isinstance(odd.rounds, Differing) and odd.rounds.differed
            tries = [report.attempts for peer in peers for report in peer.reports if report.round == 2]
            assert tries == [2, 2], "one of the two that agreed may have told the odd one another state"

    run(main())


def test_three_states_for_three_members_commit_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peer.swarm.voting.MAJORITY_S", 1.0)
    world = small(tmp_path, min_peers=3)

    class Own(Rounds):
        odd = True

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            real = self.group._outer_step
            self.group._outer_step = lambda averaged: real(  # type: ignore[method-assign]
                averaged + (float(ord(self.me[-1])) if self.odd else 0.0)
            )

    async def main() -> None:
        async with world.peers(3, engine=Own) as peers:
            await until(lambda: any(peer.box.ballots for peer in peers), what="a vote")
            await until(lambda: all(peer.rounds._attempts >= 2 for peer in peers), what="a second attempt")
            assert {peer.round for peer in peers} == {0}
            Own.odd = False
            await agreed(peers, 1)
            assert all(len(peer.handed_over) <= peer.round + 1 for peer in peers), "the work was kept"

    run(main())


# ---- restarts -------------------------------------------------------------------------------------------------------------


def test_a_member_that_voted_tells_of_it_after_a_restart(tmp_path: Path) -> None:
    world = small(tmp_path)

    async def main() -> None:
        async with world.peer(0, train=False) as peer:
            group, state = made_group(world, 0), "5" * 64
            peer.box.promise(1, 3, peer.me)
            voting = asyncio.create_task(peer.rounds.group.voting.cast(replace(group, attempt=3), state))
            await until(lambda: peer.box.ballots)
            voting.cancel()
            await asyncio.gather(voting, return_exceptions=True)
            disk = peer.saved[-1]
        box = BallotBox()
        box.restore(disk)
        async with world.peer(0, train=False, box=box) as again:
            (voted,) = again.rounds.group.voting.to_messages()
            assert open_vote(voted.vote).value.state == state
            assert list(again.rounds.group.voting.own_ballots()) == [Ballot(3, group.digest, state)]
            assert not again.rounds.group.voting.forgotten

    run(main())


def test_a_member_that_cannot_show_for_what_it_voted_sits_the_round_out(tmp_path: Path) -> None:
    world = small(tmp_path)
    world.named = world.name(0, 5)
    box = BallotBox()
    box.promise(1, 0, "x")
    box.vote(1, Ballot(0, "a" * 64, "b" * 64), b"\xff not a group")

    async def main() -> None:
        async with world.peer(0, box=box, tokens=2000) as amnesiac, world.node(5, amnesiac.node) as leader:
            reply = await propose(world, leader, amnesiac, attempt=7)
            assert not reply.accepted and "before a restart" in reply.reason
            assert amnesiac.round == 0

    run(main())


def made_group(world: World, *indices: int, round: int = 1) -> Group:
    rules = world.rules()
    members = []
    for index in indices:
        encoded = EncodedUpdate.encode(world.update(index), world.spec.sync.wire)
        envelope = world.claim(index, encoded).sign(world.identity(index))
        members.append(rules.check_member(envelope.data, world.certificate(index), True))
    return Group.build(rules, 0, world.identity(indices[0]).peer_id, members)


# ---- a hostile member -----------------------------------------------------------------------------------------------------

HOSTILE = 7  # a certified member that speaks to the others by hand


async def talk(
    world: World, node: Any, peer: Peer, name: str, message: Any, reply: Any, timeout_s: float = 60.0
) -> Any:
    """Say something to a member under a certificate that holds."""
    message.certificate = world.certificate(HOSTILE if node.peer_id == world.identity(HOSTILE).peer_id else 5)
    return await node.call(peer.me, f"potluck/{world.card.run}/{name}", message, reply, timeout_s=timeout_s)


async def propose(world: World, node: Any, peer: Peer, attempt: int = 0) -> swarm_pb2.ProposalReply:
    head = peer.rounds.head
    message = swarm_pb2.Proposal(round=head.round + 1, base=head.digest, attempt=attempt, timeout_s=3)
    return await talk(world, node, peer, "propose", message, swarm_pb2.ProposalReply)


def progress(peer: Peer, **changes: Any) -> swarm_pb2.Progress:
    head = peer.rounds.head
    return swarm_pb2.Progress(**({"round": head.round + 1, "base": head.digest} | changes))


@contextlib.asynccontextmanager
async def lying(world: World, liar: Node, peers: list[Peer], lie: Callable[[Peer], swarm_pb2.Progress]) -> Any:
    """While this is entered, a liar tells everyone its lie, and answers with it."""

    def made(peer: Peer) -> swarm_pb2.Progress:
        message = lie(peer)
        message.certificate = world.certificate(HOSTILE)
        return message

    async def answer(peer: str, reader: Any, writer: Any) -> None:
        await frames.receive(reader, swarm_pb2.Progress, timeout_s=30)
        await frames.send(writer, made(next(other for other in peers if other.me == peer)), timeout_s=30)

    async def tell() -> None:
        while True:
            for peer in peers:
                with contextlib.suppress(NetworkError):  # one who is busy hears it the next time
                    await talk(world, liar, peer, "progress", made(peer), swarm_pb2.Progress)
            await asyncio.sleep(0.1)

    await liar.serve(f"potluck/{world.card.run}/progress", answer)
    task = asyncio.create_task(tell())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    "lie",
    [
        {"tokens": 2**64 - 1, "up_bytes_s": float("nan"), "step_s": float("inf")},
        {"attempt": 2**32 - 1},
        {"round": 2**32 - 1, "base": "f" * 64},
        {"round": 0, "base": ""},
        {"round": 2, "base": "f" * 64},
        {"leaving": True},
        {"addresses": ["/ip4/127.0.0.1/tcp/9/p2p/x"] * 100, "base": "x" * 9000},
    ],
    ids=["numbers", "attempt", "far ahead", "nowhere", "one ahead", "leaving", "long"],
)
def test_lies_in_progress_do_not_stop_the_others(tmp_path: Path, lie: dict[str, Any]) -> None:
    world = small(tmp_path, round_tokens=800)

    async def main() -> None:
        async with world.peers(2) as peers, world.node(HOSTILE, *(peer.node for peer in peers)) as liar:
            telling = lying(world, liar, peers, lambda peer: progress(peer, **lie))
            async with telling:
                await until(lambda: all(peer.rounds.book.get(liar.peer_id) for peer in peers), what="the lie")
                await agreed(peers, max(peer.round for peer in peers) + 3)

    run(main())


def test_a_head_that_never_comes_holds_nobody_up(tmp_path: Path) -> None:
    """A member that says it is a round ahead, and then hands over its head for ever."""
    world = small(tmp_path, round_tokens=800)

    async def main() -> None:
        async with world.peers(2) as peers, world.node(HOSTILE, *(peer.node for peer in peers)) as liar:
            asked = set()

            async def slow(peer: str, reader: Any, writer: Any) -> None:
                asked.add(peer)
                await reader.read()
                await asyncio.sleep(600)

            await liar.serve(f"potluck/{world.card.run}/head", slow)

            def lie(peer: Peer) -> swarm_pb2.Progress:
                return progress(peer, round=peer.round + 2, base="f" * 64)

            async with lying(world, liar, peers, lie):
                await until(lambda: len(asked) == 2, what="both to ask for the head")
                await agreed(peers, max(peer.round for peer in peers) + 3)

    run(main())


def forged_head(world: World, head: Head, value: float) -> swarm_pb2.HeadReply:
    """A state of a liar's own, with an agreement that only the liar has signed."""
    liar = world.identity(HOSTILE)
    encoded = EncodedUpdate.encode(torch.full((world.values,), value), world.spec.sync.wire)
    made = world.claim(HOSTILE, encoded, round=head.round + 1, base=head.digest, tokens=2**20, batches=2**20)
    state = outer_step(world.spec, head.state, encoded.decode())
    signed = made.sign(liar)
    group = group_digest([signed])
    vote = Vote(run=world.card.run, round=made.round, attempt=0, group=group, base=made.base, state=state.digest)
    agreement = Agreement(
        claims=(signed,),
        votes=(vote.sign(liar),),
        counts=Counts(growth_capped({liar.peer_id: made.worth}, head.weights)),
        certificates={liar.peer_id: world.certificate(HOSTILE)},
    )
    return swarm_pb2.HeadReply(
        certificate=world.certificate(HOSTILE),
        round=made.round,
        state=state.digest,
        agreement=agreement.to_bytes(),
        manifest=state.manifest().to_bytes(),
    )


@pytest.mark.parametrize("said", ["its own state", "the state of the others"])
def test_a_state_that_only_a_liar_signed_is_not_taken(tmp_path: Path, said: str) -> None:
    """The liar may even say that it stands where many stand, and then offer another state."""
    world = small(tmp_path, round_tokens=800)

    async def main() -> None:
        async with world.peers(2) as peers, world.node(HOSTILE, *(peer.node for peer in peers)) as liar:
            await agreed(peers, 1)
            at = await standstill(peers)
            reply = forged_head(world, peers[0].rounds.head, 9.0)
            asked = []

            async def answer(peer: str, reader: Any, writer: Any) -> None:
                request = await frames.receive(reader, swarm_pb2.HeadRequest, timeout_s=30)
                asked.append(request)
                await frames.send(writer, reply, timeout_s=30)

            await liar.serve(f"potluck/{world.card.run}/head", answer)
            base = reply.state if said == "its own state" else "e" * 64

            def lie(peer: Peer) -> swarm_pb2.Progress:
                return progress(peer, round=at + 2, base=base)

            async with lying(world, liar, peers, lie):
                await until(lambda: asked, what="somebody to ask the liar")
                await asyncio.sleep(1.0)
                assert (await peers[0].rounds.copies()).is_newest, "whoever leaves hands on what it has"
            assert {peer.round for peer in peers} == {at}
            assert reply.state not in {peer.rounds.head.digest for peer in peers}

    run(main())


def test_a_late_joiner_takes_no_other_state_than_the_one_its_source_said_it_stands_on(tmp_path: Path) -> None:
    """Many stand on a state; a liar says so too, and then hands over one that only it has signed."""
    world = small(tmp_path, round_tokens=800)

    async def main() -> None:
        async with world.peers(2) as peers, world.node(HOSTILE, *(peer.node for peer in peers)) as liar:
            await agreed(peers, 2)
            await standstill(peers)
            head = peers[0].rounds.head
            forged, asked = forged_head(world, head, 9.0), []

            async def answer(peer: str, reader: Any, writer: Any) -> None:
                asked.append(await frames.receive(reader, swarm_pb2.HeadRequest, timeout_s=30))
                await frames.send(writer, forged, timeout_s=30)

            await liar.serve(f"potluck/{world.card.run}/head", answer)
            async with world.peer(2, train=False) as late:
                await meet(liar, late.node)
                everyone = [late, *peers]
                async with lying(world, liar, everyone, lambda peer: progress(peers[0])):
                    await until(lambda: late.rounds.book.get(liar.peer_id))
                    await acquaint(everyone)
                    await until(lambda: late.rounds.head.digest == head.digest, what="the honest state")
                    assert {late_head.digest for late_head in late.heads} == {head.digest}

    run(main())


def test_a_proposal_that_would_use_up_the_attempts_is_refused(tmp_path: Path) -> None:
    world = small(tmp_path, round_tokens=10**9)
    world.named = world.name(0, HOSTILE)

    async def main() -> None:
        async with world.peers(1) as (peer,), world.node(HOSTILE, peer.node) as liar:
            for attempt in (FREE_ATTEMPTS * 100, 10**6, 2**32 - 1):
                reply = await propose(world, liar, peer, attempt)
                assert not reply.accepted and "so early" in reply.reason
            assert peer.box.attempt == -1

    run(main())


async def standstill(peers: list[Peer]) -> int:
    """Have all work so little that there is no further round; returns the last one's number."""
    enough = peers[0].tokens
    for peer in peers:
        peer.tokens = 1

    def still() -> bool:
        works = [peer.rounds.own for peer in peers]
        if any(own.ready is not None or own.close.is_set() for own in works):
            for own in works:
                own.progress.tokens = enough  # if the attempt comes to nothing, there must be another
            return False
        for own in works:  # nor may one of them wait for ever with the work that it began before
            own.progress.tokens = min(own.progress.tokens, 1)
        told = [view.tokens for peer in peers for view in peer.rounds.company.others()]
        idle = all(own.progress.tokens == 1 for own in works) and all(tokens <= 1 for tokens in told)
        return idle and len({peer.rounds.head.digest for peer in peers}) == 1

    await until(still, what="the rounds to stop")
    return peers[0].round


def test_a_leader_that_proposes_and_sends_no_group_is_not_followed_for_long(tmp_path: Path) -> None:
    world = small(tmp_path, round_tokens=800)
    world.named = world.name(0, 1, HOSTILE)

    async def main() -> None:
        async with world.peers(2, tokens=1) as peers, world.node(HOSTILE, *(peer.node for peer in peers)) as liar:
            refused: list[str] = []

            async def harass(peer: Peer) -> None:
                while True:
                    attempt = peer.box.next_attempt(peer.round + 1)
                    with contextlib.suppress(NetworkError):
                        refused.append((await propose(world, liar, peer, attempt)).reason)
                    await asyncio.sleep(0.1)

            async with lying(world, liar, peers, progress):
                tasks = [asyncio.create_task(harass(peer)) for peer in peers]
                await until(lambda: any("came no group" in reason for reason in refused), what="a refusal")
                await until(lambda: sum("came no group" in reason for reason in refused) > 5)
                for peer in peers:  # enough for a round from now on
                    peer.tokens = peer.rounds.own.progress.tokens = 400
                await agreed(peers, max(peer.round for peer in peers) + 2)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    run(main())


async def bound(world: World, node: Any, peer: Peer) -> swarm_pb2.ProposalReply:
    """Have a member promise attempt 0 to a hostile leader, and hand over its claim."""
    reply = await propose(world, node, peer)
    assert reply.accepted, reply.reason
    return reply


def as_member(reply: swarm_pb2.ProposalReply) -> swarm_pb2.GroupMember:
    return swarm_pb2.GroupMember(certificate=reply.certificate, claim=reply.claim, can_reduce=True, share=1)


def own_member(world: World, index: int = HOSTILE, **changes: Any) -> swarm_pb2.GroupMember:
    encoded = EncodedUpdate.encode(world.update(index), world.spec.sync.wire)
    made = world.claim(index, encoded, **changes).sign(world.identity(index))
    return swarm_pb2.GroupMember(certificate=world.certificate(index), claim=made.data, can_reduce=True, share=1)


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        ("without my claim", "does not carry my claim"),
        ("my claim changed", "signature"),
        ("claim without certificate", "certificate"),
        ("another round", "another attempt"),
        ("another attempt", "another attempt"),
        ("member twice", "each once"),
        ("a state to complete in the first attempt", "nothing to complete"),
        ("without promises", "0 peers answered"),
        ("the leader's own promise alone", "1 peers answered"),
        ("a promise to another leader", "another attempt or leader"),
        ("my promise twice", "is shown twice"),
        ("a vote on a group that is not shown", "are not shown"),
        ("passes over what I voted for", "passes over state"),
        ("an invented state to complete", "nobody can have committed"),
    ],
)
def test_a_forged_group_is_refused_and_nothing_is_voted_for(tmp_path: Path, attack: str, reason: str) -> None:
    world = small(tmp_path, round_tokens=10**9)
    world.named = world.name(0, 1, HOSTILE)

    async def main() -> None:
        async with world.peers(1) as (victim,), world.node(HOSTILE, victim.node) as liar:
            mine = as_member(await bound(world, liar, victim))
            theirs = own_member(world)
            message = swarm_pb2.Group(
                round=1, base=world.genesis.digest, attempt=0, members=[theirs, mine], beginners=world.named
            )
            if attack == "without my claim":
                del message.members[1]
            elif attack == "my claim changed":
                other = own_member(world, 0, tokens=1)
                message.members[1].claim = mine.claim[:-40] + other.claim[-40:]
            elif attack == "claim without certificate":
                message.members[0].certificate = world.certificate(0)
            elif attack == "another round":
                message.round = 2
            elif attack == "another attempt":
                message.attempt = 1
            elif attack == "member twice":
                message.members.append(theirs)
            elif attack == "a state to complete in the first attempt":
                message.complete = "d" * 64
            else:
                later_attempt(world, victim, message, attack)
            reply = await talk(world, liar, victim, "group", message, swarm_pb2.GroupReply)
            assert not reply.accepted
            assert reason in reply.reason, reply.reason
            assert len(victim.box.ballots) <= 1 and victim.round == 0, "what it voted for before, and nothing else"

    run(main())


def later_attempt(world: World, victim: Peer, message: swarm_pb2.Group, attack: str) -> None:
    """What a leader may not show of an attempt that is not the first."""
    liar = world.identity(HOSTILE)
    voted_for = Cast(attempt=0, group="a" * 64, state="b" * 64)

    def promise(by: PeerIdentity, *cast: Cast, **changes: Any) -> bytes:
        fields = {"run": world.card.run, "round": 1, "base": world.genesis.digest, "attempt": 1, "leader": liar.peer_id}
        return Promise(**(fields | changes), cast=cast).sign(by).data

    victim.box.promise(1, 1, liar.peer_id)
    message.attempt = 1
    mine, own = promise(world.identity(0)), promise(liar)
    if attack == "the leader's own promise alone":
        message.promises.append(own)
    elif attack == "a promise to another leader":
        message.promises.extend([promise(world.identity(0), leader=victim.me), own])
    elif attack == "my promise twice":
        message.promises.extend([mine, mine, own])
    elif attack == "a vote on a group that is not shown":
        message.promises.extend([promise(world.identity(0), voted_for), own])
    elif attack == "passes over what I voted for":
        absent = own_member(world, 1)  # may have voted for it, too
        before = [own_member(world, tokens=1), message.members[1], absent]
        opened = [world.rules().check_member(item.claim, item.certificate, True) for item in before]
        group = Group.build(world.rules(named=world.named), 0, liar.peer_id, opened)
        cast = Cast(attempt=0, group=group.digest, state="b" * 64)
        message.promises.extend([promise(world.identity(0), cast), own])
        message.voted.append(group.bare())
    elif attack == "an invented state to complete":
        message.promises.extend([mine, own])
        message.complete = "d" * 64


def test_votes_of_another_round_or_another_member_count_for_nothing(tmp_path: Path) -> None:
    world = small(tmp_path, round_tokens=10**9)

    async def main() -> None:
        async with world.peers(1) as (peer,), world.node(HOSTILE, peer.node) as liar:
            fields = {"run": world.card.run, "round": 1, "attempt": 0, "group": "a" * 64, "base": world.genesis.digest}
            vote = Vote(**(fields | {"state": "b" * 64}))
            stolen = vote.sign(world.identity(3)).data
            replayed = vote.model_copy(update={"round": 2}).sign(world.identity(HOSTILE)).data
            elsewhere = vote.model_copy(update={"base": "c" * 64}).sign(world.identity(HOSTILE)).data
            other_run = vote.model_copy(update={"run": "d" * 64}).sign(world.identity(HOSTILE)).data
            for data in (stolen, replayed, elsewhere, other_run, b"", b"{}", b"\xff" * 100):
                await talk(world, liar, peer, "vote", swarm_pb2.VoteMessage(vote=data), swarm_pb2.VoteReply)
            assert peer.rounds.group.voting._votes == {}

    run(main())


def test_a_claim_of_an_earlier_round_is_not_taken_for_this_one(tmp_path: Path) -> None:
    world = small(tmp_path, round_tokens=800)

    async def main() -> None:
        async with world.peers(2) as peers:
            await agreed(peers, 1)
            agreement = next(head.agreement for head in peers[0].heads if head.round == 1)
            assert agreement is not None
            old = agreement.claims[0]
            with pytest.raises(Exception, match="another run, round or base"):
                peers[0].rounds._rules().check_member(old.data, world.certificate(0), True)

    run(main())


def test_an_abort_from_outside_the_group_is_ignored(tmp_path: Path) -> None:
    world = World(tmp_path, round_tokens=800)
    gave_up: list[str] = []

    class Slow(Mute):
        def _start_group(self, group: Group) -> None:
            super()._start_group(group)
            if self.group.reduction is not None:
                fail = self.group.reduction.fail

                def noted(reason: str, culprit: str = "") -> None:
                    gave_up.append(reason)
                    fail(reason, culprit)

                self.group.reduction.fail = noted  # type: ignore[method-assign]

    async def main() -> None:
        options = {"engine": Slow, "limits": Limits(silence_s=4.0, total_s=10.0)}
        async with world.peers(2, **options) as peers, world.node(HOSTILE, *(peer.node for peer in peers)) as liar:
            reduction = await until(lambda: peers[0].rounds.group.reduction, what="a group")
            group = reduction.group
            abort = swarm_pb2.Abort(
                group=group.digest, round=1, attempt=group.attempt, reason="because", culprit=peers[1].me
            )
            await talk(world, liar, peers[0], "abort", abort, swarm_pb2.Ack)
            await asyncio.sleep(0.2)
            assert not any("because" in reason for reason in gave_up)
            assert peers[1].me not in peers[0].rounds._standing.spoilt()
            part = swarm_pb2.Part(group=group.digest, attempt=group.attempt)
            with pytest.raises(NetworkError):
                await talk(world, liar, peers[0], "reduce", part, swarm_pb2.Part)

    run(main())


def test_a_commit_that_cannot_be_kept_does_not_stop_the_member(tmp_path: Path) -> None:
    world = small(tmp_path, round_tokens=100)
    broken = [True]

    async def main() -> None:
        async with world.peer(0) as peer:

            async def full_disk(data: Any, report: Any) -> None:
                if broken.pop() if broken else False:
                    raise OSError("no space left on device")
                await peer._committed(data, report)

            peer.rounds._on_commit = full_disk
            await until(lambda: peer.round >= 3, what="rounds after the failure")

    run(main())


def test_a_promise_that_cannot_be_kept_does_not_stop_the_clock(tmp_path: Path) -> None:
    world = small(tmp_path, round_tokens=100)
    failures = [OSError("no space left on device")] * 3

    def save(data: bytes) -> None:
        if failures:
            raise failures.pop()

    async def main() -> None:
        async with world.peer(0, box=BallotBox(save=save)) as peer:
            await until(lambda: peer.round >= 2, what="rounds after the failures")
            assert not failures

    run(main())
