"""`Measure`: little for anyone, nothing for those who ask too often, and nobody is dialled but who asks."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from coordinator.line import CALLS, CALLS_OF_ALL, DIALS, DIALS_AT_ONCE, DIALS_OF_ALL, LineDesk
from protocol.coordinator_pb2 import CLOSED, NOT_TRIED, OPEN, MeasureRequest
from protocol.errors import FormatError, NetworkError
from protocol.rpc import MAX_MEASURED_BYTES

PUBLIC = "8.8.4.4"


class Dialled:
    """Takes down who would be dialled."""

    def __init__(self, answers: bool = True) -> None:
        self.calls: list[tuple[str, int]] = []
        self._answers = answers

    def __call__(self, address: str, port: int) -> bool:
        self.calls.append((address, port))
        return self._answers


def desk(dialled: Any = None, now: list[float] | None = None) -> LineDesk:
    times = now or [0.0]
    return LineDesk(dialled or Dialled(), lambda: times[0])


def test_what_is_wished_for_comes_and_no_more_than_allowed() -> None:
    reply = desk().measure(MeasureRequest(want_bytes=MAX_MEASURED_BYTES), PUBLIC)
    assert len(reply.data) == MAX_MEASURED_BYTES and reply.seen == PUBLIC
    with pytest.raises(FormatError):
        desk().measure(MeasureRequest(want_bytes=MAX_MEASURED_BYTES + 1), PUBLIC)
    with pytest.raises(FormatError):
        desk().measure(MeasureRequest(data=bytes(MAX_MEASURED_BYTES + 1)), PUBLIC)


def test_a_network_is_answered_a_few_times_a_minute_and_the_others_all_the_same() -> None:
    now = [0.0]
    asked = desk(now=now)
    for _ in range(2 * CALLS):
        asked.measure(MeasureRequest(), PUBLIC)
    with pytest.raises(NetworkError, match="wait 3 s"):
        asked.measure(MeasureRequest(), PUBLIC)
    asked.measure(MeasureRequest(), "8.8.8.8")
    now[0] = 3.0
    asked.measure(MeasureRequest(), PUBLIC)


def test_many_networks_together_get_no_more_than_a_line_can_bear() -> None:
    asked = desk()
    for number in range(2 * CALLS_OF_ALL):
        asked.measure(MeasureRequest(), f"2001:4860:4860:{number:x}::/64")
    with pytest.raises(NetworkError, match="by all together"):
        asked.measure(MeasureRequest(), PUBLIC)


def test_many_networks_together_have_few_dialled() -> None:
    dialled = Dialled()
    asked = desk(dialled)
    for number in range(2 * DIALS_OF_ALL + 5):
        asked.measure(MeasureRequest(port=4710), f"8.8.4.{number}")
    assert len(dialled.calls) == 2 * DIALS_OF_ALL


@pytest.mark.parametrize(("answers", "reached"), [(True, OPEN), (False, CLOSED)])
def test_the_one_who_asks_is_dialled_and_told(answers: bool, reached: int) -> None:
    dialled = Dialled(answers)
    assert desk(dialled).measure(MeasureRequest(port=4710), PUBLIC).reached == reached
    assert dialled.calls == [(PUBLIC, 4710)]


@pytest.mark.parametrize(
    ("network", "port"),
    [
        (PUBLIC, 0),
        (PUBLIC, 22),  # of a system's own services
        (PUBLIC, 70_000),
        ("127.0.0.1", 4710),  # the host's own computer
        ("192.168.1.1", 4710),  # or its network
        ("169.254.169.254", 4710),
        ("100.64.0.1", 4710),
        ("2001:4860:4860:8888::/64", 4710),
        ("unix:", 4710),
    ],
)
def test_nobody_else_is_dialled(network: str, port: int) -> None:
    dialled = Dialled()
    assert desk(dialled).measure(MeasureRequest(port=port), network).reached == NOT_TRIED
    assert not dialled.calls


def test_dialling_is_rare_for_one_and_little_for_all() -> None:
    dialled = Dialled()
    often = desk(dialled)
    told = [often.measure(MeasureRequest(port=4710), PUBLIC).reached for _ in range(2 * DIALS + 1)]
    assert told == [OPEN] * (2 * DIALS) + [NOT_TRIED]

    waiting, over = threading.Semaphore(0), threading.Event()

    def slow(address: str, port: int) -> bool:
        waiting.release()
        return over.wait(10)

    busy = desk(slow)
    dials = [
        threading.Thread(target=busy.measure, args=(MeasureRequest(port=4710), f"8.8.8.{number}"))
        for number in range(DIALS_AT_ONCE)
    ]
    for dial in dials:
        dial.start()
        assert waiting.acquire(timeout=10)
    assert busy.measure(MeasureRequest(port=4710), PUBLIC).reached == NOT_TRIED
    over.set()
    for dial in dials:
        dial.join(10)
