"""A run that stands still because half of it is gone: what its host sees, and what it may say."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from coordinator.orders import Orders, ask
from coordinator.roster import Presence
from coordinator.standstill import AWAY_S, HERE_S, STILL_S, GoingOn, Standing, named
from protocol.epoch import Epoch
from protocol.errors import InputError, RefusedError
from protocol.keys import PeerIdentity
from protocol.last import Last
from protocol.signed import Signed
from tests.kit.builders import fixed_ed25519

RUN, STATE = "a" * 64, "b" * 64
IDS = [PeerIdentity(fixed_ed25519(f"standstill {index}")).peer_id for index in range(4)]
TIP = Last(7, STATE, dict.fromkeys(IDS, 100))
NOW = 10_000.0


def seen(*indices: int, ago_s: float = 1.0, leaving: bool = False, at: int = 7) -> dict[str, Presence]:
    return {
        IDS[index]: Presence(IDS[index], (), at, 1.0, frozenset(), NOW - ago_s, leaving=leaving) for index in indices
    }


def test_a_run_stands_still_when_those_who_are_here_hold_no_majority() -> None:
    assert Standing.of(TIP, seen(0), NOW).is_still
    assert not Standing.of(TIP, seen(0, 1, 2), NOW).is_still
    assert not Standing.of(TIP, seen(0, 1, 2, 3), NOW).is_still


def test_where_most_are_here_it_stands_still_when_somebody_is_gone_and_no_round_comes_for_long() -> None:
    """Only the gone know which of two states was committed, or speak for the weight of one that has left."""
    assert Standing.of(TIP, seen(0, 1, 2), NOW, STILL_S).is_still
    assert not Standing.of(TIP, seen(0, 1, 2), NOW, STILL_S - 1).is_still
    assert not Standing.of(TIP, seen(0, 1, 2, 3), NOW, STILL_S).is_still, "a round may take long"


def test_who_was_not_heard_for_long_or_leaves_is_gone() -> None:
    assert Standing.of(TIP, seen(0) | seen(1, 2, 3, ago_s=AWAY_S + 1), NOW).is_still
    assert Standing.of(TIP, seen(0) | seen(1, 2, 3, leaving=True), NOW).is_still


def test_a_stranger_who_is_here_decides_nothing() -> None:
    stranger = PeerIdentity.generate().peer_id
    here = {stranger: Presence(stranger, (), 8, 1.0, frozenset(), NOW)}
    word = named(TIP, Standing.of(TIP, seen(2) | here, NOW), RUN, 1)
    assert word == Epoch(epoch=1, run=RUN, round=7, state=STATE, peers={IDS[2]: 100})


@pytest.mark.parametrize("at", [6, 8])
def test_who_does_not_stand_where_the_word_begins_is_not_named(at: int) -> None:
    word = named(TIP, Standing.of(TIP, seen(0) | seen(1, at=at), NOW), RUN, 1)
    assert set(word.peers) == {IDS[0]}


@pytest.mark.parametrize(
    ("tip", "who", "why"),
    [
        (Last(0, STATE), seen(0), "no round was agreed yet"),
        (TIP, seen(0, 1, 2), "does not stand still"),
        (TIP, {}, "nobody of those who made round 7"),
        (TIP, seen(0, at=6), "nobody of those who made round 7"),
        (TIP, seen(0) | seen(1, ago_s=HERE_S + 1), "may not be gone"),
    ],
)
def test_a_word_that_would_be_wrong_is_not_given(tip: Last, who: Mapping[str, Presence], why: str) -> None:
    with pytest.raises(RefusedError, match=why):
        named(tip, Standing.of(tip, who, NOW), RUN, 1)


def test_the_host_warns_once_for_each_round_that_stands_still(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    going_on = GoingOn(tmp_path, signed, NOW - AWAY_S)
    for _ in range(3):
        going_on.look(TIP, seen(0), NOW)
    (record,) = caplog.records
    assert "stands still after round 7" in record.message and f"potluck go-on {tmp_path}" in record.message


def signed(word: Epoch) -> Signed[Epoch]:
    return word.sign(PeerIdentity(fixed_ed25519("standstill")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ledger.db").touch()
    return tmp_path


@pytest.fixture
def host(folder: Path) -> Iterator[list[Mapping[str, Presence]]]:
    """A host that looks all the time; the list holds whom it sees."""
    who, over = [seen(0)], threading.Event()
    given: list[Epoch] = []

    def give(word: Epoch) -> Signed[Epoch]:
        given.append(word)
        return signed(word)

    def run() -> None:
        going_on = GoingOn(folder, give, NOW)
        orders = Orders(folder, {"go-on": lambda: going_on.go_on(TIP, who[0], RUN, 1 + len(given), NOW)})
        while not over.wait(0.01):
            going_on.look(TIP, who[0], NOW)
            orders.look()

    thread = threading.Thread(target=run)
    thread.start()
    yield who
    over.set()
    thread.join()


def test_the_owners_request_is_answered_by_the_running_host(folder: Path, host: list[Mapping[str, Presence]]) -> None:
    assert ask(folder, "go-on") == {"round": 8, "epoch": 1, "peers": [IDS[0]]}
    assert ask(folder, "go-on")["epoch"] == 2, "a second word has a higher number"
    assert [path.name for path in folder.iterdir()] == ["ledger.db"]


def test_a_request_that_would_undo_a_run_that_goes_on_is_refused(
    folder: Path, host: list[Mapping[str, Presence]]
) -> None:
    host[0] = seen(0, 1, 2, 3)
    with pytest.raises(RefusedError, match="does not stand still"):
        ask(folder, "go-on")


def test_a_request_that_no_host_hears_is_taken_back(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no host answered"):
        ask(folder, "go-on", timeout_s=0.2)
    assert [path.name for path in folder.iterdir()] == ["ledger.db"]
    with pytest.raises(InputError, match="not a run's folder"):
        ask(tmp_path / "nowhere", "go-on")


def test_an_answer_that_nobody_waits_for_is_taken_away(folder: Path) -> None:
    old, new = folder / "answer.ab", folder / "answer.cd"
    for path in (old, new):
        path.write_bytes(b"{}")
    os.utime(old, (1.0, 1.0))
    Orders(folder, {}).look()
    assert new.exists() and not old.exists()


@pytest.mark.parametrize(
    "order", [b"", b"no JSON", b"[]", b"7", b'{"do":"go-on","more":1}', b'{"do":"stop"}', b"{}", b" " * 9999]
)
def test_an_order_that_is_none_is_answered(folder: Path, order: bytes) -> None:
    (folder / "order.ab").write_bytes(order)
    Orders(folder, {"go-on": lambda: {}}).look()
    assert json.loads((folder / "answer.ab").read_bytes())["ok"] is False
    assert not (folder / "order.ab").exists()
