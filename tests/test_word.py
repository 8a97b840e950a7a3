"""The coordinator's word on who decides, as one member takes it: what it keeps, tells and follows. `protocol.epoch`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from peer.round import actions as a
from peer.round import events as e
from peer.round import follow, word
from peer.round.box import Box
from peer.round.state import Voting
from protocol.agreement import Agreement, group_digest
from protocol.counting import counted
from protocol.epoch import Epoch
from protocol.signed import Signed
from protocol.statements import Vote
from protocol.succession import Last
from tests.core_kit import BASE, Lone, claim_of, of, signed, spec_of

ODD = "d" * 64
SPEC = spec_of(rules=3, max_group=3)


def agreed(last: Last, *names: str, named: Signed[Epoch] | None = None, state: str = "") -> Agreement:
    """The round after one, made by these."""
    claims = [claim_of(name, SPEC, last.round + 1, last.state) for name in names]
    epoch = named.value.epoch if named else last.epoch
    at = {"run": SPEC.digest, "round": last.round + 1, "base": last.state, "attempt": 0, "epoch": epoch}
    vote = {"group": group_digest(claims), "state": state or f"{epoch}{last.round}".rjust(64, "e")}
    votes = tuple(signed(name, Vote(**at, **vote)) for name in names)
    counts = counted({claim.by: claim.value for claim in claims}, last, SPEC)
    return Agreement(tuple(claims), votes, dict.fromkeys(names, ""), counts, word=named)


FIRST = agreed(Last(0, "0" * 64), "me", "b", "c", "d", state=BASE)
LAST = Last.of(FIRST)


def said(*peers: str, epoch: int = 1) -> Signed[Epoch]:
    """The word that these decide round 2."""
    named = Epoch(epoch=epoch, run=SPEC.digest, round=1, state=BASE, peers=dict.fromkeys(peers, 100))
    return signed("host", named)


def lone(box: Box | None = None, last: Last = LAST) -> Lone:
    return Lone("me", "bcd", last=last, box=box, rules=3, max_group=3, round_seconds=100.0)


def branch(length: int, *names: str, named: Signed[Epoch] | None = None) -> list[Agreement]:
    """Some rounds after the first."""
    made, last = list[Agreement](), LAST
    for _ in range(length):
        made.append(agreed(last, *names, named=None if made else named))
        last = Last.of(made[-1])
    return made


def stands(by: Lone, name: str, agreement: Agreement) -> list[Any]:
    """Another member says that it stands there; what comes of it within seconds."""
    now = e.Said(agreement.round + 1, agreement.state, epoch=agreement.epoch)
    return [*by.step(e.Heard(name, now)), *by.wait(2.0)]


# ---- what is kept ---------------------------------------------------------------------------------------------------


def test_a_word_is_on_disk_as_soon_as_it_is_heard() -> None:
    member, kept = lone(), list[Box]()
    member.saves = kept.append
    heard = said("me", "b")
    member.step(e.CoordinatorSaid(1, heard))
    member.step(e.CoordinatorSaid(1, heard))
    assert kept == [Box(2, epoch=1)], "once"


def test_after_a_restart_nothing_is_promised_until_the_word_is_heard_again() -> None:
    member = lone(Box(2, epoch=1))
    member.hears("bc")
    member.works()
    (answer,) = member.step(member.proposed("b"))
    assert isinstance(answer, a.Decline) and "wait to hear it again" in answer.why
    heard = said("me", "b")
    (join,) = of(a.Join, member.step(replace(member.proposed("b"), word=heard)))
    assert join.promise.value.epoch == 1


def test_a_vote_by_a_word_is_told_after_a_restart_and_not_before_the_word_is_heard_again() -> None:
    before = lone()
    heard = said("me", "b")
    before.hears("b")
    before.works()
    before.step(replace(before.proposed("b"), word=heard))
    group = before.group("b", before.mine(), before.member("b"), word=heard)
    (start,) = of(a.AllReduce, before.step(e.Grouped("group", "b", group)))
    before.step(e.Averaged(start.group.digest, 0, ODD, 0.1))
    assert isinstance(before.state.phase, Voting)

    again = lone(before.state.box)
    again.hears("b")
    again.works()
    (shown,) = again.step(e.Votes("b", None, call="votes"))
    assert shown.own is None, "it would name no word, and another round might count it"
    again.step(e.CoordinatorSaid(1, heard))
    (shown,) = again.step(e.Votes("b", None, call="votes"))
    assert shown.own.value == before.state.phase.vote.value
    (join,) = of(a.Join, again.step(again.proposed("b", attempt=1)))
    assert [cast.state for cast in join.promise.value.cast] == [ODD] and join.vote.value == shown.own.value


# ---- who is followed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hears_it_again", [False, True])
def test_who_has_heard_a_word_does_not_follow_those_who_went_on_without_it(hears_it_again: bool) -> None:
    member = lone(Box(2, epoch=1))
    if hears_it_again:
        member.step(e.CoordinatorSaid(1, said("me", "b")))
    without = branch(3, "c", "d")
    assert of(a.AskHead, stands(member, "d", without[-1]))
    assert not of(a.Fetch, member.step(e.HeadShown("d", 1, without)))


def test_who_has_heard_a_word_follows_those_who_went_on_without_it_where_those_whom_it_names_did() -> None:
    member = lone()
    member.step(e.CoordinatorSaid(1, said("me", "b", "c")))
    without = branch(3, "b", "c", "d")
    stands(member, "b", without[-1])
    assert not word.is_void(member.state), "this member and c can still go on by it"
    assert of(a.AskHead, stands(member, "c", without[-1])) or member.state.search.asked
    assert word.is_void(member.state)
    asked = member.state.search.asked
    (fetch,) = of(a.Fetch, member.step(e.HeadShown(asked, 1, without)))
    (done,) = of(a.Commit, member.step(e.Fetched(fetch.state)))
    assert done.agreement.round == 4 and member.state.box == Box()


def test_who_made_more_rounds_than_the_later_epoch_has_takes_it_and_drops_its_work() -> None:
    own = branch(5, "me", "c", "d")
    back = lone(Box(7, 3, "d"), Last.of(own[-1]))
    back.works()
    later = branch(2, "b", "c", "x", named=said("b", "c"))
    assert Last.of(later[-1]).may_have_waited("me") == 2, "had it been there"
    assert of(a.AskHead, stands(back, "b", later[-1]))
    (fetch,) = of(a.Fetch, back.step(e.HeadShown("b", 0, [FIRST, *later])))
    (done,) = of(a.Commit, back.step(e.Fetched(fetch.state)))
    assert (done.agreement.epoch, done.agreement.round, done.may_wait, done.is_late) == (1, 3, 0, False)
    assert back.state.box == Box(epoch=1), "what it has promised in the rounds that are undone binds it no more"


def test_who_cannot_be_shown_the_way_to_a_later_epoch_starts_from_the_ledger_though_that_has_fewer_rounds() -> None:
    back = lone(last=Last.of(branch(5, "me", "c", "d")[-1]))
    back.step(e.CoordinatorSaid(3, None))
    later = branch(2, "b", "c", named=said("b", "c"))
    assert of(a.AskHead, stands(back, "b", later[-1])) and not follow.lacks_anchor(back.state)
    assert not back.step(e.HeadShown("b", 0, later[1:])) and follow.lacks_anchor(back.state)
    back.step(e.Anchored(later[-1]))
    asked = [*back.step(e.Tick()), *back.wait(1.0)]
    for _ in range(5):
        asked += stands(back, "b", later[-1]) if not of(a.AskHead, asked) else []
    (first, *_) = of(a.AskHead, asked)
    (anchored,) = of(a.AskHead, back.step(e.HeadShown("b", first.since, later[1:])))
    assert anchored.since == 3
    (fetch,) = of(a.Fetch, back.step(e.HeadShown("b", 3, later[1:])))
    assert fetch.state == later[-1].state
