"""How fast the line to the coordinator is, which address it comes from, and whether that can be reached: `Measure`.

`potluck doctor` asks it. TCP starts slowly, so the same is sent several times, and the fastest counts: a line is at
least as fast as what is said of it.
"""

from __future__ import annotations

import ipaddress
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peer.link.client import CoordinatorClient
from peer.link.clock import Clock
from protocol import coordinator_pb2
from protocol.errors import FormatError
from protocol.rpc import MAX_MEASURED_BYTES

TIMES = 3  # each way
LONG_S = 1.5  # a call that takes so long is not repeated
CALL_S = 8.0  # for one: 0.3 Mbit/s


@dataclass(frozen=True)
class MeasuredLine:
    """What was measured."""

    round_trip_s: float
    up_bytes_s: float  # at least
    down_bytes_s: float  # likewise
    seen: str  # where calls come from, as the coordinator sees it: an IPv4 address, or an IPv6 /64
    reached: bool | None  # whether it could connect to us there; None: it did not try
    clock: Clock  # this computer's against the coordinator's


def measure_line(
    client: CoordinatorClient, port: int = 0, now: Callable[[], float] = time.perf_counter
) -> MeasuredLine:
    """Measure the line to the coordinator.

    Args:
        port: where this computer listens just now; 0: nowhere.

    Raises:
        CoordinatorOlder: it does not know how.
        CoordinatorAway: it does not answer, or was asked too often.
        FormatError: it answers something else than was asked for.
    """
    heard = Clock()

    def call(**values: Any) -> tuple[float, Any]:
        began, sent = now(), time.time()
        reply = client.connection.call("Measure", coordinator_pb2.MeasureRequest(**values), timeout_s=CALL_S)
        took_s = max(now() - began, 1e-6)
        heard.heard(sent=sent, received=time.time(), theirs=reply.time)
        wanted = values.get("want_bytes", 0)
        if len(reply.data) != wanted:  # or a line would seem as fast as the host likes
            raise FormatError(f"the host was asked for {wanted} bytes, and sent {len(reply.data)}")
        return took_s, reply

    def fastest(empty_s: float, **values: Any) -> float:
        """Bytes a second, without the time that a call takes anyway."""
        taken: list[float] = []
        while len(taken) < TIMES and (not taken or taken[-1] < LONG_S):
            taken.append(call(**values)[0])
        return MAX_MEASURED_BYTES / max(min(taken) - empty_s, 1e-3)

    first = call(port=port)[1]  # opens the connection, and may wait for a port that does not answer
    empty_s, _ = call()
    up = fastest(empty_s, data=os.urandom(MAX_MEASURED_BYTES))
    down = fastest(empty_s, want_bytes=MAX_MEASURED_BYTES)
    reached = {coordinator_pb2.OPEN: True, coordinator_pb2.CLOSED: False}.get(first.reached)
    return MeasuredLine(empty_s, up, down, _network(first.seen), reached, heard)


def _network(seen: str) -> str:
    """Where a call came from, by the coordinator's word. Raises: FormatError: neither an address nor a network."""
    try:
        return str(ipaddress.ip_network(seen)).removesuffix("/32")
    except ValueError:
        raise FormatError(f"the host says that this computer is at {seen[:80]!r}, which is no address") from None
