"""A stranger who knows host and port is not let in; calls that say nothing keep nobody out. A real host on loopback."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import ssl
import threading
from collections.abc import Iterator

import grpc
import pytest

from coordinator.host import Host
from peer.link.client import CoordinatorClient
from protocol import coordinator_pb2, coordinator_pb2_grpc
from protocol.envelope import Envelope
from protocol.errors import RefusedError
from protocol.invite import Invite
from protocol.keys import PeerIdentity, fingerprint, load_public_pem
from protocol.rpc import TLS_NAME
from tests.kit.coordinator import start_host, write_run

SILENT_CALLS = 48  # as many as the service has threads
STRANGER = "127.0.0.9"  # an address of this machine that no honest member has


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
