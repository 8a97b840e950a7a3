"""A peer whose swarm fails starts it again, and ends when that is of no use; its parts have names that people read."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from peer import stopping
from peer.net.swarm import DaemonEnded
from peer.screen.json_lines import JsonScreen
from peer.screen.messages import text
from peer.screen.screen import tell_failure
from peer.stopping import start_again
from protocol.errors import PartFailed, PotluckError
from protocol.parts import MOST_FAILURES, Failure

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # hivemind's way to find p2pd


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "FIRST_PAUSE_S", 1e-6)
    monkeypatch.setattr(stopping, "LONGEST_PAUSE_S", 1e-6)


class Stretches:
    """Ends with each of these errors in turn, then well; after each, one more round is on disk, if that is so."""

    def __init__(self, ends: list[PotluckError], *, a_round_each_time: bool = False) -> None:
        self._ends: Iterator[PotluckError] = iter(ends)
        self.starts = self.round = 0
        self._rounds = int(a_round_each_time)

    def once(self) -> None:
        self.starts += 1
        self.round += self._rounds
        for error in self._ends:
            raise error

    def run(self, stop: threading.Event | None = None) -> None:
        start_again(self.once, lambda: self.round, JsonScreen().problem, stop or threading.Event())


@pytest.mark.parametrize("a_round_each_time", [False, True])
def test_a_swarm_that_fails_starts_again_and_after_some_times_without_a_round_the_peer_ends(
    a_round_each_time: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = [Failure("clock", "LookupError: planted").error() for _ in range(3 * MOST_FAILURES)]
    stretches = Stretches(list(planted), a_round_each_time=a_round_each_time)
    if a_round_each_time:
        stretches.run()
        assert stretches.starts == 3 * MOST_FAILURES + 1
    else:
        with pytest.raises(PartFailed, match="clock") as caught:
            stretches.run()
        assert stretches.starts == MOST_FAILURES and caught.value.exit_code == 5
    assert text("swarm-restarts", "en") in capsys.readouterr().out


def test_a_network_daemon_that_dies_often_is_started_again_each_time() -> None:
    stretches = Stretches([DaemonEnded("p2pd has ended") for _ in range(3 * MOST_FAILURES)])
    stretches.run()
    assert stretches.starts == 3 * MOST_FAILURES + 1


def test_who_is_asked_to_stop_does_not_start_again() -> None:
    stop, stretches = threading.Event(), Stretches([DaemonEnded("p2pd has ended")])
    stop.set()
    stretches.run(stop)
    assert stretches.starts == 1


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize(
    "part",
    ["clock", "gossip", "search", "swarm", "p2pd-watch", "task", "coordinator-link", "signals", "save-optimizer"],
)
def test_each_part_of_a_peer_has_a_name_in_words(part: str, language: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert text(f"part-{part}", language)
    tell_failure(JsonScreen(), Failure(part, "LookupError: planted"))
    assert "LookupError: planted" in capsys.readouterr().out
