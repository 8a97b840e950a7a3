"""Who begins is said once: those who came first and work, before anybody is told, and never anybody else."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.beginning import AWAY_S, Beginning
from coordinator.roster import WORKING_S, Announcements, Presence
from coordinator.store.database import Store
from protocol.epoch import open_word
from protocol.errors import NetworkError
from protocol.keys import PeerIdentity
from tests.kit.coordinator import Office

PEERS = tuple(PeerIdentity.generate().peer_id for _ in range(6))


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path)
    yield office
    office.close()


def beginning(office: Office, least: int = 1) -> Beginning:
    return Beginning(office.store, office.membership_key, office.card.run, least, now=0.0)


def peers(office: Office, word: bytes) -> tuple[str, ...]:
    return tuple(open_word(word, office.card.member_key, run=office.card.run).value.peers)


@pytest.mark.parametrize(
    ("least", "working", "named"), [(1, 1, 1), (1, 2, 2), (1, 6, 3), (2, 2, 2), (3, 5, 3), (4, 6, 4)]
)
def test_the_first_that_work_are_named(office: Office, least: int, working: int, named: int) -> None:
    begin = beginning(office, least)
    assert all(begin.word(PEERS[:count], 0) == b"" for count in range(least))
    assert begin.named is None
    assert peers(office, begin.word(PEERS[:working], 0)) == PEERS[:named]


def test_the_word_is_never_another_one(office: Office) -> None:
    begin = beginning(office)
    word = begin.word(PEERS[:2], 0)
    office.reopen()
    again = beginning(office)
    for here in (begin, again):
        assert here.named is not None
        assert here.word(PEERS[3:], 0) == here.word([], 7) == here.named.data == word


def test_nobody_is_named_for_a_run_that_has_begun(office: Office) -> None:
    assert beginning(office).word(PEERS, 1) == b""


def test_nobody_is_told_before_the_word_is_kept(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = beginning(office)

    def busy(store: Store) -> None:
        raise NetworkError("the ledger was busy")

    with monkeypatch.context() as context:
        context.setattr(Store, "writing", busy)
        with pytest.raises(NetworkError):
            begin.word(PEERS[:1], 0)
    assert begin.named is None
    assert peers(office, begin.word(PEERS[1:2], 0)) == PEERS[1:2]


def test_who_only_reduces_idles_or_is_away_does_not_begin() -> None:
    roster = Announcements()

    def announce(index: int, speed: float, now: float, reduce_only: bool = False) -> None:
        roster.announce(PEERS[index], [], round=0, tokens_per_s=speed, states=[], now=now, reduce_only=reduce_only)

    for index in (4, 2, 0, 1, 3):
        announce(index, 1.0, 0.0)
    announce(5, 5.0, 10.0, reduce_only=True)
    announce(1, 0.0, 10.0)
    for index in (0, 2, 4):
        announce(index, 1.0, WORKING_S + 1)
    assert roster.working(WORKING_S + 1) == [PEERS[4], PEERS[2], PEERS[0]], "as they came"


def test_host_is_warned_once_when_too_few_of_the_named_are_left(
    office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    begin = beginning(office)
    begin.word(PEERS[:3], 0)

    def look(round: int, seen: dict[int, float], now: float) -> int:
        caplog.clear()
        begin.look(
            round,
            {PEERS[index]: Presence(PEERS[index], (), 0, 1.0, frozenset(), at) for index, at in seen.items()},
            now,
        )
        return len([record for record in caplog.records if record.levelno == logging.WARNING])

    assert look(0, {}, AWAY_S - 1) == 0, "they may be on their way, as after a restart"
    assert look(0, {0: 500.0, 1: 500.0}, 501.0) == 0
    assert look(1, {}, 502.0) == 0
    assert look(0, {0: 600.0, 1: 400.0, 4: 600.0}, 600.0) == 1
    assert "start the run anew" in caplog.text and PEERS[2] in caplog.text and PEERS[0] not in caplog.text
    assert look(0, {0: 601.0, 1: 400.0}, 602.0) == 0, "said once"
    assert look(0, {0: 603.0, 1: 603.0}, 604.0) == 0 and look(0, {0: 605.0}, 606.0) == 1
