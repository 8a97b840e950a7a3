"""How many calls may be under way at once, in all and from one sender; whoever has most gives way when all is taken.

`door` counts calls by the network that they come from, `service` by the member. Nothing here waits.

    >>> places, ended = Places(total=3, each=2), []
    >>> first = places.take("203.0.113.7", lambda: ended.append("first"))
    >>> second = places.take("203.0.113.7", lambda: ended.append("second"))
    >>> third = places.take("198.51.100.1", lambda: ended.append("third"))
    >>> fourth = places.take("192.0.2.44", lambda: ended.append("fourth"))
    >>> ended
    ['first']
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import unquote

from protocol.errors import NetworkError


class CountedCall:
    """One call that is counted in."""

    def __init__(self, sender: str, end: Callable[[], object]) -> None:
        self.sender, self.end = sender, end


class Places:
    """Counts calls by their sender; may be used from any thread.

    Args:
        total: at once, of all senders.
        each: at once, of one.
    """

    def __init__(self, *, total: int, each: int) -> None:
        self._total, self._each = total, each
        self._lock = threading.Lock()
        self._taken: dict[str, list[CountedCall]] = {}  # of each sender, the oldest first
        self._count = 0

    def take(self, sender: str, end: Callable[[], object]) -> CountedCall:
        """Count a call in.

        Args:
            end: ends the call, when it must give way.

        Raises:
            NetworkError: this sender has enough, or all is taken by others who have no more than it.
        """
        call, heaviest = CountedCall(sender, end), None
        with self._lock:
            mine = len(self._taken.get(sender, ()))
            if mine >= self._each:
                raise NetworkError(f"you have {mine} such calls under way already", "try again in some seconds")
            if self._count >= self._total:
                heaviest = max(self._taken.values(), key=len)[0]
                if len(self._taken[heaviest.sender]) <= mine + 1:
                    raise NetworkError("the coordinator is busy", "try again in some seconds")
                self._remove(heaviest)
            self._taken.setdefault(sender, []).append(call)
            self._count += 1
        if heaviest is not None:
            heaviest.end()
        return call

    def give(self, call: CountedCall) -> None:
        """The call is over; harmless twice."""
        with self._lock:
            if call in self._taken.get(call.sender, ()):
                self._remove(call)

    @contextmanager
    def taken(self, sender: str, end: Callable[[], object] = lambda: None) -> Iterator[None]:
        """Count a call in for the time of a block. Raises: as `take`."""
        call = self.take(sender, end)
        try:
            yield
        finally:
            self.give(call)

    def _remove(self, call: CountedCall) -> None:
        self._taken[call.sender].remove(call)
        self._count -= 1
        if not self._taken[call.sender]:
            del self._taken[call.sender]


def network_of(peer: str) -> str:
    """Where a call comes from, as far as one sender can be told from another: an IPv4 address, or an IPv6 /64.

    Args:
        peer: as gRPC writes it.

    >>> network_of("ipv4:203.0.113.7:40000"), network_of("ipv6:%5B2001:db8:1:2:3::4%5D:40000")
    ('203.0.113.7', '2001:db8:1:2::/64')
    >>> network_of("ipv6:%5B::ffff:203.0.113.7%5D:40000")
    '203.0.113.7'
    """
    text = unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
