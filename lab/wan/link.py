"""The rules of the emulated internet: when a packet arrives, and whether. No I/O, no clock: `forwarder` has those.

    host a -- up queue, up rate --+                       +-- firewall, down queue, down rate -- host b
                                  +-- delay, jitter, loss-+

A packet waits for its turn on the sender's uplink (tail drop when the queue is full), travels for the sum of both
hosts' delays, must pass the receiver's firewall, and waits for its turn on the receiver's downlink. Packets from one
host to another never overtake each other.

    >>> import ipaddress
    >>> def packet(source, destination, size):
    ...     packed = [ipaddress.ip_address(text).packed for text in (source, destination)]
    ...     return bytes([0x45]) + bytes(11) + b"".join(packed) + bytes(size - 20)
    >>> hosts = {"a": Host(delay_ms=10, up_mbit=8), "b": Host(delay_ms=30)}
    >>> switch = Switch(hosts, {"a": "10.77.0.1", "b": "10.77.0.2"}, seed=0)
    >>> switch.send("a", packet("10.77.0.1", "10.77.0.2", 1000), now=0.0)  # 1 ms on the uplink, 40 ms on the way
    >>> round(switch.next_due(), 6)
    0.041
    >>> arrived = []
    >>> switch.deliver(0.041, lambda host, packet: arrived.append((host, len(packet))))
    >>> arrived
    [('b', 1000)]
"""

from __future__ import annotations

import heapq
import itertools
import random
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

JITTER_PERIOD_S = 0.01
MAX_HOLES = 4096  # in one firewall, before old ones are looked for
TCP, UDP = 6, 17


@dataclass(frozen=True)
class Host:
    """One host's line to the internet. Zero means: no limit, none.

    `delay_ms` is that of its own line, one way: the round trip between two hosts is twice the sum of their delays.
    """

    delay_ms: float = 0.0
    jitter_ms: float = 0.0  # added delay of what it sends, evenly between 0 and this, drawn anew every 10 ms
    up_mbit: float = 0.0  # 10^6 bits per second, counted over whole IP packets
    down_mbit: float = 0.0
    loss: float = 0.0  # share of packets lost on this line, in either direction
    queue_bytes: int = 256 * 1024  # that wait for the uplink, and again for the downlink; more is dropped
    firewall_s: float = 0.0  # lets in only what comes from where something was sent in the last so many seconds

    def __post_init__(self) -> None:
        for item in fields(self):
            if not 0 <= getattr(self, item.name) < float("inf"):
                raise ValueError(f"{item.name}: expected a number of at least 0, got {getattr(self, item.name)!r}")
        if self.loss > 1:
            raise ValueError(f"loss: expected a share between 0 and 1, got {self.loss!r}")


class Counters(NamedTuple):
    """What went through one host's interface. A lost packet counts at the host on whose side it was lost."""

    bytes_up: int
    bytes_down: int
    packets_dropped: int
    packets_up: int
    packets_down: int


@dataclass(eq=False)
class Port:
    """Where one host is plugged in, and what waits there."""

    name: str
    host: Host
    address: bytes = b""  # packed
    cut: bool = False
    up_bytes_s: float = 0.0
    down_bytes_s: float = 0.0
    up_free: float = 0.0  # when the line has sent all that waits for it
    down_free: float = 0.0
    jitter_s: float = 0.0
    jitter_until: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    dropped: int = 0
    packets_up: int = 0
    packets_down: int = 0
    paths: dict[bytes, Path] = field(default_factory=dict)  # by packed destination address
    holes: dict[bytes, float] = field(default_factory=dict)  # in its firewall: flow -> when it last sent

    def set(self, host: Host) -> None:
        self.host = host
        self.up_bytes_s, self.down_bytes_s = host.up_mbit * 1e6 / 8, host.down_mbit * 1e6 / 8

    def open_hole(self, packet: bytes, now: float) -> None:
        """Note that this packet goes out, so that its answers may come in."""
        if len(self.holes) >= MAX_HOLES:
            since = now - self.host.firewall_s
            self.holes = {flow: when for flow, when in self.holes.items() if when >= since}
        self.holes[_flow(packet, outward=True)] = now

    def lets_in(self, packet: bytes, now: float) -> bool:
        if _is_later_fragment(packet):  # it has no ports, and is worth nothing without the first
            return True
        last = self.holes.get(_flow(packet, outward=False))
        return last is not None and now - last <= self.host.firewall_s


@dataclass(eq=False)
class Path:
    """From one host to another."""

    source: Port
    to: Port
    random: random.Random
    delay_s: float = 0.0
    loss: float = 0.0
    blocked: bool = False
    last_due: float = 0.0


