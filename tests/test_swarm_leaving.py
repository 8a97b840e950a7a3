"""Leaving: who goes hands its weight over, tells of it for good, and costs the others no round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peer.round_rules import Ballot, BallotBox, Bound

from peer.round.farewells import Farewells
from peer.round.group import Group
from peer.training.codecs.codec import EncodedUpdate
from protocol import swarm_pb2
from protocol.errors import RefusedError, VerificationError
from protocol.keys import PeerIdentity
from protocol.majority import acceptors_after, has_majority
from protocol.statements import Farewell
from tests.kit.builders import fixed_ed25519
from tests.swarm_kit import World, agreed, run, until

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

RUN = "a" * 64
NAMES = "abcde"


def peer(index: int) -> PeerIdentity:
    return PeerIdentity(fixed_ed25519(f"swarm peer {index}"))


def said(index: int, successor: str, *, round: int = 1, attempt: int = 0, run: str = RUN) -> bytes:
    return Farewell(run=run, round=round, successor=successor, attempt=attempt).sign(peer(index)).data


# ---- who speaks for whom ------------------------------------------------------------------------------------------------


weights_of = st.dictionaries(st.sampled_from(NAMES), st.integers(1, 10), min_size=1)
farewells_of = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(NAMES + "xyz"), max_size=5)


@given(weights_of, farewells_of)
def test_no_weight_is_lost_or_made_by_farewells(weights: dict[str, int], farewells: dict[str, str]) -> None:
    assert sum(acceptors_after(weights, farewells).values()) == 2 * sum(weights.values()) + 1


@given(weights_of, st.sets(st.sampled_from(NAMES)))
def test_without_farewells_majorities_are_what_they_were(weights: dict[str, int], voters: set[str]) -> None:
    assert has_majority(voters, acceptors_after(weights, {})) == has_majority(voters, weights)


@given(weights_of, farewells_of, st.sets(st.sampled_from(NAMES + "xyz")))
def test_two_sides_never_both_have_a_majority(
    weights: dict[str, int], farewells: dict[str, str], voters: set[str]
) -> None:
    counted = acceptors_after(weights, farewells)
    assert has_majority(voters, counted) != has_majority(set(counted) - voters, counted)


def test_chains_are_followed_and_members_of_a_circle_speak_for_themselves() -> None:
    assert set(acceptors_after({"a": 5}, {"a": "b", "b": "c"})) == {"c"}
    assert set(acceptors_after({"a": 5, "b": 1}, {"a": "b", "b": "a"})) == {"a", "b"}


# ---- the leaver's box ---------------------------------------------------------------------------------------------------


def test_who_has_voted_cannot_hand_its_weight_over() -> None:
    box = BallotBox()
    box.promise(1, 0, "a")
    box.vote(1, Ballot(0, "g", "s"))
    with pytest.raises(Bound):
        box.say_farewell(1, lambda attempt: b"")
    box.say_farewell(2, lambda attempt: b"next")
    assert box.farewells == {2: (0, b"next")}


def test_after_a_farewell_no_vote_is_given_in_an_attempt_that_it_does_not_count_in() -> None:
    saved: list[bytes] = []
    box = BallotBox(save=saved.append)
    box.promise(1, 4, "a")
    box.say_farewell(1, lambda attempt: b"from %d" % attempt)
    again = BallotBox()
    again.restore(saved[-1])
    assert again.farewells == {1: (5, b"from 5")}
    for each in (box, again):
        with pytest.raises(Bound, match="handed"):
            each.vote(1, Ballot(4, "g", "s"))
    again.promise(1, 5, "a")
    again.vote(1, Ballot(5, "g", "s"))


def test_a_farewell_is_said_once_a_round_and_saved_before_it_is_told() -> None:
    box = BallotBox()
    box.say_farewell(3, lambda attempt: b"one")
    with pytest.raises(Bound):
        box.say_farewell(3, lambda attempt: b"two")

    def full_disk(data: bytes) -> None:
        raise OSError("no space left on device")

    with pytest.raises(OSError):
        BallotBox(save=full_disk).say_farewell(3, lambda attempt: b"one")


# ---- what others believe ------------------------------------------------------------------------------------------------


def test_a_farewell_that_somebody_else_signed_or_for_another_round_is_refused() -> None:
    good = said(0, "x")
    assert set(Farewells.open([good], RUN, 1).by_peer) == {peer(0).peer_id}
    with pytest.raises(RefusedError):
        Farewells.open([good[:-30] + said(1, "x")[-30:]], RUN, 1)
    for bad in (said(0, "x", round=2), said(0, "x", run="b" * 64)):
        with pytest.raises(VerificationError, match="farewell"):
            Farewells.open([bad], RUN, 1)


def test_a_group_does_not_carry_a_farewell_that_counts_later(tmp_path: Path) -> None:
    world = World(tmp_path, values=1000)
    encoded = EncodedUpdate.encode(world.update(0), "fp32")
    envelope = world.claim(0, encoded).sign(world.identity(0))
    member = world.rules().check_member(envelope.data, world.certificate(0), True)
    message = Group.build(world.rules(), 2, "leader", [member]).to_message("")
    message.farewells.append(said(0, "x", attempt=2, run=world.card.run))
    assert Group.from_message(message, "leader", world.rules()).farewells.from_attempt == 2
    message.attempt = 1
    with pytest.raises(VerificationError, match="from attempt 2"):
        Group.from_message(message, "leader", world.rules())


def test_the_heaviest_member_leaves_and_the_others_go_on_at_once(tmp_path: Path) -> None:
    world = World(tmp_path, values=1000, round_tokens=None, round_seconds=1.0)

    async def main() -> None:
        async with world.peers(2, tokens=300) as (one, two), world.peer(2, one, two, tokens=2000) as heavy:
            await until(
                lambda: len(one.rounds.head.weights) == 3 and one.rounds.head.weights[heavy.me] > 600,
                what="the heavy one to count most",
            )
            await heavy.stop()
            at = one.round
            await agreed([one, two], at + 2)
            left = [round for round in heavy.box.farewells if round >= heavy.rounds.position.round]
            assert left, "it has handed its weight over"

    run(main())


def test_who_comes_back_joins_no_group_that_does_not_know_of_its_farewell(tmp_path: Path) -> None:
    world = World(tmp_path, values=1000, round_tokens=10**9)
    world.named = world.name(0, 9)

    async def main() -> None:
        async with world.peers(1) as (back,), world.node(9, back.node) as leader:
            await until(lambda: back.rounds.own.progress.tokens)
            back.box.say_farewell(1, lambda attempt: said(0, "x", run=world.card.run))
            name = f"potluck/{world.card.run}"
            proposal = swarm_pb2.Proposal(
                certificate=world.certificate(9), round=1, base=world.genesis.digest, attempt=0, timeout_s=60
            )
            reply = await leader.call(back.me, f"{name}/propose", proposal, swarm_pb2.ProposalReply, timeout_s=60)
            assert reply.accepted, reply.reason
            member = swarm_pb2.GroupMember(certificate=reply.certificate, claim=reply.claim, can_reduce=True, share=1)
            group = swarm_pb2.Group(
                certificate=world.certificate(9), round=1, base=world.genesis.digest, attempt=0, members=[member],
                beginners=world.named,
            )  # fmt: skip
            answer: Any = await leader.call(back.me, f"{name}/group", group, swarm_pb2.GroupReply, timeout_s=60)
            assert not answer.accepted and "farewell" in answer.reason

    run(main())
