"""A host as a process, and its rendezvous: what a kill leaves is gone on with, and no process is left behind."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from coordinator.rendezvous import Rendezvous
from coordinator.store.database import Store
from lab.processes import WAIT_S, LabProcess
from lab.warm_start import WarmStart
from peer.disk.outbox import Outbox
from peer.link.client import CoordinatorClient
from peer.training.genesis import load_state
from protocol.errors import CoordinatorAway
from protocol.invite import Invite
from protocol.keys import PeerIdentity
from protocol.ledger_entry import CreditEntry, parse_entry
from tests.kit.coordinator import Swarm, start_host, write_run


@contextmanager
def host_process(config: Path, folder: Path, starter: WarmStart | None) -> Iterator[LabProcess]:
    """`potluck host` in a process of its own; a starter spares it the imports."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "POTLUCK_HOME": str(folder.parent / "user")}
    log = folder.with_name(f"host-{time.monotonic_ns()}.log")
    part = LabProcess("host", ["host", str(config), "--folder", str(folder), "--json"], log, environment, starter)
    try:
        yield part
    finally:
        part.kill()


def invite_of(host: LabProcess) -> Invite:
    return Invite.parse(host.wait_for("started")["invite"])


def credits_in(folder: Path) -> Counter[tuple[int, str]]:
    """(round, peer id) -> how many credit leaves."""
    store = Store(folder / "ledger.db")
    with store.reading() as tables:
        entries = [parse_entry(data) for _, data in tables.log.leaves()]
    store.close()
    return Counter((entry.round, entry.peer_id) for entry in entries if isinstance(entry, CreditEntry))


@pytest.mark.swarm
def test_every_claim_is_in_the_ledger_once_though_the_host_is_killed_again_and_again(
    tmp_path: Path, starter: WarmStart
) -> None:
    """SIGKILL while reports are being written; the peers' outboxes bring what was not answered."""
    config, folder = write_run(tmp_path / "source", rounds=0, every=10**6), tmp_path / "run"
    swarm: Swarm | None = None
    outbox, made = Outbox(tmp_path / "outbox"), 0
    for kill_after in (8, 3, None):
        with host_process(config, folder, starter) as host, CoordinatorClient(invite_of(host)) as client:
            if swarm is None:
                genesis = load_state(folder / "checkpoints" / "step-000000" / "model")
                swarm = Swarm.joined(client, client.get_run(), genesis)
            token = swarm.members[0].certificate
            for _ in range(12):
                made += 1
                outbox.put(made, swarm.round(seed=made).to_bytes())
            if kill_after is None:
                outbox.drain(client, token)
                assert len(client.receipts(token)) == made
                assert host.stop(signal.SIGTERM) == 0
                continue
            kill = threading.Timer(0.004 * kill_after, host.kill)
            kill.start()
            with pytest.raises(CoordinatorAway):
                while True:
                    outbox.drain(client, token)
                    client.announce(token)
            kill.join(timeout=60)
    assert len(outbox) == 0 and not (tmp_path / "outbox" / "refused").exists()
    expected = {(number, member.peer_id): 1 for number in range(1, made + 1) for member in swarm.members}
    assert credits_in(folder) == Counter(expected)


@pytest.mark.swarm
def test_first_start_that_was_killed_begins_again(tmp_path: Path, starter: WarmStart) -> None:
    config, folder = write_run(tmp_path / "source"), tmp_path / "run"
    for wait_for in ("run.json", "ledger.db"):
        with host_process(config, folder, starter) as host:
            deadline = time.monotonic() + WAIT_S
            while not (folder / wait_for).exists():
                assert time.monotonic() < deadline
                time.sleep(0.001)
            host.kill()
    host = start_host(config, folder)
    try:
        with CoordinatorClient(host.invite) as client:
            assert client.enroll(PeerIdentity.generate()).certificate
    finally:
        host.stop()


@pytest.mark.swarm
def test_killed_host_leaves_no_process_behind(tmp_path: Path) -> None:
    """The rendezvous and its libp2p daemon go when the host goes, and peers were told where it was."""
    with host_process(write_run(tmp_path / "source"), tmp_path / "run", None) as host:
        with CoordinatorClient(invite_of(host)) as client:
            addresses = client.enroll(PeerIdentity.generate()).swarm_addresses
            assert addresses and all("/p2p/" in address for address in addresses)
        children = psutil.Process(host.pid).children(recursive=True)
        assert children
        host.kill()
        gone, left = psutil.wait_procs(children, timeout=60)
        assert len(gone) == len(children) and left == []


CHILD = """
import json, sys, time
from protocol.keys import PeerIdentity
print(json.dumps({"addresses": ["/ip4/127.0.0.1/tcp/1/p2p/" + PeerIdentity.generate().peer_id]}), flush=True)
sys.stdin.read()
open(sys.argv[1], "w").close()
"""


def test_rendezvous_ends_when_the_host_lets_go_of_it(tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    command = [sys.executable, "-c", CHILD, str(ended)]
    with Rendezvous(command, tmp_path / "log") as rendezvous:
        assert rendezvous.wait_ready(60)
        assert rendezvous.addresses()[0].startswith("/ip4/127.0.0.1/tcp/1/p2p/")
    assert ended.exists() and rendezvous.addresses() == []


def test_rendezvous_that_dies_is_started_again(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD.replace("sys.stdin.read()", "time.sleep(0.2)"), str(tmp_path / "ended")]
    with Rendezvous(command, tmp_path / "log") as rendezvous:
        seen: set[str] = set()
        deadline = time.monotonic() + 60
        while len(seen) < 2:
            assert time.monotonic() < deadline
            seen.update(rendezvous.addresses())
            time.sleep(0.01)


@pytest.mark.parametrize("program", ["import sys; sys.exit(1)", 'print(\'{"addresses": ["nonsense"]}\', flush=True)'])
def test_host_goes_on_without_a_rendezvous(tmp_path: Path, program: str, caplog: pytest.LogCaptureFixture) -> None:
    with Rendezvous([sys.executable, "-c", program], tmp_path / "log") as rendezvous:
        assert not rendezvous.wait_ready(60)
        assert rendezvous.addresses() == []
    assert "through the coordinator" in caplog.text
