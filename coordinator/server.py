"""Runs the service over TLS: the port, the loop in a thread of its own, the limits of connections. `host` opens it.

What a call may take is decided in `door`. A connection has seconds for its handshake and a bounded number of calls; one
without a call is closed after minutes. There is no limit of connections by address: gRPC offers none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import threading
from concurrent.futures import Future
from types import TracebackType

import grpc

from coordinator.door import Door, Limits
from coordinator.service import CoordinatorService
from coordinator.tls import TlsIdentity
from protocol.errors import InputError
from protocol.parts import SupervisedThread, Told
from protocol.rpc import MAX_MESSAGE_BYTES

logger = logging.getLogger(__name__)

STOP_GRACE_S = 3.0
MAX_CONNECTIONS = 16_384
OTHER_FILES = 512  # that the host has open
CALLS_PER_CONNECTION = 16  # at once; a peer has three at most

_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.max_concurrent_streams", CALLS_PER_CONNECTION),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.max_connection_idle_ms", 90_000),
    ("grpc.max_connection_age_ms", 3_600_000),
    ("grpc.max_connection_age_grace_ms", 600_000),
    ("grpc.so_reuseport", 0),  # two hosts on one port is a mistake, not load balancing
]


class Server:
    """A service that runs while its block does.

    Args:
        listen: `host:port`; port 0 takes a free one.
        told: called when it ends though nobody asked it to.
    """

    def __init__(
        self,
        service: CoordinatorService,
        tls: TlsIdentity,
        listen: str,
        limits: Limits | None = None,
        told: Told = lambda failure: None,
    ) -> None:
        self._service, self._tls, self._listen, self._limits = service, tls, listen, limits or Limits()
        self._opened: Future[int] = Future()
        self._loop = asyncio.new_event_loop()
        self._closing, self._asked = asyncio.Event(), threading.Event()
        self._part = SupervisedThread("server", self._run, self._asked, told)

    @property
    def port(self) -> int:
        """Where it listens, once its block was entered."""
        return self._opened.result()

    def __enter__(self) -> Server:
        """Raises: InputError: the address cannot be listened on."""
        self._part.start()
        try:
            self._opened.result()
        except InputError:
            self._part.join(STOP_GRACE_S)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._asked.set()
        with contextlib.suppress(RuntimeError):  # its loop has ended already
            self._loop.call_soon_threadsafe(self._closing.set)
        if not self._part.join(STOP_GRACE_S + 10):
            logger.warning("some calls did not end in time")

    def check(self) -> None:
        """Raises: PartFailed: nobody can reach the coordinator any more."""
        self._part.check()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        finally:
            self._opened.cancel()  # whoever waits for it is not left waiting

    async def _serve(self) -> None:
        door = Door(self._service, self._limits)
        try:
            server = grpc.aio.server(options=[*_OPTIONS, ("grpc.max_allowed_incoming_connections", _connections())])
            server.add_generic_rpc_handlers(door.handlers())
            credentials = grpc.ssl_server_credentials([(self._tls.key_pem, self._tls.certificate_pem)])
            try:
                port = server.add_secure_port(self._listen, credentials)
            except RuntimeError as error:
                hint = "is another host running? choose another host.listen"
                self._asked.set()
                self._opened.set_exception(InputError(f"cannot listen on {self._listen}: {error}", hint))
                await server.stop(None)
                return
            await server.start()
            self._opened.set_result(port)
            stopping = asyncio.create_task(self._stop_when_asked(server))
            await server.wait_for_termination()
            if self._closing.is_set():
                await stopping
        finally:
            door.close()

    async def _stop_when_asked(self, server: grpc.aio.Server) -> None:
        await self._closing.wait()
        await server.stop(STOP_GRACE_S)


def _connections() -> int:
    """How many connections are let in: each is an open file, and the host needs some for itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_CONNECTIONS + OTHER_FILES
    wanted = most if hard == resource.RLIM_INFINITY else min(hard, most)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # a system may allow less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    files = most if soft == resource.RLIM_INFINITY else min(soft, most)
    return max(files - OTHER_FILES, files // 2)
