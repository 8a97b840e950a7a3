"""The owner's limits: the file, the gate that decides, and the thread that looks after both."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.processes import eventually
from peer.limits import gate, watch
from peer.limits.gate import AGAIN_S, Permission, Readings, Wish, decide, rest_s
from peer.limits.limits import MAX_BYTES, OwnLimits, example, parse, read, write_example
from peer.limits.watch import Watch
from protocol import words
from protocol.errors import InputError

NOON = datetime.datetime(2026, 12, 2, 12, 0).astimezone()  # a Wednesday
QUIET = Readings(now=NOON)


def at(day: int, hour: int, minute: int = 0) -> datetime.datetime:
    return datetime.datetime(2026, 12, day, hour, minute).astimezone()


def after(seconds: float, **told: Any) -> Readings:
    return replace(QUIET, now=NOON + datetime.timedelta(seconds=seconds), **told)


# ---- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", words.LANGUAGES)
def test_the_example_names_every_limit_and_limits_nothing_until_a_line_is_switched_on(language: str) -> None:
    assert parse(example(language)) == OwnLimits()
    lines = [
        line.removeprefix("# ")
        for line in example(language).decode().splitlines()
        if line.startswith("# ") and " = " in line
    ]
    limits = parse("\n".join(lines).encode())
    assert limits.model_fields_set == set(OwnLimits.model_fields)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("shares = 0.5", "shares: there is no such limit; did you mean share?"),
        ("colour = 1", "colour: there is no such limit; there are share, "),
        ("share = 0", "share: Input should be greater than or equal to 0.05"),
        ("share = 'half'", "share: Input should be a valid number"),
        ("threads = 0", "threads: "),
        ("temperature_c = 500", "temperature_c: "),
        ("upload_mbit = nan", "upload_mbit: "),
        ('hours = ["22-7"]', "'22-7' is no span of hours; write \"22:00-07:00\""),
        ('hours = ["24:00-07:00"]', "no span of hours"),
        ('hours = ["07:00-07:00"]', "no span of hours"),
        ('days = ["sunday"]', "'sunday' is no day; write one of mon"),
        ("share = ", "no TOML"),
        ("\x00", "no TOML"),
        ("a = " + "[" * 5000, "no TOML"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_write(line: str, told: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(line.encode())
    assert told in caught.value.message and "\n" not in caught.value.message


def test_what_is_no_text_or_too_long_is_refused(tmp_path: Path) -> None:
    for data in (b"\xff\xfe", b"#" * (MAX_BYTES + 1)):
        with pytest.raises(InputError):
            parse(data)
    with pytest.raises(InputError, match="directory"):
        read(tmp_path)
    assert read(tmp_path / "none.toml") == OwnLimits()


def test_what_the_command_line_says_goes_before_the_file() -> None:
    given = ["share=0.5", "hours=22:00-07:00,12:00-13:00", "on_battery=false", "days=sat"]
    limits = parse(b"share = 0.2\nthreads = 3", given=given)
    assert (limits.share, limits.threads, limits.on_battery) == (0.5, 3, False)
    assert limits.hours == ("22:00-07:00", "12:00-13:00") and limits.days == ("sat",)
    with pytest.raises(InputError, match="no key=value"):
        parse(b"", given=["share"])


def test_the_example_never_overwrites_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "home" / "limits.toml"
    assert write_example(path, "en")
    path.write_text("share = 0.5")
    assert not write_example(path, "en") and read(path).share == 0.5


# ---- hours and days --------------------------------------------------------------------------------------------------


def test_a_span_over_midnight_belongs_to_the_day_on_which_it_begins() -> None:
    limits = OwnLimits(hours=("22:00-07:00",), days=("fri",))  # the 4th
    open_at = [at(4, 22), at(4, 23, 59), at(5, 0), at(5, 6, 59)]
    closed_at = [at(3, 23), at(4, 3), at(4, 21, 59), at(5, 7), at(5, 23)]
    assert all(map(limits.is_open, open_at)) and not any(map(limits.is_open, closed_at))
    assert limits.changes_at(at(4, 12)) == at(4, 22) and limits.changes_at(at(4, 23)) == at(5, 7)
    assert limits.changes_at(at(5, 8)) == at(11, 22)


@given(
    st.lists(st.tuples(st.integers(0, 1439), st.integers(0, 1439)).filter(lambda pair: pair[0] != pair[1]), max_size=4),
    st.sets(st.sampled_from(["mon", "tue", "wed", "thu", "fri", "sat", "sun"])),
    st.integers(0, 7 * 1440 - 1),
)
def test_between_now_and_the_next_change_nothing_changes(
    spans: list[tuple[int, int]], days: set[str], minute: int
) -> None:
    hours = tuple(f"{a // 60:02}:{a % 60:02}-{b // 60:02}:{b % 60:02}" for a, b in spans)
    limits = OwnLimits(hours=hours, days=tuple(days))
    now = at(7, 0) + datetime.timedelta(minutes=minute, seconds=30)
    change = limits.changes_at(now)
    end = change or now + datetime.timedelta(days=8)
    assert change is None or limits.is_open(change) != limits.is_open(now)
    step = datetime.timedelta(minutes=7)
    moment = now
    while moment < end:
        assert limits.is_open(moment) == limits.is_open(now)
        moment += step


# ---- the gate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "told", "key"),
    [
        ({"hours": ["22:00-07:00"]}, {}, "not-now"),
        ({"days": ["sat"]}, {}, "not-now"),
        ({"month_gb": 2}, {"month_bytes": 2 * 10**9}, "month-used"),
        ({"away_minutes": 10}, {"idle_s": 599.0}, "owner-is-here"),
        ({"on_battery": False}, {"on_battery": True}, "on-battery"),
        ({"on_metered": False}, {"on_metered": True}, "on-metered"),
        ({"programs": ["Blender.exe"]}, {"programs": frozenset({"blender"})}, "program-runs"),
        ({"full_screen": False}, {"full_screen": True}, "full-screen"),
        ({"temperature_c": 80}, {"temperature_c": 80.0}, "too-hot"),
        ({"disk_free_gb": 1}, {"disk_free_bytes": 10**9 - 1}, "disk-low"),
    ],
)
def test_each_limit_stands_against_work_only_where_it_is_set_and_the_system_tells(
    limits: dict[str, Any], told: dict[str, Any], key: str
) -> None:
    held, readings = OwnLimits.model_validate(limits), replace(QUIET, **told)
    verdict = decide(held, readings, Wish(), Permission())
    assert verdict.why is not None and verdict.why.key == key and not verdict.may_work
    assert decide(OwnLimits(), readings, Wish(), Permission()).may_work
    if told:
        assert decide(held, QUIET, Wish(), Permission()).may_work, "a system that does not tell limits nothing"


def test_the_owners_word_goes_before_all_else_and_ends_by_itself() -> None:
    limits, until = OwnLimits(hours=("22:00-07:00",)), NOON + datetime.timedelta(hours=2)
    verdict = decide(limits, QUIET, Wish(True, until), Permission())
    assert verdict.why is not None and (verdict.why.key, verdict.until) == ("owner-paused", until)
    assert decide(OwnLimits(), after(7201), Wish(True, until), verdict).may_work
    assert not decide(OwnLimits(), after(10**6), Wish(True), verdict).may_work


def test_who_has_paused_needs_a_clear_sign_for_a_while() -> None:
    limits = OwnLimits(temperature_c=80)
    hot = decide(limits, after(0, temperature_c=81.0), Wish(), Permission())
    still = decide(limits, after(1, temperature_c=75.0), Wish(), hot)
    assert still.why == hot.why, "cooler, and not cool"
    first = decide(limits, after(2, temperature_c=70.0), Wish(), still)
    assert not first.may_work and first.clear_since == after(2).now
    again = decide(limits, after(3, temperature_c=79.0), Wish(), first)
    assert again.clear_since is None, "it begins anew"
    cool = decide(limits, after(4, temperature_c=70.0), Wish(), again)
    assert not decide(limits, after(3 + AGAIN_S, temperature_c=70.0), Wish(), cool).may_work
    assert decide(limits, after(4 + AGAIN_S, temperature_c=70.0), Wish(), cool).may_work


def test_a_warm_card_rests_more_and_a_cool_one_less_again() -> None:
    limits, verdict = OwnLimits(temperature_c=80, share=0.9), Permission(share=0.9)
    shares = []
    for told in [78.0] * 40 + [60.0] * 80:
        verdict = decide(limits, replace(QUIET, temperature_c=told), Wish(), verdict)
        assert verdict.may_work
        shares.append(verdict.share)
    assert shares[0] < 0.9 and min(shares) == pytest.approx(gate.LEAST_SHARE) and shares[-1] == pytest.approx(0.9)
    assert decide(OwnLimits(power_w=100), replace(QUIET, power_w=120.0), Wish(), Permission()).share < 1.0


@given(st.floats(0.05, 1.0), st.floats(0.001, 60.0))
def test_work_takes_its_share_of_the_time(share: float, step_s: float) -> None:
    assert step_s / (step_s + rest_s(share, step_s)) == pytest.approx(share)


# ---- the thread ------------------------------------------------------------------------------------------------------


class FakeSensors:
    """Tells what it is told to."""

    def __init__(self) -> None:
        self.readings, self.applied = QUIET, [OwnLimits()][:0]

    def read(self, limits: OwnLimits) -> Readings:
        return self.readings

    def apply(self, limits: OwnLimits) -> None:
        self.applied.append(limits)


class Home:
    """A home with a run's folder."""

    def __init__(self, path: Path) -> None:
        self.path, self.folder, self.sensors = path, path / "runs", FakeSensors()
        self.folder.mkdir()
        self.problems: list[str] = []
        self.failures: list[object] = []

    def write(self, text: str) -> None:
        fresh = self.path / "limits.toml.new"
        fresh.write_text(text)
        fresh.replace(self.path / "limits.toml")

    @contextmanager
    def watch(self, *given: str) -> Iterator[Watch]:
        def problem(key: str, **values: str) -> None:
            self.problems.append(key)

        with Watch(self.path, self.folder, given, self.sensors, self.failures.append, problem) as watching:
            yield watching
        assert not self.failures and not [part for part in threading.enumerate() if part.name == "limits"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setattr(watch, "LOOK_S", 0.02)
    monkeypatch.setattr(watch, "SENSE_S", 0.02)
    return Home(tmp_path)


def test_a_change_of_the_file_is_in_force_and_a_mistake_in_it_leaves_the_limits_as_they_were(home: Home) -> None:
    home.write("share = 0.5")
    with home.watch() as watching:
        assert watching.gate.rest_s(1.0) == pytest.approx(1.0) and not watching.gate.closed.is_set()
        home.write("share = 0.25\nthreads = 1")
        eventually(lambda: watching.gate.limits.share == 0.25, 10)
        home.write("share = 7")
        eventually(lambda: home.problems == ["limits-wrong"], 10)
        assert watching.gate.limits.share == 0.25
        home.write('programs = ["chess"]')
        home.sensors.readings = replace(QUIET, programs=frozenset({"chess"}))
        eventually(watching.gate.closed.is_set, 10)
        home.write("")
        eventually(lambda: not watching.gate.closed.is_set(), AGAIN_S / 2)  # the owner's change is sign enough
    assert [limits.threads for limits in home.sensors.applied] == [None, 1, None, None]


def test_a_mistake_at_the_start_is_told_before_all_else(home: Home) -> None:
    home.write("shares = 1")
    with pytest.raises(InputError, match="did you mean share"), home.watch():
        pass


def test_a_pause_holds_at_once_and_over_a_restart(home: Home) -> None:
    with home.watch() as watching:
        watching.pause(None)
        assert watching.gate.closed.is_set()
    with home.watch() as watching:
        assert watching.gate.closed.is_set(), "before the thread has looked"
        watching.resume()
        eventually(lambda: not watching.gate.closed.is_set(), 10)
    with home.watch() as watching:
        assert not watching.gate.closed.is_set()
        watching.pause(3600)
    with home.watch() as watching:
        until = watching.gate.asked.until
        assert until is not None and 3500 < (until - datetime.datetime.now().astimezone()).total_seconds() <= 3600


@pytest.mark.parametrize("kept", [b"", b"{", b"[]", b'{"until":"soon"}', b'{"until":1e300}', b"[" * 900, b"\xff"])
def test_a_pause_that_cannot_be_read_is_none(home: Home, kept: bytes) -> None:
    (home.folder / watch.PAUSED_FILE).write_bytes(kept)
    with home.watch() as watching:
        assert not watching.gate.closed.is_set()


def test_a_full_disk_costs_only_that_the_pause_is_kept(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise InputError("the disk is full")

    monkeypatch.setattr(watch, "write_file", full)
    with home.watch() as watching:
        watching.pause(None)
        assert watching.gate.closed.is_set()


def test_asked_to_finish_is_taken_back_by_going_on(home: Home) -> None:
    with home.watch() as watching:
        watching.finish()
        assert watching.gate.finishing.is_set()
        watching.resume()
        assert not watching.gate.finishing.is_set()
