"""A stranger, or one member of many, cannot take the run, stop it, or fill it: each test is an attack that worked.

What rules decide is tested over the coordinator's rules and a real store, with a clock of the test's own; what a
stranger does with a connection, against a real host on loopback.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from coordinator.admission import Admission
from coordinator.host import Host
from peer.link.client import CoordinatorClient
from protocol import coordinator_pb2, coordinator_pb2_grpc
from protocol.envelope import Envelope
from protocol.errors import NetworkError, RefusedError
from protocol.invite import Invite
from protocol.keys import PeerIdentity, fingerprint, load_public_pem
from protocol.rpc import TLS_NAME, enroll_message
from tests.kit.coordinator import Member, Office, Swarm, start_host, write_run

NOW = 1_763_769_600.0  # Unix seconds
DAY_S = 86_400.0
SILENT_CALLS = 48  # as many as the service has threads
STRANGER = "127.0.0.9"  # an address of this machine that no honest member has
MOST_NEW = 100  # identities that one address may make at one moment


# ---- one key takes the run -------------------------------------------------------------------------------------------


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    """Of a run in which nobody makes a round with fewer than three."""
    office = Office(tmp_path, rules=2, min_peers=3)
    yield office
    office.close()


def strangers(office: Office, count: int) -> Swarm:
    """New members of the same run, who agree among themselves on states of their own."""
    return beside(office, [office.member() for _ in range(count)])


def beside(office: Office, members: list[Member]) -> Swarm:
    """Members that stand where the run's own do."""
    swarm = dataclasses.replace(office.swarm, members=members, states={})
    swarm.last = office.swarm.last
    return swarm


def report(office: Office, swarm: Swarm, rounds: int, now: float = NOW) -> None:
    """Have them make rounds from where they stand, and report each; whatever the coordinator says to that."""
    for number in range(rounds):
        data = swarm.round(seed=1000 + number).to_bytes()
        with contextlib.suppress(NetworkError):  # no room for what cannot be decided
            office.reports.submit(data, swarm.members[0].peer_id, now + number)


def wait_a_day(office: Office) -> None:
    for now in (NOW + 60, NOW + 3600, NOW + DAY_S):
        office.reports.settle(now)


def test_rounds_that_one_key_signs_alone_never_enter_the_ledger(office: Office) -> None:
    report(office, strangers(office, 1), rounds=5)
    wait_a_day(office)
    assert office.reports.tip().round == 0 and office.credits() == []


def test_run_goes_on_after_one_key_has_reported_rounds_of_its_own(office: Office) -> None:
    report(office, strangers(office, 1), rounds=5)
    for number in range(1, 4):
        answer = office.submit(office.swarm.round(seed=number))
        assert answer.accepted, answer.reason
    assert office.reports.tip().round == 3
    assert office.credits() == office.expected_credits([1, 2, 3])


@pytest.mark.parametrize("count", [3, 20])
def test_identities_of_one_stranger_do_not_begin_the_run_however_many(office: Office, count: int) -> None:
    """Enough for `sync.min_peers`, and none of them is whom the coordinator has named."""
    report(office, strangers(office, count), rounds=2)
    wait_a_day(office)
    assert office.reports.tip().round == 0 and office.credits() == []
    answer = office.submit(office.swarm.round(seed=1))
    assert answer.accepted, answer.reason


# ---- a minority takes it by waiting ----------------------------------------------------------------------------------


@pytest.fixture(params=[1, 2], ids=["old rules", "new rules"])
def begun(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Office]:
    """A run of three members that have agreed on its first round."""
    office = Office(tmp_path, rules=request.param)
    answer = office.submit(office.swarm.round(seed=1))
    assert answer.accepted, answer.reason
    yield office
    office.close()


