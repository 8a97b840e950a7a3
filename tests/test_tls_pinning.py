"""The invite pins the coordinator's certificate: whoever shows another one is turned away before anything is said."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from coordinator import tls
from peer.link.channel import open_channel
from peer.link.client import CoordinatorClient
from protocol import coordinator_pb2, coordinator_pb2_grpc
from protocol.errors import CoordinatorAway, InputError, SignatureError
from protocol.invite import Invite
from protocol.keys import RootKey


class Impostor(coordinator_pb2_grpc.CoordinatorServicer):
    """Answers, and remembers whether anybody asked."""

    def __init__(self) -> None:
        self.asked = False

    def GetRun(self, request: object, context: grpc.ServicerContext) -> coordinator_pb2.GetRunReply:
        self.asked = True
        return coordinator_pb2.GetRunReply()


@pytest.fixture
def identity(tmp_path: Path) -> tls.TlsIdentity:
    return tls.load_or_create(tmp_path)


@pytest.fixture
def impostor(identity: tls.TlsIdentity) -> Iterator[tuple[Impostor, str]]:
    servicer = Impostor()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    coordinator_pb2_grpc.add_CoordinatorServicer_to_server(servicer, server)
    port = server.add_secure_port(
        "127.0.0.1:0", grpc.ssl_server_credentials([(identity.key_pem, identity.certificate_pem)])
    )
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(None).wait(timeout=60)


def invite(address: str, digest: str) -> Invite:
    return Invite(addresses=(address,), run="a" * 64, tls=digest, root="c" * 64)


def test_pinned_certificate_opens_a_channel(impostor: tuple[Impostor, str], identity: tls.TlsIdentity) -> None:
    servicer, address = impostor
    with open_channel(address, identity.digest, 5.0) as channel:
        coordinator_pb2_grpc.CoordinatorStub(channel).GetRun(coordinator_pb2.GetRunRequest(), timeout=60)
    assert servicer.asked


def test_another_certificate_is_not_the_coordinator_of_the_invite(
    impostor: tuple[Impostor, str], tmp_path: Path
) -> None:
    servicer, address = impostor
    (tmp_path / "true").mkdir()
    true = tls.load_or_create(tmp_path / "true")
    with (
        CoordinatorClient(invite(address, true.digest)) as client,
        pytest.raises(SignatureError, match="not the coordinator you were invited to") as caught,
    ):
        client.get_run()
    assert "fresh invite" in caught.value.hint
    assert not servicer.asked


def test_second_address_is_tried_when_the_first_is_away(
    impostor: tuple[Impostor, str], identity: tls.TlsIdentity
) -> None:
    servicer, address = impostor
    both = invite(address, identity.digest).model_copy(update={"addresses": ("127.0.0.1:1", address)})
    with CoordinatorClient(both) as client, pytest.raises(Exception, match="PEM"):
        client.get_run()
    assert servicer.asked


def test_server_without_tls_is_away() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nhello")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(CoordinatorAway):
            open_channel(f"127.0.0.1:{listener.getsockname()[1]}", "0" * 64, 5.0)
        thread.join(timeout=60)


def test_server_that_never_answers_is_away_after_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(CoordinatorAway):
        open_channel(f"127.0.0.1:{listener.getsockname()[1]}", "0" * 64, 0.3)


def test_certificate_outlives_a_restart(tmp_path: Path) -> None:
    assert tls.load_or_create(tmp_path).digest == tls.load_or_create(tmp_path).digest
    assert (tmp_path / "tls.key").stat().st_mode & 0o777 == 0o600


def test_certificate_of_another_key_is_refused(tmp_path: Path) -> None:
    tls.load_or_create(tmp_path)
    (tmp_path / "tls.key").unlink()
    RootKey.load_or_create(tmp_path / "tls.key")
    with pytest.raises(InputError, match="not of the key"):
        tls.load_or_create(tmp_path)
    (tmp_path / "tls.crt").write_text("nonsense")
    with pytest.raises(InputError, match="not a PEM certificate"):
        tls.load_or_create(tmp_path)


def test_certificate_is_for_the_name_potluck_alone(identity: tls.TlsIdentity) -> None:
    digest = ssl.PEM_cert_to_DER_cert(identity.certificate_pem.decode())
    assert b"potluck" in digest
