"""Leaving: by Ctrl-C, by a second one, by `potluck leave`; and what the owner can read of the peers of a home."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.processes import CARD_TOKENS_PER_S, WAIT_S, Community, LabProcess, free_ports
from lab.small_community import tiny_run
from lab.warm_start import WarmStart
from peer.disk.local_peers import ask_to_leave, find_peers
from peer.disk.run_lock import Process, RunLock, holder, start_of
from protocol.errors import InputError
from protocol.invite import Invite
from protocol.leaving import LeaveSignals

swarm = pytest.mark.swarm


@pytest.fixture
def community(tmp_path: Path, glass_dir: Path, plays: Path, starter: WarmStart) -> Iterator[Community]:
    """A run of two that goes on for ever."""
    config = tiny_run(tmp_path, glass_dir, plays, "wood", round_seconds=2.0, min_peers=2)
    with Community(tmp_path, config, starter=starter, fixed_ports=True, tokens_per_s=CARD_TOKENS_PER_S) as opened:
        yield opened


def command(community: Community, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "potluck", *arguments],
        capture_output=True, text=True, timeout=WAIT_S, cwd=community.folder, env=community.environment("no-owner"),
    )  # fmt: skip


@swarm
def test_peers_are_shown_and_leave_when_their_owner_says_so(community: Community) -> None:
    community.host()
    alice, bob, carol = peers = [community.peer(name) for name in ("alice", "bob", "carol")]
    for peer in peers:
        peer.wait_for("committed", members=3)
    community.note_sockets()

    home = str(community.home("alice"))
    (told,) = json.loads(command(community, "status", "--home", home, "--json").stdout)
    assert (told["name"], told["running"], told["pid"]) == ("wood", True, alice.pid)
    assert told["round"] >= 1 and told["rounds"][-1]["members"] >= 1
    assert f"running, process {alice.pid}" in command(community, "status", "--home", home).stdout

    done = command(community, "leave", "--home", home, "--run", "birch")
    assert done.returncode == 2 and "no run here is called 'birch'" in done.stderr and "wood" in done.stderr
    at = carol.round
    done = command(community, "leave", "--home", home, "--run", told["run"][:6])
    assert (done.returncode, done.stdout) == (0, f"wood (process {alice.pid}): left\n")
    assert alice.wait() == 0 and alice.find("step", step="left")
    community.check_nothing_left("alice")
    done = command(community, "leave", "--home", home)
    assert (done.returncode, done.stdout) == (0, "no peer runs here\n")

    now = max(bob.round, carol.round)
    for peer in (bob, carol):
        peer.wait_round(now + 2)
    assert all(event["took_part"] for event in carol.committed().values() if event["round"] > at)
    done = command(community, "leave", "--home", str(community.home("bob")), "--now")
    assert done.returncode == 0 and bob.wait() in (128 + signal.SIGINT, 0), "0: it had left already"
    community.check_nothing_left("bob")


@swarm
def test_a_copied_home_is_told_to_stop_and_the_peer_that_was_there_first_goes_on(community: Community) -> None:
    community.host()
    alice, bob = community.peer("alice"), community.peer("bob")
    for peer in (alice, bob):
        peer.wait_round(2)
    community.home("copy").mkdir()
    shutil.copy(community.home("alice") / "identity", community.home("copy") / "identity")
    copy = community.peer("copy")
    assert copy.wait() == 1
    assert "identity is in use on another computer" in copy.said and "potluck identity new" in copy.said
    alice.wait_for("waiting", key="identity-twin")
    at = max(alice.round, bob.round)
    for peer in (alice, bob):
        peer.wait_round(at + 2)
    assert all(event["took_part"] for number, event in alice.committed().items() if number > at)


@swarm
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_a_peer_at_once_and_nothing_stays_behind(
    community: Community, number: signal.Signals
) -> None:
    community.host()
    alice, bob = community.peer("alice"), community.peer("bob")
    bob.wait_round(1)
    community.note_sockets()
    bob.kill()  # whom alice now waits for, so that a farewell takes its time
    alice.send(number)
    alice.wait_for("step", step="leaving")
    had_left = alice.find("step", step="left")
    alice.send(number)
    assert alice.wait() in (128 + number, 0 if had_left else 128 + number)
    community.check_nothing_left("alice", "bob")


def test_a_second_signal_is_heard_in_the_middle_of_a_long_computation(tmp_path: Path) -> None:
    script = (
        "import time, torch\n"
        "from protocol.leaving import LeaveSignals\n"
        "with LeaveSignals(lambda: print('leaving', flush=True)) as leaving:\n"
        "    leaving.graceful = True\n"
        "    print('begun', flush=True)\n"
        "    while True: torch.ones(6000, 6000) @ torch.ones(6000, 6000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "leaving\n"
            process.send_signal(signal.SIGINT)
            assert process.wait(WAIT_S) == 128 + signal.SIGINT
        finally:
            process.kill()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_heard_at_any_instant_of_waiting_for_it(number: signal.Signals) -> None:
    """Also while the main thread holds the lock of what it waits for; on a busy machine that instant is long."""
    with LeaveSignals(lambda: None) as leaving:
        leaving.graceful = True
        with leaving.stop._cond:
            os.kill(os.getpid(), number)
        assert leaving.stop.wait(WAIT_S)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_there_are_others_ends_the_process_wherever_it_is_and_without_an_exception(
    number: signal.Signals,
) -> None:
    script = (
        "from protocol.leaving import LeaveSignals\n"
        "def deep(n):\n"
        "    try:\n"
        "        while True: [print('', end='', flush=True) for _ in range(n)]\n"
        "    finally: print('an exception came', flush=True)\n"
        "with LeaveSignals(lambda: print('leaving'), lambda: print('left', flush=True)):\n"
        "    print('begun', flush=True)\n"
        "    deep(100)\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "begun\n"
            process.send_signal(number)
            out, err = process.communicate(timeout=WAIT_S)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (128 + number, "left\n", "")


def test_ctrl_c_at_any_instant_of_a_start_is_no_traceback(tmp_path: Path, starter: WarmStart) -> None:
    invite = Invite(addresses=(f"127.0.0.1:{free_ports(1)[0]}",), run="a" * 64, tls="b" * 64, root="c" * 64)
    environment = os.environ | {"POTLUCK_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    for at_ms in (30, 60, 100, 200, 400):
        peer = LabProcess(
            "join", ["join", str(invite), "--yes", "--json"], tmp_path / f"{at_ms}.log", environment, starter
        )
        try:
            time.sleep(at_ms / 1000)
            assert peer.stop() in (128 + signal.SIGINT, -signal.SIGINT), at_ms
            assert not peer.said, at_ms
        finally:
            peer.kill()


@swarm
def test_a_newcomer_waits_for_the_coordinator_and_goes_on_when_it_is_there(community: Community) -> None:
    host = community.host()
    assert host.stop() == 0
    alice, bob = community.peer("alice"), community.peer("bob")
    for peer in (alice, bob):
        assert "coordinator" in peer.wait_for("waiting", key="coordinator-needed")["reason"]
    bob.send(signal.SIGINT)
    assert bob.wait() == 130, "interrupted before it had begun"
    community.host()
    alice.wait_for("step", step="finding-members")
    carol = community.peer("carol")
    carol.wait_for("committed", members=2)
    community.note_sockets()
    for peer in (alice, carol):
        assert peer.stop() == 0


@swarm
def test_a_coordinator_that_was_never_there_is_waited_for(tmp_path: Path, starter: WarmStart) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    invite = Invite(addresses=(address,), run="a" * 64, tls="b" * 64, root="c" * 64)
    environment = os.environ | {"POTLUCK_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    peer = LabProcess("join", ["join", str(invite), "--yes", "--json"], tmp_path / "join.log", environment, starter)
    try:
        assert address in peer.wait_for("waiting")["reason"]
        assert peer.stop() == 130
        assert "Traceback" not in peer.said
    finally:
        peer.kill()


# ---- the lock --------------------------------------------------------------------------------------------------------


def test_a_process_that_got_an_old_peers_number_is_sent_nothing(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        assert not Process(other.pid, "another start").signal(signal.SIGKILL)
        assert other.poll() is None
        assert Process(other.pid, start_of(other.pid)).signal(signal.SIGKILL)
        assert other.wait(WAIT_S) == -signal.SIGKILL
        assert not Process(other.pid, start_of(other.pid) or "gone").signal(signal.SIGKILL)


def test_a_lock_that_nobody_holds_names_nobody(tmp_path: Path) -> None:
    path = tmp_path / "runs" / ("ab" * 8) / "lock"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"pid": os.getpid(), "start": start_of(os.getpid())}))
    assert holder(path) is None
    (peer,) = find_peers(tmp_path)
    assert peer.process is None and peer.to_json()["running"] is False
    path.write_text("not JSON")
    lock = RunLock(path)
    assert holder(path) == Process(os.getpid(), start_of(os.getpid()))
    with pytest.raises(InputError, match="another peer of this run"):
        RunLock(path)
    lock.close()


def test_a_lock_whose_holder_does_not_say_who_it_is_is_told(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="does not say"):
            holder(path)


def test_a_peer_that_does_not_leave_in_time_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / ("ab" * 8)
    folder.mkdir(parents=True)
    script = (
        "import signal, sys, time\nfrom pathlib import Path\nfrom peer.disk.run_lock import RunLock\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "lock = RunLock(Path(sys.argv[1]))\nprint('held', flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(folder / "lock")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        (peer,) = find_peers(tmp_path)
        assert not ask_to_leave(peer, now=True, timeout_s=0.5)
        process.kill()
        process.wait(WAIT_S)
        assert ask_to_leave(peer, now=False, timeout_s=5)
