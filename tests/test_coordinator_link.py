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
from peer.link import background
from peer.link.answers import Announcement, Enrollment
from peer.link.background import INTERVAL_S, LONGEST_PAUSE_S, CoordinatorLink, Peer
from peer.link.channel import CoordinatorBusy
from peer.link.held_certificate import HeldCertificate
from protocol.errors import CoordinatorAway, RefusedError
from protocol.keys import PeerIdentity
from protocol.parts import Failure
from protocol.rpc import ReportAnswer
from tests.kit.link import Nothing, Silent


class Client:
    """A coordinator as this peer sees it; `answer` is what it does when it is visited."""

    def __init__(self, answer: Callable[[], None]) -> None:
        self.visits, self.closed, self._answer = 0, 0, answer
        self.clock = self
        self.offset_s = 0.0

    def announce(self, certificate: str, **said: Any) -> Announcement:
        self.visits += 1
        self._answer()
        return Announcement((), "", 0, False, b"")

    def enroll(self, identity: PeerIdentity) -> Enrollment:
        """Who is refused asks for a new certificate at the next visit."""
        return Enrollment("another token", time.time() + 10**6, (), False)

    def close(self) -> None:
        self.closed += 1


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


class Clockwork(threading.Event):
    """Set by whoever closes; a wait is over at once and noted, until there were enough."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.waited: list[float] = []
        self._most = most

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waited.append(timeout)
        return super().wait() if len(self.waited) >= self._most else False


class Knowing(Silent):
    """A peer that knows some agreements."""

    def __init__(self, known: list[bytes]) -> None:
        self._known = known

    def chain_since(self, round: int) -> list[bytes]:
        assert round == 3, "the newest in the ledger"
        return self._known


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., CoordinatorLink]:
    def made(client: Client, peer: Peer | None = None, **options: Any) -> CoordinatorLink:
        held = HeldCertificate(PeerIdentity.generate(), "a token", time.time() + 10**6)
        outbox, nothing, here = Outbox(tmp_path / "outbox"), Nothing(), peer or Silent()
        return CoordinatorLink(client, held, outbox, nothing, nothing, here, **options)  # type: ignore[arg-type]

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
    pause = Clockwork(2000)
    with make(client, pause=pause):
        eventually(lambda: len(pause.waited) >= 2000)
    assert client.visits == 2000 and len(pause.waited) == 2000
    assert all(INTERVAL_S / 2 <= pause_s <= LONGEST_PAUSE_S for pause_s in pause.waited)
    assert min(pause.waited[10:]) >= LONGEST_PAUSE_S / 2


def test_no_room_for_reports_keeps_nothing_else_waiting(
    make: Callable[..., CoordinatorLink], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who cannot report is heard, and asked for what the ledger lacks; then there is room."""
    monkeypatch.setattr(background, "INTERVAL_S", 0.01)
    client, known = Full(), [b"round %d" % number for number in range(4, 10)]
    Outbox(tmp_path / "outbox").put(9, b"round 9")
    with make(client, Knowing(known)) as link:
        assert link.settled.wait(10)
    assert client.chains == [known] and client.reports == [b"round 9"]


@pytest.mark.parametrize(
    ("known", "sent"), [([b"1234", b"12345", b"12"], 2), ([b"1"] * 5, 3), ([b"12345678901"], 0), ([], 0)]
)
def test_a_chain_is_cut_to_what_one_call_may_hold(
    make: Callable[..., CoordinatorLink], monkeypatch: pytest.MonkeyPatch, known: list[bytes], sent: int
) -> None:
    monkeypatch.setattr(background, "MAX_CHAIN_BYTES", 10)
    monkeypatch.setattr(background, "MAX_CHAIN_ROUNDS", 3)
    client = Full()
    make(client, Knowing(known)).visit()
    assert client.chains == ([known[:sent]] if sent else [])


def test_a_commit_hurries_a_visit_only_while_the_coordinator_is_there(
    make: Callable[..., CoordinatorLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "INTERVAL_S", 3600.0)
    monkeypatch.setattr(background, "LONGEST_PAUSE_S", 3600.0)
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


def test_a_computer_that_slept_visits_at_once_however_long_the_coordinator_was_away(
    make: Callable[..., CoordinatorLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "INTERVAL_S", 3600.0)
    monkeypatch.setattr(background, "LONGEST_PAUSE_S", 3600.0)
    client = Client(away)
    with make(client) as link:
        eventually(lambda: link.away_since is not None)
        link.reconnect()
        eventually(lambda: client.visits == 2)
    assert client.closed >= 2, "by `reconnect`, before the second visit, and at the end"


def test_an_error_that_nobody_foresaw_does_not_end_the_link_and_is_told(
    make: Callable[..., CoordinatorLink], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(background, "INTERVAL_S", 0.01)
    told: list[Failure] = []
    planted = iter([KeyError("addresses"), ZeroDivisionError()])

    class Mistaken(Silent):
        def heard(self, answer: Announcement) -> None:
            for error in planted:
                raise error

    client = Client(lambda: None)
    with make(client, Mistaken(), on_failure=told.append):
        eventually(lambda: client.visits >= 5)
    assert [item.reason.partition(":")[0] for item in told] == ["KeyError", "ZeroDivisionError"]
    assert all(item.part == "coordinator-link" and not item.is_final for item in told)
    assert "Traceback" in caplog.text