def minority(office: Office, who: str) -> Swarm:
    """Those that go on without the majority of the first round's weight."""
    swarm = {
        "a newcomer": strangers(office, 1),
        "twenty newcomers": strangers(office, 20),
        "one of three": beside(office, office.swarm.members[:1]),
    }[who]
    if who == "one of three":
        swarm.members += [office.member(), office.member()]
    return swarm


@pytest.mark.parametrize("who", ["a newcomer", "twenty newcomers", "one of three"])
def test_minority_s_round_never_enters_the_ledger_however_long_it_waits(begun: Office, who: str) -> None:
    agreed = begun.reports.tip()
    report(begun, minority(begun, who), rounds=3, now=NOW + 1)
    wait_a_day(begun)
    assert begun.reports.tip() == agreed
    assert begun.credits() == begun.expected_credits([1])


@pytest.mark.parametrize("who", ["a newcomer", "twenty newcomers", "one of three"])
def test_members_round_is_taken_a_day_after_a_minority_s(begun: Office, who: str) -> None:
    report(begun, minority(begun, who), rounds=3, now=NOW + 1)
    wait_a_day(begun)
    answer = begun.submit(begun.swarm.round(seed=2))
    assert answer.accepted, answer.reason
    assert begun.credits() == begun.expected_credits([1, 2])


# ---- host:port is an invitation --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """One whose run.toml says nothing of a code."""
    folder = tmp_path_factory.mktemp("host")
    host = start_host(write_run(folder / "source", code=None), folder / "run")
    yield host
    host.stop()


def shown_certificate(address: str) -> bytes:
    """DER, from whoever asks for it."""
    name, _, port = address.rpartition(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((name, int(port)), 10) as plain, context.wrap_socket(plain) as secure:
        der = secure.getpeercert(binary_form=True)
    assert der is not None
    return der


def channel_to(address: str, der: bytes) -> grpc.Channel:
    """TLS with whatever certificate was shown."""
    pem = ssl.DER_cert_to_PEM_cert(der).encode()
    options = [
        ("grpc.ssl_target_name_override", TLS_NAME),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
    ]
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(root_certificates=pem), options=options)


def guessed_invite(address: str) -> Invite:
    """All that an invite without a code has in it, from host and port alone. Raises: grpc.RpcError: it is not told."""
    der = shown_certificate(address)
    with channel_to(address, der) as channel:
        reply = coordinator_pb2_grpc.CoordinatorStub(channel).GetRun(coordinator_pb2.GetRunRequest(), timeout=15)
    card = json.loads(Envelope.from_bytes(reply.run_card).payload)
    root = fingerprint(load_public_pem(reply.root_public_key))
    return Invite(addresses=(address,), run=card["run"], tls=hashlib.sha256(der).hexdigest(), root=root)


def test_stranger_who_knows_host_and_port_is_not_admitted(host: Host) -> None:
    with (
        pytest.raises((RefusedError, grpc.RpcError)),
        CoordinatorClient(guessed_invite(host.invite.addresses[0])) as client,
    ):
        client.enroll(PeerIdentity.generate())


def test_whoever_has_the_invite_is_admitted(host: Host) -> None:
    with CoordinatorClient(host.invite) as client:
        assert client.enroll(PeerIdentity.generate()).certificate


class Door:
    """Admission alone, at one moment: what each address gets of it."""

    def __init__(self, office: Office) -> None:
        self._run = office.card.run
        self._admission = Admission(office.store, office.membership_key, office.card.run, "wood", lifetime_s=3600)

    def enroll(self, who: PeerIdentity, address: str, now: float) -> str:
        challenge = self._admission.challenge(who.peer_id, now)
        signature = who.sign(enroll_message(self._run, challenge))
        return self._admission.enroll(who.peer_id, challenge, signature, "wood", address, now)

    def flood(self, address: str, now: float, count: int = 2 * MOST_NEW) -> int:
        """How many of so many new identities are admitted."""
        told: Counter[bool] = Counter()
        for _ in range(count):
            try:
                told[bool(self.enroll(PeerIdentity.generate(), address, now))] += 1
            except (RefusedError, NetworkError) as error:
                assert error.hint or error.message
                told[False] += 1
        return told[True]


