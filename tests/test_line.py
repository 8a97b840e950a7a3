"""Who leads, whom a leader asks, and whom it waits for: one core in memory, from what the others say of themselves."""

from __future__ import annotations

import pytest

from peer.round import turns, views
from peer.round.blame import BROKEN_FREE
from peer.round.turns import IDLE_ASKED_EVERY, IDLE_ROUNDS
from protocol.succession import Last
from tests.core_kit import BASE, Lone, after_round_1

NEEDED, IDLE = "bcdef", [f"idle-{number:02}" for number in range(63)]


class Scene(Lone):
    """One member's view of a run after its first round."""

    @property
    def there(self) -> list[views.View]:
        return turns.others(self.state, self.now)

    @property
    def asked(self) -> list[str]:
        return [view.peer for view in turns.to_ask(self.state, self.there, self.now)]

    def says(self, *names: str, **said: int) -> None:
        self.hears(names, **({"hears": 3} | said))

    def place(self) -> int | None:
        return turns.place_in_line(self.state, self.there, self.now)


def test_the_acceptors_that_a_majority_needs_are_asked_first_and_newcomers_have_a_place() -> None:
    """Just over 5/8 of the weight: this member and three of the five others."""
    scene = Scene("me", NEEDED, max_group=8)
    scene.says(*IDLE)
    scene.says(*NEEDED)
    asked = scene.asked
    assert len(asked) == 7 and set(asked[:3]) <= set(NEEDED) and set(asked[3:]) & set(IDLE)


def test_on_a_retry_all_acceptors_are_asked_first() -> None:
    scene = Scene("me", NEEDED, max_group=8)
    scene.says(*IDLE, *NEEDED)
    asked = [view.peer for view in turns.to_ask(scene.state, scene.there, scene.now, 1)]
    assert set(asked[:5]) == set(NEEDED)


def test_idle_keys_are_no_more_peers_than_the_host_asked_for() -> None:
    scene = Scene("me", "", min_peers=2)
    scene.says(*IDLE)
    waiting = turns.enough(scene.state, scene.there, scene.now)
    assert waiting is not None and (waiting.key, waiting.values) == ("wants-more-peers", {"missing": 1, "least": 2})
    scene.says("worker", tokens=100)
    assert turns.enough(scene.state, scene.there, scene.now) is None


def test_who_has_done_nothing_for_rounds_is_asked_seldom_until_it_has_work() -> None:
    scene = Scene("me", "")
    scene.says("idle", "slow")
    for _ in range(IDLE_ROUNDS):
        assert set(scene.asked) == {"idle", "slow"}, "a newcomer may just have begun"
        turns.rounds_made(scene.state, [{"me"}], scene.now)
    assert scene.asked == []
    scene.says("slow", tokens=5)
    assert scene.asked == ["slow"]
    later = Scene("me", "", last=Last(IDLE_ASKED_EVERY - 1, BASE, {"me": 100}))
    later.says("idle")
    for _ in range(IDLE_ROUNDS):
        turns.rounds_made(later.state, [{"me"}], later.now)
    assert later.asked == ["idle"], "it may be slow rather than idle"


def test_who_keeps_the_others_waiting_for_nothing_is_not_asked_for_a_while_unless_its_vote_decides() -> None:
    scene = Scene("me", "b")
    scene.says("b", "liar", tokens=10**6)
    for _ in range(BROKEN_FREE + 1):
        assert set(scene.asked) == {"b", "liar"}
        scene.state.blame.asked([], ["b", "liar"], scene.now)
    assert scene.asked == ["b"]


@pytest.mark.parametrize("hears", [3, 4096])
def test_only_those_lead_whose_votes_decide_and_boasting_of_hearing_all_puts_nobody_first(hears: int) -> None:
    scene = Scene("me", "bc")
    scene.says("b", "c", "stranger")
    honest = scene.place()
    scene.says("b", "stranger", hears=hears)
    assert scene.place() == honest is not None
    assert turns.may_lead(scene.state, "b") and not turns.may_lead(scene.state, "stranger")
    outside = Scene("me", last=after_round_1({"b": 1}))
    outside.says("b")
    assert outside.place() is None


def test_who_hears_few_of_the_others_leads_last() -> None:
    scene = Scene("me", "bcd")
    scene.says("b", "c", "d")
    scene.says("b", "c", "d", hears=1)
    assert scene.place() == 0


def test_a_round_is_held_back_while_one_at_work_may_be_gone_and_not_for_one_that_is_idle() -> None:
    scene = Scene("me", ["needed"])
    scene.says("needed")
    scene.says("worker", tokens=100)
    scene.says("idle")
    missed_s = (views.MISSED + 1) * scene.state.gossip_s

    def falls_silent() -> bool:
        return turns.falls_silent(scene.state, scene.there, scene.now)

    scene.now += missed_s
    assert falls_silent()
    scene.says("worker", tokens=100)
    assert falls_silent(), "its vote decides"
    scene.says("needed")
    assert not falls_silent(), "the idle one alone is silent"
    scene.now += missed_s
    scene.says("needed")
    assert falls_silent(), "it has work"
    scene.now += 60.0
    scene.says("needed")
    assert not falls_silent(), "it is gone, and nobody is taken for present who is not"
