"""Leaving: who goes hands its weight over, tells of it for good, and costs the others no round."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.net import wire
from peer.net.box_bytes import from_bytes, to_bytes
from peer.net.opening import Opening
from peer.round import actions as a
from peer.round import events as e
from peer.round.box import AlreadyPromised, Ballot, Box
from peer.round.farewells import Farewells
from peer.round.group import Group, Member
from peer.training.codecs.codec import EncodedUpdate
from protocol import swarm_pb2
from protocol.errors import FormatError, RefusedError, VerificationError
from protocol.keys import PeerIdentity
from protocol.majority import acceptors_after, has_majority
from protocol.signed import Signed
from protocol.statements import Farewell
from tests.core_kit import Lone, of, signed
from tests.kit.builders import fixed_ed25519
from tests.swarm_kit import World, agreed, run, until
from tests.table_kit import Table

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

RUN = "a" * 64
NAMES = "abcde"


def said(index: int, successor: str, *, round: int = 1, attempt: int = 0, run: str = RUN) -> Signed[Farewell]:
    identity = PeerIdentity(fixed_ed25519(f"swarm peer {index}"))
    return Farewell(run=run, round=round, successor=successor, attempt=attempt).sign(identity)


# ---- who speaks for whom ---------------------------------------------------------------------------------------------


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


# ---- the leaver's box ------------------------------------------------------------------------------------------------


def voted(box: Box, ballot: Ballot) -> Box:
    return box.vote(1, ballot, Group(1, "b", ballot.attempt, "a", ()))


def test_who_has_voted_cannot_hand_its_weight_over() -> None:
    box = voted(Box().promise(1, 0, "a"), Ballot(0, "g", "s"))
    with pytest.raises(AlreadyPromised):
        box.say_farewell(said(0, "x", attempt=1))
    next_round = said(0, "x", round=2)
    assert box.say_farewell(next_round).farewells == {2: next_round}


def test_after_a_farewell_no_vote_is_given_in_an_attempt_that_it_does_not_count_in() -> None:
    from_5 = said(0, "x", attempt=5)
    box = Box().promise(1, 4, "a").say_farewell(from_5)
    again = from_bytes(to_bytes(box), Opening(RUN, fixed_ed25519("membership").public_key()))
    assert again.farewells == {1: from_5}
    for each in (box, again):
        with pytest.raises(AlreadyPromised, match="handed"):
            voted(each, Ballot(4, "g", "s"))
    voted(again.promise(1, 5, "a"), Ballot(5, "g", "s"))


def test_a_farewell_is_said_once_a_round() -> None:
    box = Box().say_farewell(said(0, "x", round=3))
    with pytest.raises(AlreadyPromised):
        box.say_farewell(said(0, "y", round=3))


@pytest.mark.parametrize("disk", ["good", "full"])
def test_a_farewell_is_saved_before_it_is_told(disk: str) -> None:
    lone = Lone("me", "bc", round_seconds=1000.0)
    saved: list[Box] = []

    def save(box: Box) -> None:
        assert not lone.state.farewells, "nobody hears of it before"
        if disk == "full":
            raise OSError("no space left on device")
        saved.append(box)

    lone.saves = save
    lone.hears("bc")
    done = lone.step(e.Leave(hands_over=True))
    assert of(a.TellEveryone, done) and of(a.Gone, done)
    assert set(lone.state.farewells) == (set() if disk == "full" else {2, 3})
    assert len(saved) == (0 if disk == "full" else 2)


# ---- what others believe ---------------------------------------------------------------------------------------------


def test_a_farewell_that_somebody_else_signed_is_refused(tmp_path: Path) -> None:
    opening = Opening(RUN, World(tmp_path).card.member_key)
    good, other = said(0, "x").data, said(1, "x").data
    assert wire.farewells([good], opening) == [said(0, "x")]
    with pytest.raises((RefusedError, FormatError)):
        wire.farewells([good[:-30] + other[-30:]], opening)
    with pytest.raises(FormatError, match="at most"):
        wire.farewells([good] * 257, opening)


def a_group(world: World, attempt: int) -> swarm_pb2.Group:
    claim = world.claim(0, EncodedUpdate.encode(world.update(0), "fp32")).sign(world.identity(0))
    member = Member(claim.by, claim, world.certificate(0), True)
    group = Group(1, world.genesis.digest, attempt, "leader", (member,), word=world.named)
    return wire.group_message(group, "")


@pytest.mark.parametrize("changes", [{"round": 2}, {"run": "b" * 64}])
def test_a_group_with_a_farewell_for_another_round_or_run_is_refused(tmp_path: Path, changes: dict[str, str]) -> None:
    world = World(tmp_path, values=1000)
    message = a_group(world, 0)
    message.farewells.append(said(0, "x", **({"run": world.card.run} | changes)).data)  # type: ignore[arg-type]
    with pytest.raises(VerificationError, match="a farewell for round"):
        wire.group(message, "leader", Opening(world.card.run, world.card.member_key))


def test_a_group_does_not_carry_a_farewell_that_counts_later(tmp_path: Path) -> None:
    world = World(tmp_path, values=1000)
    message, opening = a_group(world, 2), Opening(world.card.run, world.card.member_key)
    message.farewells.append(said(0, "x", attempt=2, run=world.card.run).data)
    group = wire.group(message, "leader", opening).weighed(world.terms(word=world.named))
    assert group.farewells.from_attempt == 2
    with pytest.raises(VerificationError, match="from attempt 2"):
        replace(group, attempt=1).weighed(world.terms(word=world.named))


def test_farewells_of_strangers_and_for_other_rounds_are_not_kept() -> None:
    lone = Lone("me", "bc", round_seconds=1000.0)

    def farewell(by: str, round: int = 2, run: str = "") -> Signed[Farewell]:
        return signed(by, Farewell(run=run or lone.spec.digest, round=round, successor="me", attempt=0))

    strange = [farewell("stranger"), farewell("b", round=1), farewell("b", round=4), farewell("b", run="d" * 64)]
    lone.step(e.Heard("c", e.Said(2, lone.state.last.state), strange))
    assert not lone.state.farewells
    lone.step(e.Heard("c", e.Said(2, lone.state.last.state), [farewell("b")]))
    assert isinstance(lone.state.farewells_now(), Farewells) and set(lone.state.farewells_now().by_peer) == {"b"}


# ---- who stays -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaves", [True, False])
def test_the_heaviest_member_leaves_and_the_others_go_on_at_once(leaves: bool) -> None:
    """Without a word they could not go on at all: it has most of the weight."""
    table = Table("abh", weights={"a": 100, "b": 100, "h": 900})
    table["h"].tokens = 900
    table.agree(2)
    if leaves:
        table["h"].leave()
        table.agree(table["a"].round + 2, "ab", within_s=5)
        assert table["h"].core is None and table["h"].box.farewells, "it has handed its weight over"
    else:
        table["h"].kill()
        at = table["a"].round
        table.run(60)
        assert table["a"].round <= at + 1


def test_a_driver_that_leaves_hands_its_weight_over_and_tells_the_others(tmp_path: Path) -> None:
    world = World(tmp_path, values=1000, round_tokens=None, round_seconds=0.5)

    async def main() -> None:
        async with world.peers(2, tokens=300) as (one, two), world.peer(2, one, two, tokens=2000) as heavy:
            await until(
                lambda: one.driver.head.weights.get(heavy.me, 0) > 600,
                what="the heavy one to count most",
            )
            await heavy.stop()
            at = one.round
            await agreed([one, two], at + 2)
            saved = from_bytes(heavy.saved[-1], Opening(world.card.run, world.card.member_key))
            assert saved.farewells, "it has handed its weight over"

    run(main())


def test_leaving_ends_although_nobody_listens_and_leaving_again_is_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, values=1000, round_tokens=None, round_seconds=0.5)

    async def main() -> None:
        async with world.peers(2) as (one, two):
            await agreed([one, two], 1)
            await two.vanish()
            await one.driver.leave()
            await asyncio.wait_for(one.driver.leave(), 5)

    run(main(), timeout_s=120)
