"""The line to the coordinator, the clock, and whether others can reach this computer from outside.

with Knocks("0.0.0.0:4710") as knocks:      it listens there, and counts who connects
    line = measure_line(client, knocks.port)
list(of_line(line, Listened(own_address("host.example:4700"), knocks.port, is_fixed=True, knocked=knocks.heard > 0)))
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

from peer.doctor.finding import Finding
from peer.link.clock import how_to_set, in_words
from peer.link.line import MeasuredLine
from peer.net.listening import check_free, split_host_port
from protocol.certificate import CLOCK_LEEWAY_S

SHARED = ipaddress.ip_network("100.64.0.0/10")  # RFC 6598: of providers that share one address among customers
_NOWHERE = "192.0.2.1:9"  # RFC 5737; nothing is sent there
_FORWARD = (
    "mostly nothing: peers dial each other, and join asks the router for a port (UPnP), which was not tried here. "
    "To be sure, forward port 4710 and look again with --listen 0.0.0.0:4710"
)


@dataclass(frozen=True)
class Listened:
    """Where this computer listened."""

    own: str  # its own address towards the coordinator; empty: not known
    port: int
    is_fixed: bool  # the owner has named the port
    knocked: bool  # somebody connected


class Knocks:
    """Listens for a moment, and counts connections.

    Raises:
        InputError: `listen` is no address.
        NetworkError: when entered: the port is taken.
    """

    def __init__(self, listen: str) -> None:
        self._host, self.port = split_host_port(listen)
        self.heard = 0

    def __enter__(self) -> Knocks:
        check_free(self._host, self.port)
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        self._socket = socket.create_server((self._host, self.port), family=family)
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._listen, name="knocks", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # macOS: not connected
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._socket.close()

    def _listen(self) -> None:
        while True:
            try:
                caller = self._socket.accept()[0]
            except OSError:  # closed
                return
            self.heard += 1  # before the caller can see that it is closed
            caller.close()


def own_address(towards: str = _NOWHERE) -> str:
    """This computer's own address towards a "host:port"; empty: there is no way. Sends nothing."""
    host, _, port = towards.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
        with socket.socket(found[0], socket.SOCK_DGRAM) as probe:
            probe.connect(found[4])
            return str(probe.getsockname()[0])
    except (OSError, ValueError, OverflowError):
        return ""


def of_line(line: MeasuredLine, place: Listened) -> Iterator[Finding]:
    """Rates, clock, reach."""
    up, down, ms = _mbit(line.up_bytes_s), _mbit(line.down_bytes_s), f"{1000 * line.round_trip_s:.0f}"
    text = f"line to the host: at least {up} Mbit/s up and {down} Mbit/s down, an answer takes {ms} ms"
    slow = min(line.up_bytes_s, line.down_bytes_s) < 125_000  # 1 Mbit/s
    remedy = "use a cable or another line if there is one; else join a run with small updates (LoRA)" if slow else ""
    yield Finding("line", "note" if slow else "good", text, remedy)
    yield _clock(line.clock.offset_s, is_wrong=line.clock.is_wrong)
    yield _reach(line, place)


def of_own_address(own: str) -> Finding:
    """What can be known of being reached without a helper outside."""
    if not own:
        return Finding("reach", "bad", "network: there is none", "connect this computer to the Internet")
    if _is_shared(own):
        return _shared(own)
    text = f"network: this computer's own address is {own}; whether others can reach it only a host can tell"
    return Finding("reach", "note", text, "give an invite: potluck doctor INVITE asks its host")


def _clock(offset_s: float, *, is_wrong: bool) -> Finding:
    if not is_wrong:
        return Finding("clock", "good", "clock: right")
    level, off = "bad" if abs(offset_s) > CLOCK_LEEWAY_S else "note", in_words(offset_s)
    way = f"clock: {off} ahead of the host's" if offset_s > 0 else f"clock: {off} behind the host's"
    return Finding("clock", level, way, f"set it: {how_to_set()}")  # type: ignore[arg-type]


def _reach(line: MeasuredLine, place: Listened) -> Finding:
    seen, port = line.seen, place.port
    if line.reached and place.knocked:
        return Finding("reach", "good", f"reach: others can reach this computer, at {seen}, port {port}")
    if _is_shared(place.own) or _is_shared(seen):
        return _shared(seen)
    if not _is_public(seen):
        text = f"reach: the host sees this computer at {seen}, not on the Internet; so it was not tried"
        return Finding("reach", "note", text, "within one network nothing is to be done; else see docs/joining.md")
    if line.reached is None:
        text = f"reach: the host sees this computer at {seen}, and did not try to reach it now"
        return Finding("reach", "note", text, "try again in a minute")
    if place.own == seen:
        text = f"reach: the address {seen} is this computer's own, and nobody gets through to port {port}"
        remedy = "let port 4710 through its firewall, and look again with --listen 0.0.0.0:4710"
        return Finding("reach", "note", text, remedy)
    text = f"reach: behind a router ({seen}); nobody gets through to port {port}"
    if place.is_fixed:
        remedy = f"forward port {port} of the router to {place.own}; if its own address is not {seen}, that cannot help"
        return Finding("reach", "note", text, remedy)
    return Finding("reach", "note", text, _FORWARD)


def _shared(address: str) -> Finding:
    text = f"reach: your provider shares one address among customers ({address}); others cannot reach this computer"
    remedy = "it works while some other member can be reached; ask the provider for an address of your own to be one"
    return Finding("reach", "note", text, remedy)


def _is_shared(address: str) -> bool:
    try:
        return ipaddress.ip_address(address) in SHARED
    except ValueError:
        return False


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_network(address).is_global
    except ValueError:
        return False


def _mbit(bytes_s: float) -> str:
    """Mbit/s, to two digits."""
    value = float(f"{bytes_s * 8 / 1e6:.2g}")
    return f"{value:.0f}" if value >= 10 else f"{value:g}"
