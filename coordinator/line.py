"""How somebody's line to this host is, and whether it can be reached from here: what `potluck doctor` asks.

Anyone may ask, so it is little: a few calls a minute from one network, some more from all of them together, a quarter
of a MiB each way. Nobody is dialled but the address on the Internet that the call came from, at a port that needs no
rights, two at a time.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from coordinator.per_minute import PerMinute
from protocol import coordinator_pb2
from protocol.errors import FormatError, NetworkError
from protocol.rpc import MAX_MEASURED_BYTES

CALLS = 20  # a minute from one network: one look is eight calls
CALLS_OF_ALL = 120  # a minute: at most 4.2 Mbit/s each way, whoever and from however many networks
DIALS = 2  # a minute from one network
DIALS_OF_ALL = 30  # a minute
DIALS_AT_ONCE = 2  # from everywhere
DIAL_S = 2.0
FIRST_PORT = 1024
Dial = Callable[[str, int], bool]


def answers(address: str, port: int) -> bool:
    """Whether a TCP connection can be opened there."""
    try:
        socket.create_connection((address, port), timeout=DIAL_S).close()
    except OSError:
        return False
    return True


class LineDesk:
    """Answers `Measure`; may be used from any thread."""

    def __init__(self, dial: Dial = answers, clock: Callable[[], float] = time.monotonic) -> None:
        self._dial, self._clock = dial, clock
        self._calls, self._calls_of_all = PerMinute(CALLS), PerMinute(CALLS_OF_ALL)
        self._dials, self._dials_of_all = PerMinute(DIALS), PerMinute(DIALS_OF_ALL)
        self._lock, self._dialling = threading.Lock(), threading.BoundedSemaphore(DIALS_AT_ONCE)

    def measure(self, request: Any, network: str) -> Any:
        """Raises: FormatError: more bytes than allowed. NetworkError: too many calls from there."""
        sent, wanted = len(request.data), request.want_bytes
        if max(sent, wanted) > MAX_MEASURED_BYTES:
            raise FormatError(
                f"at most {MAX_MEASURED_BYTES} bytes are measured each way, got {sent} and a wish for {wanted}"
            )
        with self._lock:
            now = self._clock()
            wait_s = self._calls.take(network, now)
            if wait_s:
                raise NetworkError(f"too many measurements from your network: wait {wait_s:.0f} s", "try again then")
            wait_s = self._calls_of_all.take("", now)
        if wait_s:
            raise NetworkError(f"too many measurements by all together: wait {wait_s:.0f} s", "try again then")
        return coordinator_pb2.MeasureReply(
            data=os.urandom(wanted), time=time.time(), seen=network, reached=self._reached(network, request.port)
        )

    def _reached(self, network: str, port: int) -> Any:
        if not FIRST_PORT <= port < 65536 or not _is_on_the_internet(network):
            return coordinator_pb2.NOT_TRIED
        with self._lock:
            now = self._clock()
            too_many = self._dials.take(network, now) > 0 or self._dials_of_all.take("", now) > 0
        if too_many or not self._dialling.acquire(blocking=False):
            return coordinator_pb2.NOT_TRIED
        try:
            return coordinator_pb2.OPEN if self._dial(network, port) else coordinator_pb2.CLOSED
        finally:
            self._dialling.release()


def _is_on_the_internet(network: str) -> bool:
    """Whether it is one address that everybody means the same by; of IPv6 only the /64 is known."""
    try:
        return ipaddress.ip_address(network).is_global
    except ValueError:
        return False
