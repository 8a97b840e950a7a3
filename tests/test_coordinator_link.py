"""The link to the coordinator: it tries for ever, never in a hurry, and never dies in silence."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.processes import eventually
from peer.disk.outbox import Outbox
from peer.link import background as coordinator_link
from peer.link.answers import Announcement
from peer.link.background import INTERVAL_S, LONGEST_PAUSE_S, Certificate, CoordinatorLink
from protocol.errors import CoordinatorAway, RefusedError
from protocol.keys import PeerIdentity
from protocol.parts import Failure


class Client:
    """A coordinator as this peer sees it; `answer` is what it does when it is visited."""

    def __init__(self, answer: Callable[[], None]) -> None:
        self.visits, self._answer = 0, answer
        self.clock = self
        self.offset_s = 0.0

    def announce(self, certificate: str, **said: Any) -> Announcement:
        self.visits += 1
        self._answer()
        return Announcement([], "", 0, False, "")

    def close(self) -> None: ...


class Nothing:
    """Neither receipts nor states."""

    def fetch(self, client: object, certificate: str) -> None: ...

    def offered(self) -> dict[str, int]:
        return {}


class Clockwork(threading.Event):
    """Set by whoever closes; a wait is over at once and noted, until there were enough."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.waited: list[float] = []
        self._most = most

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waited.append(timeout)
        if len(self.waited) >= self._most:
            self.set()
        return self.is_set()


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., CoordinatorLink]:
    def made(client: Client, **changes: Any) -> CoordinatorLink:
        return CoordinatorLink(
            client,  # type: ignore[arg-type]
            PeerIdentity.generate(),
            Certificate("a token", time.time() + 10**6),
            Outbox(tmp_path / "outbox"),
            Nothing(),  # type: ignore[arg-type]
            on_certificate=lambda token: None,
            on_addresses=changes.pop("on_addresses", lambda addresses: None),
            on_run=lambda round, named: None,
            wants_anchor=lambda: False,
            on_anchor=lambda agreement: None,
            on_alarm=lambda alarm: None,
            on_twin=lambda twin: None,
            on_finished=lambda: None,
            on_receipts=lambda: None,
            session=b"here",
            on_clock=lambda offset_s: None,
            position=lambda: (0, 0.0, []),
            states=Nothing(),  # type: ignore[arg-type]
            **changes,
        )

    return made


def away() -> None:
    raise CoordinatorAway("nobody answers")


def refuses() -> None:
    raise RefusedError("not today")


@pytest.mark.parametrize("answer", [away, refuses])
def test_after_two_thousand_failed_visits_in_a_row_the_link_still_tries(
    make: Callable[..., CoordinatorLink], answer: Callable[[], None]
) -> None:
    client = Client(answer)
    link = make(client)
    link._renew = lambda: None  # type: ignore[method-assign]  # who is refused asks for a new certificate first
    link._closing = closing = Clockwork(2000)
    link._run()
    assert client.visits == 2000 and len(closing.waited) == 2000
    assert all(INTERVAL_S / 2 <= pause <= LONGEST_PAUSE_S for pause in closing.waited)
    assert min(closing.waited[10:]) >= LONGEST_PAUSE_S / 2


def test_a_commit_hurries_a_visit_only_while_the_coordinator_is_there(
    make: Callable[..., CoordinatorLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator_link, "INTERVAL_S", 3600.0)
    monkeypatch.setattr(coordinator_link, "LONGEST_PAUSE_S", 3600.0)
    there = threading.Event()
    there.set()
    client = Client(lambda: None if there.is_set() else away())
    with make(client) as link:
        eventually(lambda: client.visits == 1)
        link.wake()
        eventually(lambda: client.visits == 2)
        there.clear()
        link.wake()
        eventually(lambda: link.away_since is not None)
        for _ in range(50):  # as many commits, while it waits
            link.wake()
            time.sleep(0.005)
        assert client.visits == 3


def test_an_error_that_nobody_foresaw_does_not_end_the_link_and_is_told(
    make: Callable[..., CoordinatorLink], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(coordinator_link, "INTERVAL_S", 0.01)
    told: list[Failure] = []
    planted = iter([KeyError("addresses"), ZeroDivisionError()])

    def on_addresses(addresses: list[str]) -> None:
        for error in planted:
            raise error

    client = Client(lambda: None)
    with make(client, on_addresses=on_addresses, on_failure=told.append):
        eventually(lambda: client.visits >= 5)
    assert [item.reason.partition(":")[0] for item in told] == ["KeyError", "ZeroDivisionError"]
    assert all(item.part == "coordinator-link" and not item.is_final for item in told)
    assert "Traceback" in caplog.text