@pytest.fixture
def door(office: Office) -> Door:
    return Door(office)


def test_one_address_does_not_make_new_members_without_end(door: Door) -> None:
    assert 0 < door.flood("ipv4:203.0.113.7", NOW) <= MOST_NEW


def test_flood_from_one_address_keeps_no_other_out(door: Door) -> None:
    door.flood("ipv4:203.0.113.7", NOW)
    assert door.enroll(PeerIdentity.generate(), "ipv4:203.0.113.8", NOW)


def test_member_renews_from_an_address_that_makes_too_many(door: Door) -> None:
    me = PeerIdentity.generate()
    door.enroll(me, "ipv4:203.0.113.7", NOW)
    door.flood("ipv4:203.0.113.7", NOW)
    assert door.enroll(me, "ipv4:203.0.113.7", NOW)


def test_address_that_made_too_many_may_make_another_an_hour_later(door: Door) -> None:
    door.flood("ipv4:203.0.113.7", NOW)
    assert door.enroll(PeerIdentity.generate(), "ipv4:203.0.113.7", NOW + 3600)


# ---- silent calls ----------------------------------------------------------------------------------------------------


class Forwarder:
    """Passes connections on from another address of this machine."""

    def __init__(self, address: str, source: str) -> None:
        host, _, port = address.rpartition(":")
        self._to, self._source = (host, int(port)), source
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Forwarder:
        self._start(self._serve)
        return self

    def __exit__(self, *_: object) -> None:
        for item in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                item.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for item in (self._listener, *self._open):
            item.close()

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _serve(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
                self._open.append(here)
                there = socket.create_connection(self._to, 10, source_address=(self._source, 0))
            except OSError:
                return
            there.settimeout(None)
            self._open.append(there)
            self._start(self._pump, here, there)
            self._start(self._pump, there, here)

    @staticmethod
    def _pump(source: socket.socket, to: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                to.sendall(data)
        for end in (source, to):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class SilentCalls:
    """Calls of GetRun whose message never comes, each opened anew when it is ended."""

    def __init__(self, address: str, calls: int, connections: int) -> None:
        self._over = threading.Event()
        self.opened = threading.Semaphore(0)
        der = shown_certificate(address)
        self._channels = [channel_to(address, der) for _ in range(connections)]
        self._threads = [
            threading.Thread(target=self._hold, args=(self._channels[number % connections],), daemon=True)
            for number in range(calls)
        ]

    def __enter__(self) -> SilentCalls:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for channel in self._channels:
            channel.close()
        for thread in self._threads:
            thread.join(10)

    def _hold(self, channel: grpc.Channel) -> None:
        silent = channel.stream_unary(  # called as if it took a stream: its headers go out, its message never does
            "/potluck.v1.Coordinator/GetRun", request_serializer=bytes, response_deserializer=bytes
        )
        while not self._over.is_set():
            with contextlib.suppress(grpc.RpcError, ValueError):  # ended by the host; the channel is closed
                call = silent.future(self._never())
                self.opened.release()
                call.result()
            self._over.wait(0.05)

    def _never(self) -> Iterator[bytes]:
        self._over.wait()
        yield from ()


@pytest.mark.parametrize("connections", [1, 8])
def test_calls_that_say_nothing_keep_no_honest_call_waiting(host: Host, connections: int) -> None:
    with (
        Forwarder(host.invite.addresses[0], STRANGER) as through,
        SilentCalls(through.address, SILENT_CALLS, connections) as silent,
    ):
        for _ in range(SILENT_CALLS):
            assert silent.opened.acquire(timeout=30)
        for _ in range(3):  # with the product's own deadline
            with CoordinatorClient(host.invite) as client:
                assert client.get_run().card.run == host.invite.run
