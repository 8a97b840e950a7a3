"""Calls that wait, stand still or come in masses keep nobody out: the real server, a service of sleepers."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from coordinator import tls
from coordinator.door import Limits
from coordinator.places import Places
from coordinator.server import Server
from coordinator.service import CoordinatorService
from protocol import coordinator_pb2 as pb
from protocol import coordinator_pb2_grpc
from protocol.errors import NetworkError, RefusedError
from protocol.rpc import PART_BYTES, TLS_NAME

LIMITS = Limits(
    calls=12,
    calls_each=8,
    transfers=3,
    transfers_each=2,
    request_s=0.5,
    answer_s=90,  # longer than a test waits
    fetch_s=90,
    idle_s=0.5,
    threads_each=2,
)
WAIT_S = 30.0


class Sleepers:
    """A service whose work is waiting."""

    upload_s = reveal_s = 90.0

    def __init__(self) -> None:
        self.go_on, self.working, self.most = threading.Event(), 0, 0
        self.transfers = Places(total=100, each=2)
        self.uploads: list[str] = []
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Callable[[Any, str], Any]:
        if name not in pb.DESCRIPTOR.services_by_name["Coordinator"].methods_by_name:
            raise AttributeError(name)
        return lambda request, network: getattr(pb, f"{name}Reply")()

    def GetReceipts(self, request: Any, network: str) -> Any:
        """Takes a thread until it is told to go on."""
        with self._lock:
            self.working += 1
            self.most = max(self.most, self.working)
        self.go_on.wait(WAIT_S)
        with self._lock:
            self.working -= 1
        return pb.GetReceiptsReply()

    def GetAgreement(self, request: Any, network: str) -> Any:
        return pb.GetAgreementReply(agreement=bytes(8 << 20))

    def GetChallenge(self, request: Any, network: str) -> Any:
        raise RefusedError("no", "never")

    def FetchFile(self, request: Any, network: str) -> tuple[str, Iterator[bytes]]:
        return request.certificate, iter([bytes(PART_BYTES)] * 64)

    def UploadState(self, first: Any, network: str, rest: Iterator[Any]) -> Any:
        try:
            self.uploads.append(f"{sum(len(part.data) for part in rest)} bytes")
        except NetworkError as error:
            self.uploads.append(str(error))
            raise
        return pb.UploadStateReply(accepted=True)


@pytest.fixture
def sleepers() -> Sleepers:
    return Sleepers()


@pytest.fixture
def limits() -> Limits:
    return LIMITS


@pytest.fixture
def server(tmp_path: Path, sleepers: Sleepers, limits: Limits) -> Iterator[Server]:
    identity = tls.load_or_create(tmp_path)
    with Server(cast(CoordinatorService, sleepers), identity, "127.0.0.1:0", limits) as running:
        running.pem = identity.certificate_pem  # type: ignore[attr-defined]
        yield running
        sleepers.go_on.set()


@contextlib.contextmanager
def channel(server: Server, source: str | None = None) -> Iterator[grpc.Channel]:
    """A connection of its own, from another loopback address where one is named."""
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(forwarded(server.port, source)) if source else server.port
        credentials = grpc.ssl_channel_credentials(server.pem)  # type: ignore[attr-defined]
        options = [("grpc.ssl_target_name_override", TLS_NAME), ("grpc.use_local_subchannel_pool", 1)]
        yield stack.enter_context(grpc.secure_channel(f"127.0.0.1:{port}", credentials, options))


@contextlib.contextmanager
def forwarded(port: int, source: str) -> Iterator[int]:
    """A port whose connections reach `port` from the address `source`."""
    ends: list[socket.socket] = []

    def pump(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                here = listener.accept()[0]
                there = socket.create_connection(("127.0.0.1", port), WAIT_S, source_address=(source, 0))
                there.settimeout(None)
                ends.extend((here, there))
                for pair in ((here, there), (there, here)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for end in ends:
                end.close()


def answered(open_channel: grpc.Channel) -> bool:
    """Whether an ordinary call gets its answer, by the deadline that peers set."""
    stub = coordinator_pb2_grpc.CoordinatorStub(open_channel)
    return bool(stub.GetRun(pb.GetRunRequest(), timeout=15) == pb.GetRunReply())


def eventually_answered(open_channel: grpc.Channel) -> None:
    """Ask until there is a place again."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            assert answered(open_channel)
            return
        except grpc.RpcError as error:
            assert cast(grpc.Call, error).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert time.monotonic() < deadline
            time.sleep(0.1)


def silent(open_channel: grpc.Channel, method: str, over: threading.Event) -> grpc.Future:
    """A call whose request never comes, and that has no deadline."""

    def never() -> Iterator[bytes]:
        over.wait(WAIT_S)
        yield from ()

    return cast(grpc.Future, open_channel.stream_unary(method, bytes, bytes).future(never()))


def code_of(call: grpc.Future) -> grpc.StatusCode:
    error = call.exception(timeout=WAIT_S)
    assert isinstance(error, grpc.Call)
    return cast(grpc.StatusCode, error.code())


def test_errors_of_ours_carry_their_code_and_hint(server: Server) -> None:
    with channel(server) as mine, pytest.raises(grpc.RpcError) as caught:
        coordinator_pb2_grpc.CoordinatorStub(mine).GetChallenge(pb.GetChallengeRequest(), timeout=15)
    error = caught.value
    assert isinstance(error, grpc.Call)
    assert (error.code(), error.details()) == (grpc.StatusCode.PERMISSION_DENIED, "no")
    assert b"never" in dict(error.trailing_metadata()).values()


