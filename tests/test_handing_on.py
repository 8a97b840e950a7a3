"""A leaver and the run's newest state: it is not gone with whoever alone has it, or its owner is told.

Who counts as having it is in `test_last_copy`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.processes import CARD_TOKENS_PER_S, Community
from lab.small_community import tiny_run
from lab.warm_start import WarmStart
from peer.handing_on import ALONE_S, ASKED_S, Outcome, hand_on
from peer.link.client import CoordinatorClient
from peer.net.last_copy import Copies, giving_s
from peer.screen.messages import text
from peer.training.genesis import load_state
from protocol.errors import NetworkError
from tests.kit.coordinator import Swarm as Members
from tests.kit.coordinator import start_host, write_run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

NOBODY = Copies(round=7, is_newest=True, run_waits=True, seconds=60.0)
WAITING = replace(NOBODY, others=2)
HELD = replace(WAITING, holders=frozenset({"another"}))


class Farewell:
    """A swarm and a link by the clock: what each look finds, and what the coordinator does with an offer."""

    def __init__(self, looks: Callable[[float], Copies], *, gives_after_s: float = 1e9, away: bool = False) -> None:
        self.now, self._looks, self._gives_after_s = 0.0, looks, gives_after_s
        self.away_since = 1.0 if away else None
        self.told: list[str] = []
        self.began = False
        self._offered_at, self.gives_s, self.has_told = 1e9, 0.0, True

    @property
    def is_giving(self) -> bool:
        return self.now < self._offered_at + self.gives_s

    def begin_leaving(self) -> None:
        self.began = True

    def copies(self) -> Copies:
        assert self.began
        return self._looks(self.now)

    def say_leaving(self) -> None:
        assert not self.began, "the coordinator hears of it meanwhile"
        self._offered_at = self.now

    def has_given(self, round: int) -> bool:
        return round == 7 and self.now >= self._offered_at + self._gives_after_s

    def tell(self, key: str, **values: str) -> None:
        assert text(key, "en", **values) != text(key, "zh", **values)
        if key not in self.told:
            self.told.append(key)

    def leave(self) -> Outcome:
        return hand_on(self, self, self.tell, clock=lambda: self.now, sleep=self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds


def test_who_is_not_the_only_one_leaves_at_once_and_without_a_word() -> None:
    for copies in (HELD, replace(NOBODY, is_newest=False)):
        case = Farewell(lambda now, copies=copies: copies)
        assert (case.leave(), case.now, case.told) == (Outcome.DONE, 0.0, [])


def test_the_only_one_waits_until_another_has_it_and_says_so_meanwhile() -> None:
    case = Farewell(lambda now: WAITING if now < 20 else HELD)
    assert case.leave() is Outcome.DONE and 20 <= case.now < 21 and case.told == ["last-copy"]
    assert "Ctrl-C again leaves at once, and then the others wait" in text("last-copy", "en", round="7")


def test_after_the_time_that_fetching_takes_it_leaves_and_says_that_the_others_wait() -> None:
    case = Farewell(lambda now: WAITING)
    assert case.leave() is Outcome.NOT_HANDED_ON and 60 <= case.now < 61
    large = Farewell(lambda now: replace(WAITING, seconds=1e6, is_stalled=now >= 120))
    assert large.leave() is Outcome.NOT_HANDED_ON and large.now < 121, "nobody fetches it"


def test_who_is_alone_gives_it_to_the_coordinator() -> None:
    case = Farewell(lambda now: NOBODY, gives_after_s=10)
    assert case.leave() is Outcome.KEPT and case.now < ALONE_S + 11 and case.told == ["last-copy-offered"]
    slow = Farewell(lambda now: NOBODY, gives_after_s=1000)
    slow.gives_s = 2000
    assert slow.leave() is Outcome.KEPT and slow.now > 1000, "as long as it is on its way"
    unwanted = Farewell(lambda now: NOBODY)
    assert unwanted.leave() is Outcome.ALONE and unwanted.now < ALONE_S + ASKED_S + 1
    untold = Farewell(lambda now: HELD)
    untold.has_told = False
    assert untold.leave() is Outcome.DONE and 0 < untold.now < 2, "the coordinator has a moment to hear of it"
    away = Farewell(lambda now: NOBODY, away=True)
    assert away.leave() is Outcome.ALONE and away.now < ALONE_S + 1 and away.told == []


def test_who_is_alone_and_not_waited_for_leaves_without_a_word() -> None:
    case = Farewell(lambda now: replace(NOBODY, run_waits=False))
    assert case.leave() is Outcome.DONE and case.told == []


def test_somebody_who_comes_while_the_state_is_offered_gets_it() -> None:
    case = Farewell(lambda now: NOBODY if now < 20 else WAITING if now < 40 else HELD)
    assert case.leave() is Outcome.DONE and 40 <= case.now < 41


def test_a_swarm_that_does_not_answer_keeps_nobody_from_leaving() -> None:
    def looks(now: float) -> Copies:
        raise NetworkError("the swarm's thread did not answer")

    assert Farewell(looks).leave() is Outcome.DONE


@given(st.integers(0, 10**12), st.floats(0, 1e9))
def test_the_time_to_give_a_state_away_is_in_proportion_to_its_size(size_bytes: int, line: float) -> None:
    assert 20.0 <= giving_s(size_bytes, line) <= giving_s(size_bytes + 10**6, line)
    if line > 1:
        assert giving_s(size_bytes, line) >= 3 * size_bytes / line


# ---- the coordinator -------------------------------------------------------------------------------------------------


def test_the_coordinator_publishes_the_newest_state_out_of_turn_when_the_last_member_leaves(tmp_path: Path) -> None:
    host = start_host(write_run(tmp_path / "source", every=100, rounds=0), tmp_path / "run")
    assert host._publisher is not None
    try:
        with CoordinatorClient(host.invite) as client:
            genesis = load_state(host.folder / "checkpoints" / "step-000000" / "model")
            swarm = Members.joined(client, client.get_run(), genesis)
            one, other, third = swarm.members
            states = []
            for seed in (1, 2):
                assert client.report(one.certificate, swarm.round(seed=seed, scale=0.001).to_bytes()).accepted
                states.insert(0, swarm.state)
            newest = states[0]

            def announce(digests: list[str], leaving: bool) -> str:
                return client.announce(one.certificate, states=digests, leaving=leaving).want_state

            client.announce(other.certificate, states=[newest.digest])
            for digests, leaving in (
                ([newest.digest], False),  # it does not leave
                ([newest.digest], True),  # another stays
            ):
                announce(digests, leaving)
                assert not host._publisher._choices()
            announce([newest.digest], False)
            for leaver in (other, third):  # they leave, too
                client.announce(leaver.certificate, states=[newest.digest], leaving=True)
            announce([states[1].digest], True)
            assert not host._publisher._choices(), "that is not the newest"
            deadline = time.monotonic() + 60
            while not announce([newest.digest], True):
                assert time.monotonic() < deadline, "the newest state is not wanted"
            pieces = (newest.chunk(index) for index in range(newest.chunk_count))
            assert client.upload_state(one.certificate, newest.manifest(), pieces)
            while [item.round for item in host.status().checkpoints if item.published] != [0, 2]:
                assert time.monotonic() < deadline, host.status().checkpoints
                time.sleep(0.05)
            assert client.report(one.certificate, swarm.round(seed=3, scale=0.001).to_bytes()).accepted
            announce([swarm.state.digest], True)
            assert not host._publisher._choices(), "not for each round"
    finally:
        host.stop()


# ---- real processes --------------------------------------------------------------------------------------------------


@pytest.fixture
def community(tmp_path: Path, glass_dir: Path, plays: Path) -> Iterator[Community]:
    config: Any = tiny_run(tmp_path, glass_dir, plays, "wood", round_seconds=1.0, min_peers=1)
    with (
        WarmStart() as starter,
        Community(tmp_path, config, starter=starter, fixed_ports=True, tokens_per_s=CARD_TOKENS_PER_S) as opened,
    ):
        yield opened


@pytest.mark.swarm
def test_when_the_only_up_to_date_member_leaves_a_newcomer_goes_on_and_the_last_one_says_what_it_costs(
    community: Community,
) -> None:
    host = community.host()
    first = community.peer("first")
    first.wait_round(3)
    second = community.peer("second")
    second.wait_for("step", step="finding-members")
    assert first.stop(timeout_s=90) == 0
    at = first.round
    second.wait_round(at + 2)
    assert host.stop() == 0
    assert second.stop(timeout_s=90) == 4, "nobody has its state, and the coordinator is away"
    assert second.find("waiting", key="alone")
    host = community.host()
    again = community.peer("second")
    again.wait_round(second.round + 2)
    assert again.stop(timeout_s=90) == 0
    assert again.find("waiting", key="alone-kept"), "the coordinator has it"
