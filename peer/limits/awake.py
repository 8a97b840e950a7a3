"""Whether this computer slept, or is elsewhere in the network now: then what is open may be dead, and nobody says so.

A thread looks once a second. A sleep shows as a gap between two looks, on a clock that goes on meanwhile; another place
as a source address that connections would now be made from, and that they were not made from before.

    >>> lookout = Lookout(0.0, Whereabouts(("eth0", "10.0.0.2"), None, frozenset({"10.0.0.2"})))
    >>> lookout.look(181.0, Whereabouts(("eth0", "10.0.0.2"), None, frozenset({"10.0.0.2"})))
    Change(slept_s=180.0, moved=False)
    >>> lookout.look(182.0, Whereabouts(("wlan0", "10.9.0.7"), None, frozenset({"10.9.0.7"})))
    Change(slept_s=0.0, moved=True)
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import psutil

from protocol.backoff import Backoff
from protocol.parts import SupervisedThread, Told

logger = logging.getLogger(__name__)

LOOK_S = 1.0
ASLEEP_S = 10.0  # a shorter gap may be a busy computer's; no connection dies of it
NOWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}  # RFC 5737, RFC 3849: nobody's
Route = tuple[str, str]  # the interface and the source address of a connection to far away
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # goes on in a sleep; on macOS the latter does


class Whereabouts(NamedTuple):
    """Where this computer is: its ways out, by IPv4 and IPv6, and its own addresses."""

    v4: Route | None
    v6: Route | None
    addresses: frozenset[str]


class Change(NamedTuple):
    """What was noticed: how long this computer slept, 0 if it did not; and whether it is elsewhere now."""

    slept_s: float
    moved: bool


class Lookout:
    """Compares each look with the one before.

    Args:
        now: of a clock that goes on while the computer sleeps, in seconds.
        place: None: this system does not tell.
    """

    def __init__(self, now: float, place: Whereabouts | None) -> None:
        self._before, self._place = now, place

    def look(self, now: float, place: Whereabouts | None) -> Change | None:
        """What has changed; None: nothing that a connection would die of."""
        gap_s, self._before = now - self._before - LOOK_S, now
        before, self._place = self._place, place
        change = Change(gap_s if gap_s >= ASLEEP_S else 0.0, _has_moved(before, place))
        return change if change.slept_s or change.moved else None


def _has_moved(before: Whereabouts | None, now: Whereabouts | None) -> bool:
    """A way out that is new; where there is none at all, as in a network of its own, an address that is gone.

    A second address on the same interface, as IPv6 takes one each day, changes nothing for what is open.
    """
    if before is None or now is None:
        return False
    for route, old in ((now.v4, before.v4), (now.v6, before.v6)):
        if route is not None and (old is None or route[0] != old[0] or old[1] not in now.addresses):
            return True
    has_no_way = not (now.v4 or now.v6 or before.v4 or before.v6)
    if not has_no_way:
        return False
    return bool(now.addresses) and not before.addresses <= now.addresses


def own_place() -> Whereabouts:
    """Where this computer is; no packet is sent.

    Raises:
        OSError, psutil.Error, NotImplementedError: this system does not tell.
    """
    by_address: dict[str, str] = {}
    for name, items in psutil.net_if_addrs().items():
        for item in items:
            if item.family in NOWHERE and _is_far(item.address):
                by_address[item.address] = name
    v4, v6 = (_route(family, by_address) for family in (socket.AF_INET, socket.AF_INET6))
    return Whereabouts(v4, v6, frozenset(by_address))


def _is_far(address: str) -> bool:
    with contextlib.suppress(ValueError):
        found = ipaddress.ip_address(address.partition("%")[0])
        return not (found.is_loopback or found.is_link_local)
    return False


def _route(family: int, by_address: dict[str, str]) -> Route | None:
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((NOWHERE[socket.AddressFamily(family)], 9))
        source = str(probe.getsockname()[0])
        return by_address.get(source, ""), source
    return None


class Awake:
    """Looks while it is entered.

    Args:
        changed: called in the thread with each change.
        problem: shows the owner a message.
        on_failure: told when the thread fails by a mistake of ours; it is started again.
        clock, place: as the system has them.
    """

    def __init__(
        self,
        changed: Callable[[Change], None],
        problem: Callable[..., None],
        on_failure: Told,
        clock: Callable[[], float] = lambda: time.clock_gettime(CLOCK),
        place: Callable[[], Whereabouts] = own_place,
    ) -> None:
        self._changed, self._problem, self._clock, self._place = changed, problem, clock, place
        self._is_blind = False  # and has said so
        self._closing = threading.Event()
        restarts = Backoff(LOOK_S, 60.0)
        self._thread = SupervisedThread("awake", self._forever, self._closing, on_failure, restarts, vital=False)

    def __enter__(self) -> Awake:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join(5.0)

    def _forever(self) -> None:
        lookout = Lookout(self._clock(), self._where())
        while not self._closing.wait(LOOK_S):
            change = lookout.look(self._clock(), self._where())
            if change is not None:
                logger.info(
                    "slept for %.0f s, %s", change.slept_s, "elsewhere now" if change.moved else "here as before"
                )
                self._changed(change)

    def _where(self) -> Whereabouts | None:
        try:
            return self._place()
        except (OSError, psutil.Error, NotImplementedError) as error:
            if not self._is_blind:
                self._is_blind = True
                self._problem("network-not-watched", reason=str(error) or type(error).__name__)
            return None
