"""A hostile leader's group, as its victim sees it: refused, and nothing is voted for. One core in memory.

What the victim sees is opened already: signatures and certificates are in `test_swarm_group`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from peer.round import actions as a
from peer.round import events as e
from peer.round.box import Ballot
from peer.round.group import Group
from peer.round.state import Bound, Voting
from protocol.signed import Signed
from protocol.statements import Cast, Farewell, Promise
from tests.core_kit import Lone, of, signed

STATE = "b" * 64


def victim(attempt: int = 0) -> Lone:
    """One that has promised an attempt to h, and handed over; x is silent."""
    lone = Lone("me", "hx", round_seconds=1000.0)
    lone.hears("hx")
    lone.works()
    assert of(a.Join, lone.step(lone.proposed("h", attempt)))
    return lone


def promise(lone: Lone, by: str, *cast: Ballot, leader: str = "h", attempt: int = 1) -> Signed[Promise]:
    where = {"run": lone.spec.digest, "round": lone.state.round, "base": lone.state.last.state}
    votes = tuple(Cast(attempt=item.attempt, group=item.group, state=item.state) for item in cast)
    return signed(by, Promise(**where, attempt=attempt, leader=leader, cast=votes))


def refused(lone: Lone, group: Group) -> str:
    """Why the victim does not take it."""
    (answer,) = lone.step(e.Grouped("group", "h", group))
    assert isinstance(answer, a.Decline)
    assert isinstance(lone.state.phase, Bound) and not lone.state.box.ballots
    return answer.why


FIRST: dict[str, tuple[Callable[[Lone, Group], Group], str]] = {
    "without my claim": (lambda lone, good: replace(good, members=good.members[:1]), "does not carry my claim"),
    "another claim of mine": (
        lambda lone, good: replace(good, members=(good.members[0], lone.member("me"))),
        "does not carry my claim",
    ),
    "another round": (lambda lone, good: replace(good, round=3), "another attempt"),
    "another attempt": (lambda lone, good: replace(good, attempt=1), "another attempt"),
    "another base": (lambda lone, good: replace(good, base="c" * 64), "from our base"),
    "another's group": (lambda lone, good: replace(good, leader="x"), "only its leader"),
    "member twice": (lambda lone, good: replace(good, members=(*good.members, good.members[0])), "each once"),
    "a state to complete in the first attempt": (
        lambda lone, good: replace(good, complete="d" * 64),
        "nothing to complete",
    ),
}


@pytest.mark.parametrize("attack", FIRST)
def test_a_forged_group_is_refused_and_nothing_is_voted_for(attack: str) -> None:
    lone, (forge, reason) = victim(), FIRST[attack]
    good = lone.group("h", lone.member("h"), lone.mine())
    assert reason in refused(lone, forge(lone, good))
    assert of(a.Accept, lone.step(e.Grouped("group", "h", good))), "the good one is taken all the same"


LATER: dict[str, tuple[Callable[[Lone, Group], Group], str]] = {
    "without promises": (lambda lone, good: good, "0 peers answered"),
    "the leader's own promise alone": (
        lambda lone, good: replace(good, promises=(promise(lone, "h"),)),
        "1 peers answered",
    ),
    "a promise to another leader": (
        lambda lone, good: replace(good, promises=(promise(lone, "me", leader="me"), promise(lone, "h"))),
        "another attempt or leader",
    ),
    "a promise in another attempt": (
        lambda lone, good: replace(good, promises=(promise(lone, "me", attempt=0), promise(lone, "h"))),
        "another attempt or leader",
    ),
    "my promise twice": (
        lambda lone, good: replace(good, promises=(promise(lone, "me"), promise(lone, "me"), promise(lone, "h"))),
        "is shown twice",
    ),
    "a vote on a group that is not shown": (
        lambda lone, good: replace(
            good, promises=(promise(lone, "me", Ballot(0, "a" * 64, STATE)), promise(lone, "h"))
        ),
        "are not shown",
    ),
    "an invented state to complete": (
        lambda lone, good: replace(good, promises=(promise(lone, "me"), promise(lone, "h")), complete="d" * 64),
        "nobody can have committed",
    ),
}


@pytest.mark.parametrize("attack", LATER)
def test_a_later_attempt_shows_what_led_to_it(attack: str) -> None:
    lone, (forge, reason) = victim(attempt=1), LATER[attack]
    good = lone.group("h", lone.member("h"), lone.mine(), attempt=1)
    assert reason in refused(lone, forge(lone, good))
    shown = replace(good, promises=(promise(lone, "me"), promise(lone, "h")))
    assert of(a.Accept, lone.step(e.Grouped("group", "h", shown)))


def after_a_vote() -> tuple[Lone, Group]:
    """The victim has voted with x and h, and joined h's next attempt; x may have voted, too."""
    lone = victim()
    before = lone.group("h", lone.member("h"), lone.mine(), lone.member("x"))
    (start,) = of(a.AllReduce, lone.step(e.Grouped("group", "h", before)))
    lone.step(e.Averaged(start.group.digest, 0, STATE, 0.1))
    assert isinstance(lone.state.phase, Voting)
    lone.step(e.GaveUp("h", before.digest, 0, ""), e.GaveUp("x", before.digest, 0, ""))
    lone.hears("hx")
    (join,) = of(a.Join, lone.step(lone.proposed("h", 1)))
    assert join.vote.value.state == STATE
    return lone, start.group


def test_a_leader_that_passes_over_what_i_voted_for_is_refused() -> None:
    lone, before = after_a_vote()
    mine = promise(lone, "me", Ballot(0, before.digest, STATE))
    group = lone.group("h", lone.member("h"), lone.mine(), attempt=1, promises=(mine, promise(lone, "h")))
    shown = replace(group, voted=(before.bare(),))
    (answer,) = lone.step(e.Grouped("group", "h", shown))
    assert isinstance(answer, a.Decline) and "passes over state" in answer.why
    assert [ballot.attempt for ballot in lone.state.box.ballots] == [0], "what it voted for before, and nothing else"
    completing = replace(
        before.completing(1, "h", STATE, ()), promises=(mine, promise(lone, "h")), voted=(before.bare(),)
    )
    assert of(a.Accept, lone.step(e.Grouped("group", "h", completing)))


def test_who_comes_back_joins_no_group_that_does_not_know_of_its_farewell() -> None:
    lone = Lone("me", "hx", round_seconds=1000.0)
    said = signed("me", Farewell(run=lone.spec.digest, round=2, successor="h", attempt=0))
    back = Lone("me", "hx", box=lone.state.box.say_farewell(said), round_seconds=1000.0)
    back.hears("hx")
    back.works()
    (join,) = of(a.Join, back.step(back.proposed("h")))
    assert join.farewells == (said,), "it tells of it with every promise"
    group = back.group("h", back.member("h"), back.mine())
    assert "does not carry my farewell" in refused(back, group)
