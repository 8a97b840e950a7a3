"""A host whose threads fail by a mistake of ours: it says so, goes on where it can, and else ends with an error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from coordinator import host as host_module
from coordinator.host import Host
from coordinator.host_screen import HostScreen
from coordinator.reports import Reports
from coordinator.uploads import Wanted
from lab.processes import eventually
from protocol.backoff import Backoff
from protocol.errors import PartFailed
from protocol.parts import MOST_FAILURES
from tests.kit.coordinator import start_host, write_run

PLANTED = """
import sys
from coordinator.reports import Reports
import coordinator.host, potluck
coordinator.host.TICK_S = 0.05
def settle(self):
    raise LookupError("planted")
Reports.settle = settle
sys.argv = ["potluck", "host", *sys.argv[1:]]
potluck.main()
"""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "TICK_S", 0.01)


def fails(times: int) -> Any:
    """A method that fails so often, and then does nothing."""
    left = [times]

    def method(*_: object) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise LookupError("planted")

    return method


def hurried(self: Backoff) -> float:
    """A pause that is next to none, however often it failed."""
    self.failures += 1
    return 0.01


def open_host(tmp_path: Path) -> Host:
    return start_host(write_run(tmp_path / "source"), tmp_path / "run")


def test_a_ticker_that_fails_is_started_again_and_the_status_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Reports, "settle", fails(2))
    host = open_host(tmp_path)
    try:
        eventually((tmp_path / "run" / "status.json").is_file)
        assert host.status().parts_failed == ("ticker: LookupError",)
        host.wait(0.1)
        HostScreen(as_json=False).status(host.status())
        assert "a part of the coordinator has failed: ticker: LookupError" in capsys.readouterr().err
    finally:
        host.stop()


@pytest.mark.parametrize(("owner", "name", "part"), [(Reports, "settle", "ticker"), (Wanted, "want", "publisher")])
def test_a_host_whose_ticker_or_publisher_keeps_failing_ends_with_an_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    impatient: None,
    caplog: pytest.LogCaptureFixture,
    owner: type,
    name: str,
    part: str,
) -> None:
    monkeypatch.setattr(Backoff, "failed", hurried)
    monkeypatch.setattr(owner, name, fails(10**6))
    host = open_host(tmp_path)
    try:
        with pytest.raises(PartFailed, match=f"{part}, has stopped: LookupError: planted"):
            host.wait(120)
        assert caplog.text.count("LookupError: planted\n") >= MOST_FAILURES
        assert "Traceback" in caplog.text
    finally:
        host.stop()


def test_the_command_ends_with_an_exit_code_of_its_own(tmp_path: Path) -> None:
    config = write_run(tmp_path / "source")
    done = subprocess.run(
        [sys.executable, "-c", PLANTED, str(config), "--folder", str(tmp_path / "run"), "--json"],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 5, done.stderr[-2000:]
    assert "error: a part of this program, ticker, has stopped: LookupError: planted" in done.stderr


def test_a_host_whose_server_has_ended_says_so_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ends:
        """A gRPC server that opens, and then fails."""

        def add_generic_rpc_handlers(self, handlers: object) -> None: ...

        def add_secure_port(self, address: str, credentials: object) -> int:
            return 4700

        async def start(self) -> None: ...

        async def wait_for_termination(self) -> None:
            raise LookupError("planted")

    monkeypatch.setattr("grpc.aio.server", lambda **_: Ends())
    host = open_host(tmp_path)
    try:
        with pytest.raises(PartFailed, match="server, has stopped: LookupError: planted"):
            host.wait(60)
        assert host.status().parts_failed == ("server: LookupError",)
    finally:
        host.stop()
