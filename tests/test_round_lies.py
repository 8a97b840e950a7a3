"""Members that lie of where they stand, show heads of their own, or vote for others: nobody is held up or misled.
Cores in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from peer.net.wire import said
from peer.round import actions as a
from peer.round import events as e
from peer.round import views
from peer.round.attempt import FREE_ATTEMPTS
from protocol import swarm_pb2
from protocol.agreement import Agreement, group_digest
from protocol.errors import VerificationError
from protocol.statements import MAX_ATTEMPT, MAX_TOKENS, Vote
from protocol.succession import Last, counted
from tests.core_kit import Lone, claim_of, of, signed
from tests.table_kit import Seat, Table

OWN = "e" * 64  # a state of the liar's own


def liar_at(table: Table, lie: Callable[[Seat], e.Said]) -> Seat:
    """A member that makes no rounds, answers nothing, and tells everybody its lie all the time."""
    liar = table["l"]
    liar.trains, liar.says = False, lambda other, true: lie(other)
    table.loses = lambda sender, to, action: sender == "l"
    if liar.core is None:
        liar.start()
    return liar


def here(seat: Seat, **changes: Any) -> e.Said:
    return replace(views.own_said(seat.state, seat.table.now), **changes)


@pytest.mark.parametrize(
    "lie",
    [
        {"tokens": MAX_TOKENS, "up_bytes_s": 1e11, "step_s": 1e11, "hears": 4096},
        {"attempt": MAX_ATTEMPT},
        {"round": 2**32 - 1, "base": "f" * 64},
        {"round": 0, "base": ""},
        {"round": 2, "base": "f" * 64},
        {"leaving": True},
    ],
    ids=["numbers", "attempt", "far ahead", "nowhere", "one ahead", "leaving"],
)
def test_lies_in_progress_do_not_stop_the_others(lie: dict[str, Any]) -> None:
    table = Table("ab", newcomers="l", start="ab")
    liar_at(table, lambda seat: here(seat, **lie))
    table.agree(8, "ab")


def test_numbers_that_are_none_are_not_taken_from_the_wire() -> None:
    lie = swarm_pb2.Progress(tokens=2**64 - 1, attempt=2**32 - 1, hears=2**32 - 1, base="x" * 9000, reduce_only=True)
    lie.up_bytes_s, lie.step_s, lie.from_you_bytes_s = float("nan"), float("inf"), -1.0
    found = said(lie, reduces=False)
    assert (found.up_bytes_s, found.step_s, found.from_me_bytes_s, found.reduce_only) == (0.0, 0.0, 0.0, False)
    assert found.tokens == 2**53 and found.attempt == MAX_ATTEMPT and found.hears == 4096 and len(found.base) == 64
    assert said(lie, reduces=True).reduce_only


# ---- heads -----------------------------------------------------------------------------------------------------------


def forged(table: Table, seat: Seat) -> Agreement:
    """A round after a member's, with a state of the liar's own, that only the liar has signed."""
    last: Last = seat.state.last
    claim = claim_of("l", table.spec, last.round + 1, last.state, tokens=2**20)
    vote = Vote(
        run=table.spec.digest,
        round=last.round + 1,
        attempt=0,
        group=group_digest([claim]),
        base=last.state,
        state=OWN,
    )
    return Agreement((claim,), (signed("l", vote),), {"l": ""}, counted({"l": claim.value}, last, table.spec))


def test_a_head_that_never_comes_holds_nobody_up() -> None:
    """A member that says it is a round ahead, and then shows its head for ever."""
    table = Table("ab", newcomers="l", start="ab")
    asked: list[int] = []
    liar_at(table, lambda seat: here(seat, round=seat.round + 2, base="f" * 64))
    table["l"].shows = lambda since: asked.append(since)
    table.until(lambda: asked)
    at = table["a"].round
    table.agree(at + 4, "ab", within_s=20)


@pytest.mark.parametrize("says", [OWN, "f" * 64], ids=["its own state", "another state"])
def test_a_state_that_only_a_liar_signed_is_not_taken(says: str) -> None:
    """The liar may even say that it stands where many stand, and then offer another state."""
    table = Table("ab", newcomers="l", start="ab", round_seconds=1000.0)
    asked: list[int] = []

    def shows(since: int) -> list[Agreement]:
        asked.append(since)
        return [forged(table, table["a"])]

    liar = liar_at(table, lambda seat: here(seat, round=3, base=says))
    liar.shows = shows
    liar.held.add(OWN)
    table.run(60)
    assert asked and {table[name].round for name in "ab"} == {1}
    assert not of(a.Fetch, table["a"].done + table["b"].done), "it is not even fetched"


def test_a_late_joiner_takes_no_other_state_than_one_that_the_members_signed() -> None:
    """Many stand on a state; a liar says so too, and then shows one that only it has signed."""
    table = Table("ab", newcomers="ln", start="ab")
    table.agree(3)
    liar, late = liar_at(table, lambda seat: here(table["a"])), table["n"]
    liar.shows = lambda since: [forged(table, table["a"])]
    liar.held.add(OWN)
    late.start()
    table.until(lambda: late.round >= 3)
    assert {done.agreement.state for done in late.commits} <= set(table.states.values()) - {OWN}


# ---- attempts and votes ----------------------------------------------------------------------------------------------


def test_a_proposal_that_would_use_up_the_attempts_is_refused() -> None:
    lone = Lone("me", "hb", round_seconds=1000.0)
    lone.hears("hb")
    lone.works()
    for attempt in (FREE_ATTEMPTS * 100, 10**6, 2**32 - 1):
        (answer,) = lone.step(lone.proposed("h", attempt))
        assert isinstance(answer, a.Decline) and f"expected {FREE_ATTEMPTS} at most" in answer.why
    assert lone.state.box.attempt == -1


def test_votes_of_another_round_or_another_member_count_for_nothing() -> None:
    lone = Lone("me", "hb", round_seconds=1000.0)
    fields = {"run": lone.spec.digest, "round": 2, "base": lone.state.last.state}
    vote = Vote(**fields, attempt=0, group="a" * 64, state=OWN)
    stolen = signed("b", vote)
    replayed = signed("h", vote.model_copy(update={"round": 3}))
    elsewhere = signed("h", vote.model_copy(update={"base": "c" * 64}))
    other_run = signed("h", vote.model_copy(update={"run": "d" * 64}))
    for own in (stolen, replayed, elsewhere, other_run, None):
        lone.step(e.Votes("h", own, [signed("b", vote), signed("stranger", vote)]))
    assert lone.state.votes == {}
    lone.step(e.Votes("h", signed("h", vote)))
    assert set(lone.state.votes) == {"h"}


def test_a_claim_of_an_earlier_round_is_not_taken_for_this_one() -> None:
    table = Table("ab")
    table.agree(2)
    for old in table["a"].agreed(2).claims:
        with pytest.raises(VerificationError, match="another run, round or base"):
            table["a"].state.terms().check_claim(old)
