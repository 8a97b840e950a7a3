"""What the owner of a computer allows: `limits.toml` in the peer's home, for all runs; read again whenever it changes.

>>> limits = parse(b'hours = ["22:00-07:00"]\\nshare = 0.5')
>>> limits.share, limits.hours
(0.5, ('22:00-07:00',))
>>> parse(b"shares = 0.5")
Traceback (most recent call last):
protocol.errors.InputError: limits: shares: there is no such limit; did you mean share?
"""

from __future__ import annotations

import datetime
import difflib
import re
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from protocol.disk import disk_error, write_file
from protocol.errors import InputError
from protocol.section import Section

MAX_BYTES = 64 * 1024
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_SPAN = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


class OwnLimits(Section):
    """All of them; what is not set limits nothing."""

    share: float = Field(default=1.0, ge=0.05, le=1.0)  # of the time, between steps
    devices: tuple[str, ...] = Field(default=(), max_length=16)  # to train on, from the next start on
    threads: int | None = Field(default=None, ge=1, le=1024)
    niceness: int | None = Field(default=None, ge=0, le=19)
    temperature_c: float | None = Field(default=None, ge=40, le=110)
    power_w: float | None = Field(default=None, ge=10, le=2000)
    upload_mbit: float | None = Field(default=None, ge=1, le=100_000)
    download_mbit: float | None = Field(default=None, ge=1, le=100_000)
    month_gb: float | None = Field(default=None, ge=0.1, le=1e6)
    hours: tuple[str, ...] = Field(default=(), max_length=24)
    days: tuple[str, ...] = Field(default=(), max_length=7)
    away_minutes: float | None = Field(default=None, ge=0.1, le=1440)
    on_battery: bool = True
    on_metered: bool = True
    programs: tuple[str, ...] = Field(default=(), max_length=100)
    full_screen: bool = True
    disk_free_gb: float | None = Field(default=None, ge=0.1, le=1e6)

    @field_validator("hours")
    @classmethod
    def _are_spans(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for span in value:
            if not _SPAN.fullmatch(span) or span[:5] == span[6:]:
                raise ValueError(f'{span[:40]!r} is no span of hours; write "22:00-07:00"')
        return value

    @field_validator("days")
    @classmethod
    def _are_days(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for day in value:
            if day not in DAYS:
                raise ValueError(f"{day[:40]!r} is no day; write one of {', '.join(DAYS)}")
        return value

    def is_open(self, at: datetime.datetime) -> bool:
        """Whether days and hours allow work at this local time; a span over midnight belongs to the day it begins."""
        days = {DAYS.index(day) for day in self.days} or set(range(7))
        if not self.hours:
            return at.weekday() in days
        minute, today = 60 * at.hour + at.minute, at.weekday()
        for span in self.hours:
            first, last = _minutes(span)
            if first < last:
                if first <= minute < last and today in days:
                    return True
            elif (minute >= first and today in days) or (minute < last and (today - 1) % 7 in days):
                return True
        return False

    def changes_at(self, after: datetime.datetime) -> datetime.datetime | None:
        """When `is_open` next becomes another, within eight days; None: it does not."""
        now = self.is_open(after)
        edges = sorted({0, *(minute for span in self.hours for minute in _minutes(span))})
        midnight = after.replace(hour=0, minute=0, second=0, microsecond=0)
        for day in range(9):
            for minute in edges:
                at = midnight + datetime.timedelta(days=day, minutes=minute)
                if at > after and self.is_open(at) != now:
                    return at
        return None


def _minutes(span: str) -> tuple[int, int]:
    first, last = span.split("-")
    return 60 * int(first[:2]) + int(first[3:]), 60 * int(last[:2]) + int(last[3:])


def parse(data: bytes, name: str = "limits", given: Sequence[str] = ()) -> OwnLimits:
    """OwnLimits from TOML, and from `key=value` as on a command line, which go before.

    Raises:
        InputError: no TOML, a key that there is not, a value that does not do.
    """
    if len(data) > MAX_BYTES:
        raise InputError(f"{name}: larger than {MAX_BYTES // 1024} kB", "it holds a few lines")
    try:
        value: dict[str, Any] = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{name}: no TOML: {error}", "potluck limits --new writes an example") from error
    for item in given:
        key, equals, text = item.partition("=")
        if not equals:
            raise InputError(f"--limit {item}: no key=value", "write, say, --limit share=0.5")
        value[key.strip()] = _value(text.strip())
    for key in value:
        if key not in OwnLimits.model_fields:
            near = difflib.get_close_matches(key, OwnLimits.model_fields, 1)
            meant = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(OwnLimits.model_fields)}"
            raise InputError(f"{name}: {key[:40]}: there is no such limit{meant}")
    try:
        return OwnLimits.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{name}: {where}: {first['msg'].removeprefix('Value error, ')}") from error


def read(path: Path, given: Sequence[str] = ()) -> OwnLimits:
    """As `parse`, of a file; one that is not there limits nothing."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        data = b""
    except OSError as error:
        raise disk_error(path, error) from error
    return parse(data, str(path), given)


def example(language: str) -> bytes:
    """Every limit with a comment, and off; in "en" or "zh"."""
    return (resources.files(__package__) / f"example.{language}.toml").read_bytes()


def write_example(path: Path, language: str) -> bool:
    """Put the example where there is no file yet; whether it did. Raises: InputError: the disk."""
    if path.exists():
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(path, error) from error
    write_file(path, example(language))
    return True


def _value(text: str) -> Any:
    """As TOML has it; a bare word is a string, and of several with commas a list."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return [part.strip() for part in text.split(",")]
