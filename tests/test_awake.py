"""A computer that slept, or is elsewhere in the network: noticed by the next look, told, and repaired at once."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.processes import eventually
from lab.wan.namespace import Namespace, available
from peer.limits import awake
from peer.limits.awake import LOOK_S, Awake, Change, Lookout, Whereabouts, own_place
from peer.link.notices import Notices
from peer.net import gossip, search
from peer.net.search import MemberSearch
from peer.round.events import Woken
from protocol.errors import NetworkError
from protocol.parts import Failure
from protocol.swarm_pb2 import Progress
from tests.core_kit import after_round_1, make_core, spec_of
from tests.swarm_kit import World, run, until

HOME = Whereabouts(("wlan0", "192.168.1.5"), None, frozenset({"192.168.1.5"}))
OFFICE = Whereabouts(("wlan0", "10.3.0.9"), None, frozenset({"10.3.0.9"}))
NO_NETWORK = Whereabouts(None, None, frozenset())
CABLE = Whereabouts(("eth0", "192.168.1.6"), None, frozenset({"192.168.1.5", "192.168.1.6"}))
NEW_DAY = Whereabouts(None, ("eth0", "2003::2"), frozenset({"2003::1", "2003::2"}))
DAY = Whereabouts(None, ("eth0", "2003::1"), frozenset({"2003::1"}))
LAN, OTHER_LAN = (Whereabouts(None, None, frozenset({address})) for address in ("10.0.0.1", "10.0.1.1"))
DOCKER = Whereabouts(*HOME[:2], HOME.addresses | {"172.17.0.1"})


@pytest.mark.parametrize(
    ("before", "now", "moved"),
    [
        (HOME, OFFICE, True),
        (HOME, CABLE, True),  # a new default route, though the old address is still there
        (HOME, NO_NETWORK, False),  # there is nothing to connect by
        (NO_NETWORK, HOME, True),
        (LAN, OTHER_LAN, True),
        (LAN, LAN, False),
        (HOME, DOCKER, False),
        (DOCKER, HOME, False),
        (DAY, NEW_DAY, False),  # what is open goes on from the address of the day before
        (HOME, None, False),
        (None, HOME, False),
    ],
)
def test_what_counts_as_another_place(before: Whereabouts | None, now: Whereabouts | None, moved: bool) -> None:
    change = Lookout(0.0, before).look(LOOK_S, now)
    assert (change is not None) == moved
    assert change is None or change == Change(0.0, True)


def test_a_cable_that_comes_back_is_another_place_after_a_while_without_any() -> None:
    lookout = Lookout(0.0, HOME)
    assert [lookout.look(second, NO_NETWORK) for second in (1.0, 2.0)] == [None, None]
    assert lookout.look(3.0, HOME) == Change(0.0, True)


def test_a_sleep_is_told_once_and_a_busy_computer_is_not_asleep() -> None:
    lookout = Lookout(100.0, HOME)
    assert lookout.look(104.0, HOME) is None
    assert lookout.look(104.0 + 180 + LOOK_S, OFFICE) == Change(180.0, True)
    assert lookout.look(105.0 + 180 + LOOK_S, OFFICE) is None


def test_this_system_tells_where_it_is() -> None:
    place = own_place()
    assert all(route is None or route[1] for route in place[:2]) and "127.0.0.1" not in place.addresses


class Computer:
    """Clocks and addresses that a test sets."""

    def __init__(self) -> None:
        self.now, self.place = 0.0, HOME
        self.changes: list[Change] = []
        self.said: list[str] = []
        self.failures: list[Failure] = []
        self.looks = 0

    def clock(self) -> float:
        self.now += LOOK_S
        return self.now

    def where(self) -> Whereabouts:
        self.looks += 1
        return self.place

    def changed(self, change: Change) -> None:
        self.changes.append(change)

    def say(self, key: str, **values: str) -> None:
        self.said.append(key)

    def watched(self) -> Awake:
        return Awake(self.changed, self.say, self.failures.append, self.clock, self.where)


@pytest.fixture
def computer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Computer]:
    monkeypatch.setattr(awake, "LOOK_S", 0.01)
    yield Computer()


def test_the_thread_tells_of_a_sleep_and_of_another_place(computer: Computer) -> None:
    with computer.watched():
        eventually(lambda: computer.looks > 2)
        computer.now += 180
        eventually(lambda: computer.changes)
        computer.place = OFFICE
        eventually(lambda: len(computer.changes) > 1)
    (slept, moved) = computer.changes
    assert 180 <= slept.slept_s < 190 and not slept.moved
    assert moved == Change(0.0, True) and not computer.failures


def test_a_system_that_does_not_tell_its_addresses_is_said_once_and_sleeps_are_noticed(computer: Computer) -> None:
    def refused() -> Whereabouts:
        computer.looks += 1
        raise PermissionError("not for you")

    with Awake(computer.changed, computer.say, computer.failures.append, computer.clock, refused):
        eventually(lambda: computer.looks > 5)
        computer.now += 60
        eventually(lambda: computer.changes)
    assert computer.said == ["network-not-watched"]


def test_a_mistake_in_what_is_told_does_not_end_the_thread(computer: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.parts.Backoff.failed", lambda self: 0.01, raising=True)
    told = iter([ZeroDivisionError()])

    def changed(change: Change) -> None:
        for error in told:
            raise error
        computer.changes.append(change)

    with Awake(changed, computer.say, computer.failures.append, computer.clock, computer.where):
        eventually(lambda: computer.looks > 2)
        computer.now += 60
        eventually(lambda: computer.failures)
        looks = computer.looks
        eventually(lambda: computer.looks > looks + 2)
        computer.now += 60
        eventually(lambda: computer.changes)
    assert [(item.part, item.is_final) for item in computer.failures] == [("awake", False)]


def test_the_owner_hears_of_a_sleep_and_of_the_first_round_after_it() -> None:
    said: list[tuple[str, dict[str, str]]] = []
    notices = Notices(lambda key, **values: said.append((key, values)))
    notices.committed(10, took_part=True)
    notices.changed(Change(180.0, True))
    notices.committed(11, took_part=False)
    for round in (12, 13):
        notices.committed(round, took_part=True)
    notices.changed(Change(0.0, True))
    assert said == [("slept", {"time": "3 min"}), ("back", {"round": "12"}), ("network-changed", {})]


def test_the_owner_hears_of_rounds_that_are_made_without_this_computer_and_of_the_first_with_it() -> None:
    said: list[tuple[str, dict[str, str]]] = []
    notices = Notices(lambda key, **values: said.append((key, values)))
    for limit, first in ((None, 1), (2.0, 10)):
        for round in range(first, first + 7):
            notices.committed(round, took_part=False, upload_mbit=limit)
        notices.committed(first + 7, took_part=True, upload_mbit=limit)
    assert said == [
        ("left-behind", {"rounds": "5"}),
        ("back", {"round": "8"}),
        ("left-behind-by-limit", {"rounds": "5", "mbit": "2"}),
        ("back", {"round": "17"}),
    ]
    for round in range(20, 40):
        notices.committed(round, took_part=False, waits=round % 5 == 0)
    assert len(said) == 4, "there was no place for it in between"
    notices.changed(Change(180.0, False))
    for round in range(40, 60):
        notices.committed(round, took_part=False)
    assert [key for key, _ in said[4:]] == ["slept", "left-behind"] and said[-1][1] == {"rounds": "20"}


def test_who_could_not_give_a_head_before_the_sleep_is_asked_again_at_once() -> None:
    core = make_core("alice", spec_of(), after_round_1({"alice": 1, "bob": 1}))
    core.state.search.failed["bob"] = core.state.search.retry_at = 30.0
    core.step(Woken(), 1.0)
    assert not core.state.search.failed and core.state.search.retry_at <= 1.0


# ---- the swarm -------------------------------------------------------------------------------------------------------


def test_who_comes_back_opens_all_streams_anew_says_where_it_is_and_makes_the_next_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search alone would have looked after an hour; nobody is missing, as far as it knows."""
    for name in ("SEARCH_INTERVAL_S", "SEARCH_SELDOM_S", "RECORD_INTERVAL_S"):
        monkeypatch.setattr(search, name, 3600.0)
    monkeypatch.setattr(search, "LEARNED_S", 0.01)

    async def main() -> None:
        world = World(tmp_path, values=1000, round_tokens=500)
        async with world.peers(2) as peers:
            one = peers[0]
            token = world.certificate(0)
            looking = MemberSearch(one.node, one.driver, world.identity(0), lambda: token)  # type: ignore[arg-type]
            forever = asyncio.create_task(looking.forever())
            network: Any = world.network
            await until(lambda: network.records)
            await until(lambda: min(peer.round for peer in peers) >= 1)
            network.records.clear()
            before = {writer for writer in one.node.open_writers if not writer.is_closing()}
            await looking.reconnect()
            assert before and all(writer.is_closing() for writer in before)
            await until(lambda: {one.me} in peers[1].node.disconnected, what="its dead connection to be let go of")
            await until(lambda: network.records, what="the record")
            at = max(peer.round for peer in peers)
            await until(lambda: any(report.took_part for report in one.reports[at:]))
            forever.cancel()
            await asyncio.gather(forever, return_exceptions=True)
            assert one.node.disconnected == [None] and peers[1].node.disconnected == [{one.me}], "once, and no echo"

    run(main())


