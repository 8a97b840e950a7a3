"""The link to the coordinator: it tries for ever, never in a hurry, and never dies in silence."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lab.processes import eventually
from peer.disk.outbox import Outbox
from peer.link import background as coordinator_link
from peer.link.answers import Announcement, Enrollment, ReportAnswer
from peer.link.background import INTERVAL_S, LONGEST_PAUSE_S, Certificate, CoordinatorLink
from peer.link.channel import CoordinatorBusy
from protocol.backoff import Backoff
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

    def enroll(self, identity: PeerIdentity) -> Enrollment:
        """Who is refused asks for a new certificate first."""
        return Enrollment("another token", int(time.time()) + 10**6, ())

    def close(self) -> None: ...


class Full(Client):
    """A coordinator that has no room for reports until it was given the rounds that its ledger lacks."""

    def __init__(self) -> None:
        super().__init__(lambda: None)
        self.chains: list[list[bytes]] = []
        self.reports: list[bytes] = []

    def announce(self, certificate: str, **said: Any) -> Announcement:
        return super().announce(certificate, **said)._replace(round=3, want_chain=not self.chains)

    def report(self, certificate: str, agreement: bytes) -> ReportAnswer:
        if not self.chains:
            raise CoordinatorBusy("no room")
        self.reports.append(agreement)
        return ReportAnswer(True, "")

    def report_chain(self, certificate: str, agreements: Sequence[bytes]) -> ReportAnswer:
        self.chains.append(list(agreements))
        return ReportAnswer(True, "")


class Nothing:
    """Neither receipts nor states."""

    def fetch(self, client: object, certificate: str) -> None: ...

    def offered(self) -> dict[str, int]:
        return {}


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
            chain_since=changes.pop("chain_since", lambda round: []),
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
    make: Callable[..., CoordinatorLink], monkeypatch: pytest.MonkeyPatch, answer: Callable[[], None]
) -> None:
    pauses: list[float] = []

    class Noted(Backoff):
        """Its pauses are noted, and not made."""

        def failed(self) -> float:
            pauses.append(super().failed())
            return 0.0

    monkeypatch.setattr(coordinator_link, "Backoff", Noted)
    client = Client(answer)
    with make(client):
        eventually(lambda: client.visits >= 2000)
    assert len(pauses) >= 1999 and all(INTERVAL_S / 2 <= pause <= LONGEST_PAUSE_S for pause in pauses)
    assert min(pauses[10:]) >= LONGEST_PAUSE_S / 2


def test_no_room_for_reports_keeps_nothing_else_waiting(
    make: Callable[..., CoordinatorLink], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who cannot report is heard, and asked for what the ledger lacks; then there is room."""
    monkeypatch.setattr(coordinator_link, "INTERVAL_S", 0.01)
    client = Full()
    Outbox(tmp_path / "outbox").put(9, b"round 9")
    with make(client, chain_since=lambda round: [b"round %d" % number for number in range(round + 1, 10)]) as link:
        assert link.settled.wait(10)
    assert client.chains == [[b"round %d" % number for number in range(4, 10)]] and client.reports == [b"round 9"]


def test_a_chain_is_cut_to_what_one_call_may_hold(
    make: Callable[..., CoordinatorLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator_link, "MAX_CHAIN_BYTES", 10)
    monkeypatch.setattr(coordinator_link, "MAX_CHAIN_ROUNDS", 3)
    for known, sent in ([b"1234", b"12345", b"12"], 2), ([b"1"] * 5, 3), ([b"12345678901"], 0):
        client = Full()
        make(client, chain_since=lambda round, known=known: known).visit()
        assert client.chains == ([known[:sent]] if sent else [])


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
