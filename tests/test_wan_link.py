"""The lab's rules, without packets of the kernel's: `test_wan_lab` has those."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from lab.wan.link import TCP, UDP, Host, Switch

NAMES = ("a", "b", "c")
ADDRESSES = {name: f"10.77.0.{number}" for number, name in enumerate(NAMES, start=1)}


def packet(source: str, to: str, *, size: int = 1000, ports: tuple[int, int] = (1, 2), protocol: int = UDP) -> bytes:
    header = bytearray(20)
    header[0], header[9] = 0x45, protocol
    header[12:16], header[16:20] = (ipaddress.ip_address(ADDRESSES[name]).packed for name in (source, to))
    return (bytes(header) + b"".join(port.to_bytes(2, "big") for port in ports)).ljust(size, b"\0")


def switch(seed: int = 0, **hosts: Host) -> Switch:
    return Switch({name: hosts.get(name, Host()) for name in NAMES}, ADDRESSES, seed)


def drain(of: Switch) -> list[tuple[float, str, bytes]]:
    """Everything that is on its way: (when, host, packet)."""
    arrived: list[tuple[float, str, bytes]] = []
    while (due := of.next_due()) is not None:
        of.deliver(due, lambda host, data, due=due: arrived.append((due, host, data)))
    return arrived


def test_a_packet_takes_both_delays_and_its_time_on_both_lines() -> None:
    lab = switch(a=Host(delay_ms=10, up_mbit=8), b=Host(delay_ms=20, down_mbit=4))
    lab.send("a", packet("a", "b", size=1000), now=100.0)
    ((when, host, _),) = drain(lab)
    assert host == "b"
    assert when == pytest.approx(100.0 + 0.001 + 0.030 + 0.002)


def test_packets_wait_for_those_before_them_and_the_queue_is_bounded() -> None:
    lab = switch(a=Host(up_mbit=8, queue_bytes=5000))
    for _ in range(9):
        lab.send("a", packet("a", "b", size=1000), now=0.0)
    assert [round(when, 6) for when, _, _ in drain(lab)] == [0.001, 0.002, 0.003, 0.004, 0.005]
    assert lab.counters()["a"].packets_dropped == 4
    lab.send("a", packet("a", "b", size=1000), now=1.0)
    assert len(drain(lab)) == 1


def test_two_senders_share_the_receivers_downlink() -> None:
    lab = switch(c=Host(down_mbit=8))
    for name in ("a", "b"):
        lab.send(name, packet(name, "c", size=1000), now=0.0)
    assert [round(when, 6) for when, _, _ in drain(lab)] == [0.001, 0.002]


def test_jitter_delays_and_never_reorders() -> None:
    lab = switch(a=Host(delay_ms=5, jitter_ms=50))
    for number in range(200):
        lab.send("a", packet("a", "b", ports=(number, 2)), now=number / 1000)
    arrived = drain(lab)
    assert [int.from_bytes(data[20:22], "big") for _, _, data in arrived] == list(range(200))
    late = [when - number / 1000 for number, (when, _, _) in enumerate(arrived)]
    assert min(late) >= 0.005 and max(late) <= 0.055 and max(late) - min(late) > 0.01


def survivors(seed: int, **hosts: Host) -> list[int]:
    lab = switch(seed, **hosts)
    for number in range(1000):
        lab.send("a", packet("a", "b", ports=(number, 2)), now=0.0)
    return [int.from_bytes(data[20:22], "big") for _, _, data in drain(lab)]


def test_the_seed_decides_which_packets_are_lost() -> None:
    lossy = {"a": Host(loss=0.1), "b": Host(loss=0.1)}
    assert survivors(1, **lossy) == survivors(1, **lossy)
    assert survivors(1, **lossy) != survivors(2, **lossy)
    assert 750 <= len(survivors(1, **lossy)) <= 870  # 0.9 * 0.9, give or take five sigma
    assert survivors(1, a=Host(loss=1.0)) == []


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_firewall_lets_in_only_answers_and_only_for_a_while(protocol: int) -> None:
    lab = switch(a=Host(firewall_s=30))

    def answered(source: str, ports: tuple[int, int], now: float) -> bool:
        lab.send(source, packet(source, "a", ports=ports, protocol=protocol), now=now)
        return bool(drain(lab))

    assert not answered("b", (53, 4000), now=0.0)
    lab.send("a", packet("a", "b", ports=(4000, 53), protocol=protocol), now=1.0)
    assert drain(lab)
    assert answered("b", (53, 4000), now=2.0)
    assert not answered("b", (54, 4000), now=3.0), "another port of the same host"
    assert not answered("b", (53, 4001), now=3.0), "to another port inside"
    assert not answered("c", (53, 4000), now=3.0), "another host"
    assert answered("b", (53, 4000), now=30.9)
    assert not answered("b", (53, 4000), now=31.1), "what comes in does not keep it open"
    counters = lab.counters()
    assert counters["a"].packets_dropped == 5 and counters["a"].packets_down == 2


def reach(lab: Switch) -> set[str]:
    """Who reaches whom: "ab" is from a to b."""
    found = set()
    for source in NAMES:
        for to in NAMES:
            if source != to:
                lab.send(source, packet(source, to), now=0.0)
                found |= {source + host for _, host, _ in drain(lab)}
    return found


def test_cuts_and_splits_take_away_what_they_say_and_no_more() -> None:
    lab, everyone = switch(), {"ab", "ac", "ba", "bc", "ca", "cb"}
    assert reach(lab) == everyone
    lab.cut("a")
    assert reach(lab) == {"bc", "cb"}
    lab.restore("a")
    lab.cut_pair("b", "c")
    assert reach(lab) == everyone - {"bc", "cb"}
    lab.restore_pair("c", "b")
    lab.split([["a", "b"], ["c"]])
    assert reach(lab) == {"ab", "ba"}
    lab.split([["a", "b"], ["a", "c"]])
    assert reach(lab) == everyone - {"bc", "cb"}, "a host may be in several groups"
    lab.cut("c")
    lab.heal()
    assert reach(lab) == {"ab", "ba"}, "healing a split mends no cable"
    lab.restore("c")
    assert reach(lab) == everyone


def test_what_is_on_its_way_when_a_cable_is_cut_is_lost() -> None:
    lab = switch(a=Host(delay_ms=10))
    lab.send("a", packet("a", "b"), now=0.0)
    lab.cut("b")
    assert drain(lab) == []
    assert lab.counters()["b"].packets_dropped == 1


def test_every_packet_is_counted_once() -> None:
    lab = switch(
        a=Host(up_mbit=8, queue_bytes=4000, loss=0.2), b=Host(down_mbit=4, queue_bytes=2000), c=Host(firewall_s=1)
    )
    for number in range(300):
        source, to = (("a", "b"), ("b", "c"), ("a", "c"), ("c", "a"))[number % 4]
        lab.send(source, packet(source, to, ports=(number, 7)), now=number / 2000)
    lab.send("a", bytes(40), now=0.2)  # to nowhere
    arrived = drain(lab)
    counters = lab.counters().values()
    assert sum(item.packets_up for item in counters) == 301
    assert sum(item.packets_down for item in counters) == len(arrived)
    assert sum(item.packets_dropped for item in counters) == 301 - len(arrived)
    assert sum(item.bytes_down for item in counters) == 1000 * len(arrived)
    assert sum(item.bytes_up for item in counters) == 300 * 1000 + 40


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"loss": 1.5}, "loss: expected a share between 0 and 1"),
        ({"delay_ms": -1}, "delay_ms: expected a number of at least 0"),
        ({"up_mbit": float("nan")}, "up_mbit: expected a number of at least 0"),
        ({"upmbit": 5}, "upmbit"),
    ],
)
def test_values_that_no_line_has_are_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises((ValueError, TypeError), match=told):
        switch().set("a", **values)