def test_a_new_address_is_told_over_the_streams_that_are_open(tmp_path: Path) -> None:
    async def main() -> None:
        async with World(tmp_path, values=1000).peers(2) as (one, other):
            await until(lambda: other.driver.roster.is_admitted(one.me))
            one.driver.addresses = [f"/ip4/10.9.0.7/tcp/4701/p2p/{one.me}"]
            await until(lambda: other.driver.roster.addresses(one.me) == tuple(one.driver.addresses))

    run(main())


def test_who_says_all_the_time_that_it_has_moved_is_met_again_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time the others dial up to 16 addresses, which need not be its own."""

    async def main() -> None:
        async with World(tmp_path, values=1000).peers(2) as (one, other):
            await until(lambda: other.driver.roster.is_admitted(one.me) and one.driver.roster.is_admitted(other.me))

            async def move() -> int:
                one.driver.gossip.forget()
                one.driver.talk.spawn(one.driver.gossip.tell_everyone())  # as long as the streams that it opens
                await asyncio.sleep(0.05)
                return len(other.node.disconnected)

            monkeypatch.setattr(gossip, "MEET_AGAIN_S", 3600.0)
            other.driver.gossip._moved.clear()
            await until(lambda: one.me in other.driver.gossip._moved)
            assert max([await move() for _ in range(10)]) == 1
            monkeypatch.setattr(gossip, "MEET_AGAIN_S", 0.0)
            await until(lambda: len(other.node.disconnected) == 2, what="its last word to be taken")

    run(main())


# ---- the kernel's routes ---------------------------------------------------------------------------------------------


def test_a_new_default_route_is_noticed_though_the_old_address_is_still_there() -> None:
    if reason := available():
        pytest.skip(f"no network namespaces here: {reason}")
    if shutil.which("ip") is None:
        pytest.skip("no `ip` here to change routes with")

    def ip(command: str) -> None:
        subprocess.run(["ip", *command.split()], check=True, timeout=20)

    def cabled() -> tuple[Whereabouts, Whereabouts]:
        ip("route add default via 10.77.0.254 dev wan0 metric 600")
        wireless = own_place()
        for command in ("tuntap add cable mode tun", "addr add 10.88.0.5/24 dev cable", "link set cable up"):
            ip(command)
        ip("route add default via 10.88.0.1 dev cable metric 100")
        return wireless, own_place()

    with Namespace("10.77.0.9") as here:
        wireless, cable = here.call(cabled)
    assert (wireless.v4, cable.v4) == (("wan0", "10.77.0.9"), ("cable", "10.88.0.5"))
    assert "10.77.0.9" in cable.addresses
    assert Lookout(0.0, wireless).look(LOOK_S, cable) == Change(0.0, True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_libp2p_lets_go_of_its_connections_and_makes_new_ones(tmp_path: Path) -> None:
    """A call under way fails then, long before its time is over."""

    async def main() -> None:
        world = World(tmp_path, p2pd=True)
        async with world.nodes(2) as (one, other):
            asked, over = asyncio.Event(), asyncio.Event()

            async def never(peer: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                asked.set()
                await over.wait()

            await other.serve("wait", never)
            call = asyncio.create_task(one.call(other.peer_id, "wait", Progress(round=1), Progress, timeout_s=3600))
            await asked.wait()
            await one.disconnect()
            with pytest.raises(NetworkError):
                await call
            over.set()
            assert await one.connect(await other.addresses()) == {other.peer_id}

    run(main(), 120)
