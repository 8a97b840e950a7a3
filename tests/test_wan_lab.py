"""The WAN lab with real packets: sockets of the hosts' own, and processes that must not outlive it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from lab import REPOSITORY
from lab.wan.lab import Host, WanLab, available
from lab.wan.namespace import processes_in

WAIT_S = 20.0
SILENCE_S = 0.3  # after which nothing more comes over a line without delay
HEADERS_BYTES = 28  # of IPv4 and UDP
SETSID_SLEEP = (
    "import subprocess as s; s.Popen(['sleep', '1000'], start_new_session=True); s.Popen(['sleep', '1000']).wait()"
)


@pytest.fixture(autouse=True)
def _lab_can_be_made() -> None:
    if reason := available():
        pytest.skip(f"no WAN lab here: {reason}")


@contextlib.contextmanager
def udp(lab: WanLab, *hosts: str) -> Iterator[list[socket.socket]]:
    """A bound UDP socket on each of these hosts."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(lab.socket(host, socket.SOCK_DGRAM)) for host in hosts]
        for host, item in zip(hosts, sockets, strict=True):
            item.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            item.bind((lab.address(host), 0))
            item.settimeout(WAIT_S)
        yield sockets


@contextlib.contextmanager
def tcp(lab: WanLab, client: str, server: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection: (the client's end, the server's)."""
    with lab.socket(server) as listener, lab.socket(client) as one:
        listener.bind((lab.address(server), 0))
        listener.listen()
        for item in (listener, one):
            item.settimeout(WAIT_S)
        one.connect(listener.getsockname())
        other, _ = listener.accept()
        with other:
            other.settimeout(WAIT_S)
            yield one, other


def arrives(source: socket.socket, to: socket.socket, wait_s: float = SILENCE_S) -> bool:
    """Whether a datagram gets from one socket to the other; older ones are thrown away."""
    mark = os.urandom(8)
    source.sendto(mark, to.getsockname())
    deadline = time.monotonic() + wait_s
    while select.select([to], [], [], max(0.0, deadline - time.monotonic()))[0]:
        if to.recv(2048) == mark:
            return True
    return False


def goes(source: socket.socket, to: socket.socket) -> bool:
    """`arrives`, where it should: with time for a busy machine."""
    return arrives(source, to, WAIT_S)


def transfer_s(source: socket.socket, to: socket.socket, size: int) -> float:
    """How long this many bytes take over a connection."""
    began = time.monotonic()
    sender = threading.Thread(target=lambda: source.sendall(bytes(size)))
    sender.start()
    left = size
    while left:
        got = len(to.recv(1 << 16))
        assert got, "the connection broke"
        left -= got
    sender.join(WAIT_S)
    return time.monotonic() - began


# ---- lines -----------------------------------------------------------------------------------------------------------


def round_trip_s(one: socket.socket, other: socket.socket) -> float:
    began = time.monotonic()
    assert goes(one, other) and goes(other, one)
    return time.monotonic() - began


def test_a_round_trip_takes_both_delays_both_ways() -> None:
    with (
        WanLab({"a": Host(delay_ms=5), "b": Host(delay_ms=20, jitter_ms=2), "c": Host(delay_ms=200)}) as lab,
        udp(lab, "a", "b", "c") as (a, b, c),
    ):
        near, far = [round_trip_s(a, b) for _ in range(10)], round_trip_s(a, c)
        print(f"round trips, 50 ms: {1e3 * min(near):.2f} to {1e3 * max(near):.2f} ms; lab: {lab.strain()}")
        assert min(near) >= 0.050
        assert far >= 0.410
        assert min(near) < far


@pytest.mark.parametrize(("client", "rate"), [("a", 8e6), ("b", 24e6)])
def test_a_line_carries_no_more_than_its_rate(client: str, rate: float) -> None:
    server, size = {"a": "b", "b": "a"}[client], 1_000_000
    with WanLab({"a": Host(up_mbit=8, down_mbit=24), "b": Host()}) as lab, tcp(lab, client, server) as ends:
        took_s = transfer_s(*ends, size)
        print(f"{client} to {server}: {8 * size / took_s / 1e6:.2f} of {rate / 1e6:.0f} Mbit/s; lab: {lab.strain()}")
        assert took_s >= 0.9 * 8 * size / rate


def test_a_lossy_line_loses_the_same_packets_with_the_same_seed() -> None:
    def survivors(seed: int) -> list[int]:
        with WanLab({"a": Host(loss=0.3), "b": Host()}, seed=seed) as lab, udp(lab, "a", "b") as (a, b):
            for number in range(400):
                a.sendto(number.to_bytes(4, "big"), b.getsockname())
            lab.set("a", loss=0.0)
            a.sendto(b"the end", b.getsockname())
            return [int.from_bytes(data, "big") for data in iter(lambda: b.recv(2048), b"the end")]

    found = survivors(1)
    assert 200 <= len(found) <= 360
    assert found == sorted(found)
    assert found == survivors(1)
    assert found != survivors(2)


def test_a_firewall_lets_answers_in_and_nothing_else() -> None:
    with WanLab({"in": Host(firewall_s=60), "out": Host()}) as lab, udp(lab, "in", "out", "out") as (a, b, other):
        assert not arrives(b, a)
        assert goes(a, b)
        assert goes(b, a)
        assert not arrives(other, a), "another port of the same host"
        with tcp(lab, "in", "out") as (one, two):
            assert transfer_s(two, one, 100_000) > 0
        with pytest.raises(TimeoutError), tcp_within(lab, "out", "in", SILENCE_S):
            pass


@contextlib.contextmanager
def tcp_within(lab: WanLab, client: str, server: str, wait_s: float) -> Iterator[None]:
    with lab.socket(server) as listener, lab.socket(client) as one:
        listener.bind((lab.address(server), 0))
        listener.listen()
        one.settimeout(wait_s)
        one.connect(listener.getsockname())
        yield


# ---- cables ----------------------------------------------------------------------------------------------------------


def test_a_connection_survives_a_cable_that_is_cut_and_restored() -> None:
    with WanLab({"a": Host(), "b": Host()}) as lab, tcp(lab, "a", "b") as (a, b), udp(lab, "a", "b") as (ua, ub):
        transfer_s(a, b, 1000)
        lab.cut("b")
        a.sendall(b"after the storm")
        assert not arrives(ua, ub)
        assert not select.select([b], [], [], 0)[0]
        lab.restore("b")
        assert b.recv(100) == b"after the storm"
        assert goes(ua, ub)


def test_splits_and_cut_pairs_keep_apart_whom_they_say() -> None:
    names = ("a", "b", "c")
    with WanLab({name: Host() for name in names}) as lab, udp(lab, *names) as (a, b, c):
        lab.split([["a", "b"], ["c"]])
        assert goes(a, b) and goes(b, a)
        assert not arrives(a, c) and not arrives(c, b)
        lab.heal()
        assert goes(a, c) and goes(c, b)
        lab.cut_pair("a", "c")
        assert not arrives(a, c) and goes(a, b) and goes(b, c)
        lab.restore_pair("a", "c")
        assert goes(c, a)


def test_values_can_be_changed_while_it_runs_and_mistakes_are_told() -> None:
    with WanLab({"a": Host(), "b": Host()}) as lab, udp(lab, "a", "b") as (a, b):
        lab.set("b", loss=1.0)
        assert not arrives(a, b)
        lab.set("b", loss=0.0, delay_ms=50)
        assert round_trip_s(a, b) >= 0.100
        for mistake in (lambda: lab.set("b", lost=1.0), lambda: lab.set("b", loss=2.0), lambda: lab.cut("nobody")):
            with pytest.raises(ValueError, match=r"lost|loss|nobody"):
                mistake()
        assert goes(a, b)


def test_every_packet_and_byte_on_an_interface_is_counted() -> None:
    with WanLab({"a": Host(loss=0.5), "b": Host()}) as lab, udp(lab, "a", "b") as (a, b):
        for _ in range(100):
            a.sendto(bytes(500), b.getsockname())
        lab.set("a", loss=0.0)
        assert goes(a, b)
        one, other = lab.counters()["a"], lab.counters()["b"]
        assert (one.packets_up, one.packets_down) == (101, 0)
        assert one.bytes_up == 100 * (500 + HEADERS_BYTES) + 8 + HEADERS_BYTES
        assert 0 < one.packets_dropped < 100
        assert other.packets_down + one.packets_dropped == 101
        assert other.bytes_down == (other.packets_down - 1) * (500 + HEADERS_BYTES) + 8 + HEADERS_BYTES


# ---- alone, and gone without a trace ---------------------------------------------------------------------------------


def test_two_labs_at_once_share_addresses_and_nothing_else() -> None:
    hosts = {"a": Host(), "b": Host()}
    with WanLab(hosts) as one, WanLab(hosts) as two, udp(one, "a", "b") as (a, b), udp(two, "a", "b") as (c, d):
        assert one.address("a") == two.address("a")
        assert goes(a, b) and goes(c, d)
        one.cut("a")
        assert not arrives(a, b) and goes(c, d)
        assert two.counters()["b"].packets_down == 2


def test_nothing_leads_out_of_the_lab() -> None:
    with WanLab({"a": Host()}) as lab, lab.socket("a") as way_out, socket.create_server(("127.0.0.1", 0)) as outside:
        with pytest.raises(OSError) as told:
            way_out.connect(("192.0.2.1", 9))
        assert told.value.errno == errno.ENETUNREACH
        with lab.socket("a") as to_loopback, pytest.raises(ConnectionRefusedError):
            to_loopback.connect(outside.getsockname())


def inodes_of(lab: WanLab) -> list[int]:
    return [os.stat(lab.namespace(name)).st_ino for name in ("a", "b")]


def holders(inodes: Sequence[int]) -> list[str]:
    """Every process in these namespaces, and every descriptor that keeps one of them."""
    found = [f"/proc/{pid}" for pid in processes_in(inodes)]
    for path in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if path.readlink().name in {f"net:[{inode}]" for inode in inodes}:
                found.append(str(path))
    return found


def wait_gone(inodes: Sequence[int], forwarder: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while (left := holders(inodes)) or os.path.exists(f"/proc/{forwarder}/exe"):
        assert time.monotonic() < deadline, f"left behind: {left or forwarder}"
        time.sleep(0.05)


def wait_inside(inode: int, count: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while len(processes_in([inode])) < count:
        assert time.monotonic() < deadline, "the processes did not start"
        time.sleep(0.02)


def test_leaving_ends_all_processes_inside_and_leaves_nothing() -> None:
    with WanLab({"a": Host(), "b": Host()}) as lab:
        inodes, forwarder = inodes_of(lab), lab.forwarder_pid
        process = lab.run("a", [sys.executable, "-c", SETSID_SLEEP])
        wait_inside(inodes[0], 3)
    assert process.poll() is not None
    assert holders(inodes) == []
    assert not os.path.exists(f"/proc/{forwarder}")


def test_kill_9_of_the_owner_leaves_nothing() -> None:
    owner = (
        "import json, os, sys, time\n"
        "from lab.wan.lab import Host, WanLab\n"
        "with WanLab({'a': Host(), 'b': Host()}) as lab:\n"
        f"    lab.run('a', [sys.executable, '-c', {SETSID_SLEEP!r}])\n"
        "    inodes = [os.stat(lab.namespace(name)).st_ino for name in ('a', 'b')]\n"
        "    print(json.dumps([inodes, lab.forwarder_pid]), flush=True)\n"
        "    time.sleep(1000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", owner], stdout=subprocess.PIPE, cwd=REPOSITORY) as process:
        try:
            assert process.stdout is not None
            inodes, forwarder = json.loads(process.stdout.readline())
            wait_inside(inodes[0], 3)
            assert holders(inodes)
        finally:
            process.kill()
    wait_gone(inodes, forwarder)


def test_a_lab_whose_forwarder_dies_says_so_and_still_leaves_nothing() -> None:
    with WanLab({"a": Host(), "b": Host()}) as lab:
        inodes, forwarder = inodes_of(lab), lab.forwarder_pid
        lab.run("b", ["sleep", "1000"])
        os.kill(forwarder, 9)
        with pytest.raises(RuntimeError, match="has ended"):
            lab.counters()
    wait_gone(inodes, forwarder)
