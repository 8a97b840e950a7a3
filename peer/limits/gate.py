"""Whether this peer may work now, and if not, why and until when: one answer for all limits. No I/O.

`watch` asks the sensors and calls `decide` every second. What a system does not tell (None) limits nothing.
"""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass, replace

from peer.limits.limits import OwnLimits
from peer.round.turns import Waiting

COOLER_C = 8.0  # below its limit a card that was too hot works again
WARM_C = 5.0  # below its limit a card rests more
LEAST_SHARE = 0.1  # of the time that a card works when it is only warm, or draws much
AGAIN_S = 20.0  # a limit that has made this peer pause must be clear for so long; not the owner's own, nor the clock
_BY_THE_CLOCK = ("owner-paused", "not-now")


@dataclass(frozen=True)
class Readings:
    """What the sensors told.

    Args:
        now: local time.
        idle_s: since mouse or keyboard was touched.
        programs: names of running programs, lower case, without an extension.
        month_bytes: traffic of this calendar month.
    """

    now: datetime.datetime
    idle_s: float | None = None
    on_battery: bool | None = None
    on_metered: bool | None = None
    full_screen: bool | None = None
    programs: frozenset[str] = frozenset()
    temperature_c: float | None = None
    power_w: float | None = None
    disk_free_bytes: int | None = None
    month_bytes: int = 0


@dataclass(frozen=True)
class Wish:
    """What the owner has asked for."""

    paused: bool = False
    until: datetime.datetime | None = None  # local; None: until asked to go on

    def holds(self, now: datetime.datetime) -> bool:
        return self.paused and (self.until is None or now < self.until)


@dataclass(frozen=True)
class Permission:
    """The gate's answer.

    Args:
        why: a key of `peer.screen.messages` and its values; None: it may work.
        until: when that ends, if that is known.
        share: of the time that it may work.
        clear_since: since when nothing has stood against work, while `why` still waits for `AGAIN_S`.
    """

    why: Waiting | None = None
    until: datetime.datetime | None = None
    share: float = 1.0
    clear_since: datetime.datetime | None = None

    @property
    def may_work(self) -> bool:
        return self.why is None


def decide(limits: OwnLimits, readings: Readings, asked: Wish, before: Permission) -> Permission:
    """The answer of the moment.

    Args:
        before: the last one: who has paused needs a clearer sign to go on than who works.
    """
    now = readings.now
    was = before.why.key if before.why else ""
    found = _against(limits, readings, asked, was)
    if found is not None:
        return Permission(*found, share=limits.share)
    if was and was not in _BY_THE_CLOCK:
        since = before.clear_since or now
        if (now - since).total_seconds() < AGAIN_S:
            return replace(before, until=None, clear_since=since)
    return Permission(share=_share(limits, readings, before.share if not was else limits.share))


def rest_s(share: float, step_s: float) -> float:
    """How long to rest after a step of `step_s`, so that work takes this share of the time.

    >>> rest_s(0.25, 2.0)
    6.0
    """
    return step_s * (1.0 - share) / share


Against = tuple[Waiting, datetime.datetime | None]


def _against(limits: OwnLimits, readings: Readings, asked: Wish, was: str) -> Against | None:
    """What stands against work, the owner's own word first."""
    now = readings.now
    if asked.holds(now):
        return Waiting("owner-paused"), asked.until
    if not limits.is_open(now):
        return Waiting("not-now"), limits.changes_at(now)
    if limits.month_gb is not None and readings.month_bytes >= limits.month_gb * 1e9:
        return Waiting("month-used", {"most": f"{limits.month_gb:g} GB"}), _next_month(now)
    return next((found for found in _of_the_moment(limits, readings, was) if found), None)


def _of_the_moment(limits: OwnLimits, readings: Readings, was: str) -> list[Against | None]:
    def against(key: str, holds: object, **values: str) -> Against | None:
        return (Waiting(key, dict(values)), None) if holds else None

    away_s = None if limits.away_minutes is None else 60 * limits.away_minutes
    idle_s, free, hot = readings.idle_s, readings.disk_free_bytes, limits.temperature_c
    busy = sorted({name.lower().removesuffix(".exe") for name in limits.programs} & readings.programs)
    margin = COOLER_C if was == "too-hot" else 0.0
    return [
        against("owner-is-here", away_s is not None and idle_s is not None and idle_s < away_s),
        against("on-battery", not limits.on_battery and readings.on_battery),
        against("on-metered", not limits.on_metered and readings.on_metered),
        against("program-runs", busy, name=busy[0] if busy else ""),
        against("full-screen", not limits.full_screen and readings.full_screen),
        against(
            "too-hot",
            hot is not None and readings.temperature_c is not None and readings.temperature_c >= hot - margin,
            degrees=f"{hot:g}" if hot is not None else "",
        ),
        against(
            "disk-low",
            limits.disk_free_gb is not None and free is not None and free < limits.disk_free_gb * 1e9,
            least=f"{limits.disk_free_gb or 0:g} GB",
        ),
    ]


def _share(limits: OwnLimits, readings: Readings, before: float) -> float:
    """Less while the card is warm or draws too much, a little at a time; more again when it is not."""
    hot, most_w = limits.temperature_c, limits.power_w
    warm = hot is not None and readings.temperature_c is not None and readings.temperature_c > hot - WARM_C
    hungry = most_w is not None and readings.power_w is not None and readings.power_w > most_w
    if warm or hungry:
        return max(before * 0.9, min(LEAST_SHARE, limits.share))
    return min(before * 1.05, limits.share)


def _next_month(now: datetime.datetime) -> datetime.datetime:
    first = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return first.replace(year=first.year + 1, month=1) if first.month == 12 else first.replace(month=first.month + 1)


def next_change(limits: OwnLimits, readings: Readings) -> tuple[str, float] | None:
    """The limit that will bite next, and how near it is, 0 to 1; None: none in sight."""
    found: list[tuple[str, float]] = []
    if limits.month_gb is not None:
        found.append(("month-used", readings.month_bytes / (limits.month_gb * 1e9)))
    if limits.temperature_c is not None and readings.temperature_c is not None:
        found.append(("too-hot", readings.temperature_c / limits.temperature_c))
    if limits.disk_free_gb is not None and readings.disk_free_bytes:
        found.append(("disk-low", limits.disk_free_gb * 1e9 / readings.disk_free_bytes))
    closes = limits.changes_at(readings.now)
    if closes is not None:
        hours = (closes - readings.now).total_seconds() / 3600
        found.append(("not-now", 1 / (1 + hours)))
    near = max(found, key=lambda item: item[1], default=None)
    return near if near and not math.isnan(near[1]) and near[1] > 0.5 else None