@pytest.mark.parametrize("method", ["GetRun", "Announce", "Report", "FetchFile", "UploadState"])
def test_calls_without_a_message_keep_nobody_out_and_are_ended(server: Server, method: str) -> None:
    """Hundreds, on many connections, from one address: others are answered, and so is that address, in time."""
    over = threading.Event()
    with contextlib.ExitStack() as stack:
        calls = []
        for _ in range(8):
            evil = stack.enter_context(channel(server, "127.0.0.9"))
            calls += [silent(evil, f"/potluck.v1.Coordinator/{method}", over) for _ in range(40)]
        honest = stack.enter_context(channel(server))
        assert all(answered(honest) for _ in range(3))
        if method != "Report":  # an honest one may be a minute on its way
            ended = {code_of(call) for call in calls}
            refused = {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE}
            assert ended - refused == {grpc.StatusCode.DEADLINE_EXCEEDED}
        over.set()
        for call in calls:
            call.cancel()


def test_health_is_told_and_its_watch_is_not_there(server: Server) -> None:
    over = threading.Event()
    with channel(server) as mine:
        stub = health_pb2_grpc.HealthStub(mine)
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=15).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.Watch(health_pb2.HealthCheckRequest()))
        assert cast(grpc.Call, caught.value).code() == grpc.StatusCode.UNIMPLEMENTED
        assert code_of(silent(mine, "/grpc.health.v1.Health/Check", over)) == grpc.StatusCode.DEADLINE_EXCEEDED
        over.set()


def test_one_network_has_a_few_threads_though_it_goes_away_and_comes_again(server: Server, sleepers: Sleepers) -> None:
    """Calls that were given up still run: the next ones of that network wait for them, and nobody else does."""
    with channel(server, "127.0.0.9") as evil, channel(server) as honest:
        stub, deadline, waves = coordinator_pb2_grpc.CoordinatorStub(evil), time.monotonic() + WAIT_S, 0
        while waves < 20 or sleepers.most < LIMITS.threads_each:
            calls = [stub.GetReceipts.future(pb.GetReceiptsRequest(), timeout=15) for _ in range(4)]
            time.sleep(0.02)
            for call in calls:
                call.cancel()
            waves += 1
            assert time.monotonic() < deadline
        assert answered(honest)
        assert sleepers.most == LIMITS.threads_each
        sleepers.go_on.set()
        assert answered(evil)


def test_senders_from_many_addresses_give_way(server: Server) -> None:
    over = threading.Event()
    with contextlib.ExitStack() as stack:
        calls = []
        for number in (9, 10):
            evil = stack.enter_context(channel(server, f"127.0.0.{number}"))
            calls += [silent(evil, "/potluck.v1.Coordinator/GetRun", over) for _ in range(6)]
        assert answered(stack.enter_context(channel(server)))
        assert all(code_of(call) == grpc.StatusCode.DEADLINE_EXCEEDED for call in calls)
        over.set()


def test_file_that_is_not_read_is_not_sent_for_ever(server: Server) -> None:
    """Who reads nothing holds its network's places for a moment; others read meanwhile."""

    def fetch(through: grpc.Channel, certificate: str) -> int:
        stub = coordinator_pb2_grpc.CoordinatorStub(through)
        parts = stub.FetchFile(pb.FetchFileRequest(certificate=certificate), timeout=15)
        return sum(len(part.data) for part in parts)

    with channel(server, "127.0.0.9") as evil, channel(server, "127.0.0.9") as beside, channel(server) as honest:
        slow = coordinator_pb2_grpc.CoordinatorStub(evil)
        held = [slow.FetchFile(pb.FetchFileRequest(certificate=f"evil {number}")) for number in range(6)]
        time.sleep(0.1)
        assert fetch(honest, "me") == 64 * PART_BYTES
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                assert fetch(beside, "a neighbour") == 64 * PART_BYTES
                break
            except grpc.RpcError as error:
                assert cast(grpc.Call, error).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
                assert time.monotonic() < deadline
                time.sleep(0.1)
        for call in held:
            call.cancel()


@pytest.mark.parametrize("limits", [dataclasses.replace(LIMITS, answer_s=1)])
def test_answers_that_are_not_read_are_thrown_away(server: Server) -> None:
    """Eight of 8 MiB are all that a network may have under way; soon its next call is answered."""
    with channel(server, "127.0.0.9") as evil, channel(server, "127.0.0.9") as beside:
        ask = evil.unary_stream("/potluck.v1.Coordinator/GetAgreement", bytes, bytes)
        held = [ask(b"") for _ in range(LIMITS.calls_each)]
        eventually_answered(beside)
        for call in held:
            call.cancel()


def test_upload_that_stands_still_or_breaks_off_lets_go_of_its_thread(server: Server, sleepers: Sleepers) -> None:
    over = threading.Event()

    def parts(stay: bool) -> Iterator[pb.StatePart]:
        yield pb.StatePart(state="x")
        yield pb.StatePart(data=bytes(1000))
        if stay:
            over.wait(WAIT_S)

    with channel(server) as mine:
        stub = coordinator_pb2_grpc.CoordinatorStub(mine)
        still = stub.UploadState.future(parts(True))
        assert code_of(still) == grpc.StatusCode.DEADLINE_EXCEEDED
        gone = stub.UploadState.future(parts(True))
        while not sleepers.uploads:
            time.sleep(0.01)
        gone.cancel()
        over.set()
        assert stub.UploadState(parts(False), timeout=15).accepted
    assert sleepers.uploads[0] == "the upload was broken off" and sleepers.uploads[-1] == "1000 bytes"


def test_handshakes_that_are_never_finished_keep_nobody_out(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(300):
            plain = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), WAIT_S))
            if number % 2:
                plain.sendall(b"\x16\x03\x01")  # the first bytes of a TLS hello
        assert answered(stack.enter_context(channel(server)))
