"""A stranger, or one member of many, cannot take the run, stop it, or fill it: each test is an attack that worked.

What rules decide is tested over the coordinator's rules and a real store, with a clock of the test's own;
test_strangers shows what a stranger does with a connection.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.admission import Admission
from protocol.errors import NetworkError, RefusedError
from protocol.keys import PeerIdentity
from protocol.rpc import enroll_message
from tests.kit.coordinator import Member, Office, Swarm

NOW = 1_763_769_600.0  # Unix seconds
DAY_S = 86_400.0
MOST_NEW = 100  # identities that one address may make at one moment


# ---- one key takes the run -------------------------------------------------------------------------------------------


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    """Of a run in which nobody makes a round with fewer than three."""
    office = Office(tmp_path, rules=2, min_peers=3)
    yield office
    office.close()


def strangers(office: Office, count: int) -> Swarm:
    """New members of the same run, who agree among themselves on states of their own."""
    return beside(office, [office.member() for _ in range(count)])


def beside(office: Office, members: list[Member]) -> Swarm:
    """Members that stand where the run's own do."""
    swarm = dataclasses.replace(office.swarm, members=members, states={})
    swarm.last = office.swarm.last
    return swarm


def report(office: Office, swarm: Swarm, rounds: int, now: float = NOW) -> None:
    """Have them make rounds from where they stand, and report each; whatever the coordinator says to that."""
    for number in range(rounds):
        data = swarm.round(seed=1000 + number).to_bytes()
        with contextlib.suppress(NetworkError):  # no room for what cannot be decided
            office.reports.submit(data, swarm.members[0].peer_id, now + number)


def wait_a_day(office: Office) -> None:
    for now in (NOW + 60, NOW + 3600, NOW + DAY_S):
        office.reports.settle(now)


def test_rounds_that_one_key_signs_alone_never_enter_the_ledger(office: Office) -> None:
    report(office, strangers(office, 1), rounds=5)
    wait_a_day(office)
    assert office.reports.tip().round == 0 and office.credits() == []


def test_run_goes_on_after_one_key_has_reported_rounds_of_its_own(office: Office) -> None:
    report(office, strangers(office, 1), rounds=5)
    for number in range(1, 4):
        answer = office.submit(office.swarm.round(seed=number))
        assert answer.accepted, answer.reason
    assert office.reports.tip().round == 3
    assert office.credits() == office.expected_credits([1, 2, 3])


@pytest.mark.parametrize("count", [3, 20])
def test_identities_of_one_stranger_do_not_begin_the_run_however_many(office: Office, count: int) -> None:
    """Enough for `sync.min_peers`, and none of them is whom the coordinator has named."""
    report(office, strangers(office, count), rounds=2)
    wait_a_day(office)
    assert office.reports.tip().round == 0 and office.credits() == []
    answer = office.submit(office.swarm.round(seed=1))
    assert answer.accepted, answer.reason


# ---- a minority takes it by waiting ----------------------------------------------------------------------------------


@pytest.fixture(params=[1, 2], ids=["old rules", "new rules"])
def begun(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Office]:
    """A run of three members that have agreed on its first round."""
    office = Office(tmp_path, rules=request.param)
    answer = office.submit(office.swarm.round(seed=1))
    assert answer.accepted, answer.reason
    yield office
    office.close()


def minority(office: Office, who: str) -> Swarm:
    """Those that go on without the majority of the first round's weight."""
    swarm = {
        "a newcomer": strangers(office, 1),
        "twenty newcomers": strangers(office, 20),
        "one of three": beside(office, office.swarm.members[:1]),
    }[who]
    if who == "one of three":
        swarm.members += [office.member(), office.member()]
    return swarm


@pytest.mark.parametrize("who", ["a newcomer", "twenty newcomers", "one of three"])
def test_minority_s_round_never_enters_the_ledger_however_long_it_waits(begun: Office, who: str) -> None:
    agreed = begun.reports.tip()
    report(begun, minority(begun, who), rounds=3, now=NOW + 1)
    wait_a_day(begun)
    assert begun.reports.tip() == agreed
    assert begun.credits() == begun.expected_credits([1])


@pytest.mark.parametrize("who", ["a newcomer", "twenty newcomers", "one of three"])
def test_members_round_is_taken_a_day_after_a_minority_s(begun: Office, who: str) -> None:
    report(begun, minority(begun, who), rounds=3, now=NOW + 1)
    wait_a_day(begun)
    answer = begun.submit(begun.swarm.round(seed=2))
    assert answer.accepted, answer.reason
    assert begun.credits() == begun.expected_credits([1, 2])


# ---- one address -----------------------------------------------------------------------------------------------------


class Door:
    """Admission alone, at one moment: what each address gets of it."""

    def __init__(self, office: Office) -> None:
        self._run = office.card.run
        self._admission = Admission(office.ledger, office.membership_key, office.card.run, "wood", lifetime_s=3600)

    def enroll(self, who: PeerIdentity, address: str, now: float) -> str:
        challenge = self._admission.challenge(who.peer_id, now)
        signature = who.sign(enroll_message(self._run, challenge))
        return self._admission.enroll(who.peer_id, challenge, signature, "wood", address, now)

    def flood(self, address: str, now: float, count: int = 2 * MOST_NEW) -> int:
        """How many of so many new identities are admitted."""
        told: Counter[bool] = Counter()
        for _ in range(count):
            try:
                told[bool(self.enroll(PeerIdentity.generate(), address, now))] += 1
            except (RefusedError, NetworkError) as error:
                assert error.hint or error.message
                told[False] += 1
        return told[True]


@pytest.fixture
def door(office: Office) -> Door:
    return Door(office)


def test_one_address_does_not_make_new_members_without_end(door: Door) -> None:
    assert 0 < door.flood("ipv4:203.0.113.7", NOW) <= MOST_NEW


def test_flood_from_one_address_keeps_no_other_out(door: Door) -> None:
    door.flood("ipv4:203.0.113.7", NOW)
    assert door.enroll(PeerIdentity.generate(), "ipv4:203.0.113.8", NOW)


def test_member_renews_from_an_address_that_makes_too_many(door: Door) -> None:
    me = PeerIdentity.generate()
    door.enroll(me, "ipv4:203.0.113.7", NOW)
    door.flood("ipv4:203.0.113.7", NOW)
    assert door.enroll(me, "ipv4:203.0.113.7", NOW)


def test_address_that_made_too_many_may_make_another_an_hour_later(door: Door) -> None:
    door.flood("ipv4:203.0.113.7", NOW)
    assert door.enroll(PeerIdentity.generate(), "ipv4:203.0.113.7", NOW + 3600)