class Switch:
    """All hosts' lines and what is on its way between them.

    Args:
        hosts: by name.
        addresses: by the same names, IPv4.
        seed: of losses and jitter.
    """

    def __init__(self, hosts: dict[str, Host], addresses: dict[str, str], seed: int) -> None:
        self._ports = {name: Port(name, host) for name, host in hosts.items()}
        self._random = random.Random(seed)
        self._heap: list[tuple[float, int, Path, bytes, bool]] = []  # (when due, order, path, packet, at the very end)
        self._order = itertools.count()
        self._cut_pairs: set[frozenset[str]] = set()
        self._groups: list[frozenset[str]] | None = None
        for port in self._ports.values():
            port.address = socket.inet_aton(addresses[port.name])
            port.set(port.host)
        for source, to in itertools.permutations(self._ports.values(), 2):
            source.paths[to.address] = Path(source, to, random.Random(f"{seed}/{source.name}/{to.name}"))
        self._update()

    # ---- packets -----------------------------------------------------------------------------------------------------

    def send(self, name: str, packet: bytes, now: float) -> None:
        """A host sends an IPv4 packet at `now` (seconds on any clock)."""
        port, size = self._ports[name], len(packet)
        port.packets_up += 1
        port.bytes_up += size
        path = port.paths.get(packet[16:20])
        if path is None or path.blocked or packet[12:16] != port.address:
            port.dropped += 1
            return
        leaves = now
        if port.up_bytes_s:
            begins = max(port.up_free, now)
            if (begins - now) * port.up_bytes_s + size > port.host.queue_bytes:
                port.dropped += 1
                return
            port.up_free = leaves = begins + size / port.up_bytes_s
        if port.host.firewall_s:
            port.open_hole(packet, now)
        if path.loss and path.random.random() < path.loss:
            port.dropped += 1
            return
        due = leaves + path.delay_s
        if port.host.jitter_ms:
            due += self._jitter_s(port, leaves)
        if due < path.last_due:
            due = path.last_due
        path.last_due = due
        heapq.heappush(self._heap, (due, next(self._order), path, packet, False))

    def next_due(self) -> float | None:
        """When there is something to deliver."""
        return self._heap[0][0] if self._heap else None

    def deliver(self, now: float, write: Callable[[str, bytes], None]) -> None:
        """Hand over every packet that is due, in order."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            due, _, path, packet, through = heapq.heappop(heap)
            to, size = path.to, len(packet)
            if path.blocked:
                to.dropped += 1
                continue
            if not through:
                if to.host.firewall_s and not to.lets_in(packet, due):
                    to.dropped += 1
                    continue
                if to.down_bytes_s:
                    begins = max(to.down_free, due)
                    if (begins - due) * to.down_bytes_s + size > to.host.queue_bytes:
                        to.dropped += 1
                        continue
                    to.down_free = begins + size / to.down_bytes_s
                    heapq.heappush(heap, (to.down_free, next(self._order), path, packet, True))
                    continue
            to.packets_down += 1
            to.bytes_down += size
            write(to.name, packet)

    def _jitter_s(self, port: Port, now: float) -> float:
        if now >= port.jitter_until:
            port.jitter_until = now + JITTER_PERIOD_S
            port.jitter_s = self._random.uniform(0, port.host.jitter_ms / 1e3)
        return port.jitter_s

    # ---- control -----------------------------------------------------------------------------------------------------

    def set(self, name: str, **values: Any) -> None:
        """Change some of a host's values from now on. Raises: TypeError, ValueError: no such value."""
        self._ports[name].set(replace(self._ports[name].host, **values))
        self._update()

    def cut(self, *names: str) -> None:
        """Pull these hosts' cables: whatever is on its way over them is lost, and nobody is told."""
        self._set_cut(names, True)

    def restore(self, *names: str) -> None:
        self._set_cut(names, False)

    def cut_pair(self, one: str, other: str) -> None:
        """These two cannot reach each other; all else goes on."""
        self._cut_pairs.add(self._known([one, other]))
        self._update()

    def restore_pair(self, one: str, other: str) -> None:
        self._cut_pairs.discard(self._known([one, other]))
        self._update()

    def split(self, groups: Iterable[Iterable[str]]) -> None:
        """From now on two hosts reach each other only if a group holds both; a host may be in several, or in none."""
        self._groups = [self._known(group) for group in groups]
        self._update()

    def move(self, name: str, address: str) -> None:
        """This host is at another address now: what is sent to the old one, or from it, is lost, and nobody is told."""
        self._known([name])
        port, old = self._ports[name], self._ports[name].address
        port.address = socket.inet_aton(address)
        if any(other.address == port.address for other in self._ports.values() if other is not port):
            raise ValueError(f"{address} is another host's")
        for source in self._ports.values():
            if source is not port:
                source.paths[port.address] = source.paths.pop(old)
        port.holes.clear()

    def heal(self) -> None:
        """Undo the split; cables that were cut stay cut."""
        self._groups = None
        self._update()

    def counters(self) -> dict[str, Counters]:
        return {
            name: Counters(port.bytes_up, port.bytes_down, port.dropped, port.packets_up, port.packets_down)
            for name, port in self._ports.items()
        }

    def _set_cut(self, names: Iterable[str], cut: bool) -> None:
        for name in self._known(names):
            self._ports[name].cut = cut
        self._update()

    def _known(self, names: Iterable[str]) -> frozenset[str]:
        found = frozenset(names)
        if unknown := found - set(self._ports):
            raise KeyError(f"no host {sorted(unknown)}; there are {sorted(self._ports)}")
        return found

    def _update(self) -> None:
        """Bring every path in line with what holds now."""
        for port in self._ports.values():
            for path in port.paths.values():
                ends = frozenset((path.source.name, path.to.name))
                together = self._groups is None or any(ends <= group for group in self._groups)
                path.blocked = path.source.cut or path.to.cut or ends in self._cut_pairs or not together
                path.delay_s = (path.source.host.delay_ms + path.to.host.delay_ms) / 1e3
                path.loss = 1 - (1 - path.source.host.loss) * (1 - path.to.host.loss)


def _flow(packet: bytes, *, outward: bool) -> bytes:
    """Protocol, far address, near port, far port; only TCP and UDP have ports."""
    protocol, start = packet[9], (packet[0] & 15) * 4
    first, second = packet[start : start + 2], packet[start + 2 : start + 4]
    if protocol not in (TCP, UDP):
        first = second = b""
    if outward:
        return b"%c%b%b%b" % (protocol, packet[16:20], first, second)
    return b"%c%b%b%b" % (protocol, packet[12:16], second, first)


def _is_later_fragment(packet: bytes) -> bool:
    return bool(packet[6] & 31 or packet[7])
