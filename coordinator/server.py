"""Runs the gRPC service over TLS: the port, the limits, the health service. `host` opens and closes it."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from coordinator.service import CoordinatorService
from coordinator.tls import TlsIdentity
from protocol import coordinator_pb2_grpc
from protocol.errors import InputError
from protocol.rpc import MAX_MESSAGE_BYTES

logger = logging.getLogger(__name__)

THREADS = 48  # at most half of them serve transfers, see streams.MAX_STREAMS
CALLS_AT_ONCE = 96  # more are refused at once rather than left waiting
STOP_GRACE_S = 3.0
SERVICE = "potluck.v1.Coordinator"

_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.max_connection_age_ms", 3_600_000),
    ("grpc.max_connection_age_grace_ms", 600_000),
    ("grpc.so_reuseport", 0),  # two hosts on one port is a mistake, not load balancing
]


class Server:
    """A running service.

    Args:
        listen: `host:port`; port 0 takes a free one.

    Raises:
        InputError: the address cannot be listened on.
    """

    def __init__(self, service: CoordinatorService, tls: TlsIdentity, listen: str) -> None:
        self._pool = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="coordinator")
        self._server = grpc.server(self._pool, options=_OPTIONS, maximum_concurrent_rpcs=CALLS_AT_ONCE)
        coordinator_pb2_grpc.add_CoordinatorServicer_to_server(service, self._server)
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        credentials = grpc.ssl_server_credentials([(tls.key_pem, tls.certificate_pem)])
        try:
            self.port = self._server.add_secure_port(listen, credentials)
        except RuntimeError as error:
            self._pool.shutdown(wait=False)
            raise InputError(
                f"cannot listen on {listen}: {error}", "is another host running? choose another host.listen"
            ) from error

    def __enter__(self) -> Server:
        self._server.start()
        for name in ("", SERVICE):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._health.enter_graceful_shutdown()
        if not self._server.stop(STOP_GRACE_S).wait(timeout=STOP_GRACE_S + 10):
            logger.warning("some calls did not end in time")
        self._pool.shutdown(wait=False, cancel_futures=True)
