"""The connection to the coordinator: opened by the first call, and again after it was lost, wherever that one is now.

`client` makes its calls over one; it may be shared by threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import grpc

from peer.link.channel import open_channel, translate
from peer.link.downloads import STREAM_TIMEOUT_S
from protocol import coordinator_pb2_grpc
from protocol.errors import CoordinatorAway


class Connection:
    """To the first of some addresses that answers.

    Args:
        tls_digest: SHA-256 (hex) of the coordinator's certificate, from the invite.
        timeout_s: deadline of a call that names none.
    """

    def __init__(self, addresses: Sequence[str], tls_digest: str, timeout_s: float) -> None:
        self._addresses, self._tls_digest, self._timeout_s = addresses, tls_digest, timeout_s
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._stub: Any = None

    def call(self, method: str, request: Any, timeout_s: float | None = None) -> Any:
        """The answer to one request, or to a stream of them.

        Raises:
            CoordinatorAway: it cannot be reached, or the connection was closed meanwhile.
            PotluckError: what it answers instead, as `translate` says.
        """
        try:
            return getattr(self.stub(), method)(request, timeout=timeout_s or self._timeout_s)
        except grpc.RpcError as error:
            raise self._broken(error) from error
        except ValueError as error:  # what grpc says of a channel that another thread closes just now
            raise CoordinatorAway("the connection was closed on this side") from error

    def stream(self, method: str, request: Any) -> Iterator[bytes]:
        """The pieces of an answer that comes in many. Raises: as `call`."""
        try:
            for part in getattr(self.stub(), method)(request, timeout=STREAM_TIMEOUT_S):
                yield part.data
        except grpc.RpcError as error:
            raise self._broken(error) from error

    def stub(self) -> Any:
        """The stub, over a channel to the first address of the invite that answers."""
        with self._lock:
            if self._stub is None:
                self._channel = self._first_channel()
                self._stub = coordinator_pb2_grpc.CoordinatorStub(self._channel)
            return self._stub

    def close(self) -> None:
        """The next call opens a new one."""
        with self._lock:
            channel, self._channel, self._stub = self._channel, None, None
        if channel is not None:
            channel.close()

    def _broken(self, error: grpc.RpcError) -> Exception:
        if isinstance(error, grpc.Call) and error.code() == grpc.StatusCode.UNAVAILABLE:
            self.close()  # a restarted host may show up at another of the invite's addresses
        return translate(error)

    def _first_channel(self) -> grpc.Channel:
        away: CoordinatorAway | None = None
        for address in self._addresses:
            try:
                return open_channel(address, self._tls_digest, min(self._timeout_s, 5.0))
            except CoordinatorAway as error:
                away = error
        assert away is not None, "an invite has at least one address"
        raise away
