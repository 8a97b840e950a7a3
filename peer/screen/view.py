"""A peer's picture, out of what the control socket's `status` answers; `join` and `status --watch` draw the same.

Pure: the same status and size give the same lines. What does not fit is left out, the least important first. Nothing is
told by a colour alone: a mark and a word say it, too.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Any, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.console import Group
from rich.text import Text

from peer.screen.messages import Reason, text, told_time
from peer.screen.rounds import name_left_out
from peer.screen.terms import duration, size_text
from peer.screen.usage import wrapped
from protocol import words

LONG_AGO_S = 1800.0  # that agreed work may wait for its credit before the screen says so in red
SHOWN_LOSSES = 20  # rounds
BARS = "▁▂▃▄▅▆▇█"
KEYS = ("p", "r", "f", "l", "d", "?")
NARROW = 60  # columns; below, labels stand closer
ALERT = "bold red"
_MARKS = {"working": ("●", "bold green"), "waiting": ("…", "bold yellow"), "stopped": ("‖", "bold yellow")}

Status = dict[str, Any]


class Row(NamedTuple):
    """A label, and what stands beside it: pieces with their styles, which may go on the next line."""

    label: str
    pieces: list[tuple[str, str]]
    rank: int = 0  # those of the highest rank are left out first


def state(status: Status) -> tuple[str, str]:
    """How it stands: "working", "waiting" or "stopped"; and in English, with its reason."""
    if status["why"]:
        until = datetime.datetime.fromtimestamp(status["until"]).astimezone() if status["until"] else None
        ends = Reason("held-until", time=told_time(until)) if until else ""
        return "stopped", Reason("held", reason=Reason(status["why"], **status["why_values"]), until=ends)
    reason = status.get("waiting")  # not told by an older peer, as what stands below
    if reason:
        return ("stopped", Reason("paused", reason=reason)) if status["waiting_paused"] else ("waiting", reason)
    if status["finishing"]:
        return "working", Reason("finishing")
    quiet = "between-rounds" if status.get("reduce_only") else "working"
    return "working", Reason("averaging" if status.get("averaging") else quiet)


def line(status: Status, language: str) -> str:
    """All in one line, for a pipe."""
    credit, seen = status["credit"], words.shown(words.told(state(status)[1], language))
    parts = [f"{text('round', language)} {status['round']}", seen]
    if status["members"] is not None:
        parts.append(f"{text('members', language)} {status['members']}")
    if not status["reduce_only"]:
        parts.append(f"{status['tokens_per_s']:,.0f} {text('speed', language)}")
        parts.append(text("credit-line", language, tokens=f"{credit['tokens']:,}", pending=f"{credit['pending']:,}"))
    return text("and", language).join(parts)


def view(status: Status, width: int, height: int, language: str, *, details: bool = False, note: str = "") -> Group:
    """The picture, of at most so many columns and lines.

    Args:
        details: figures for those who know the method, too.
        note: the answer to the last key, in the owner's language.
    """
    kind, told = state(status)
    mark, style = _MARKS[kind]
    head = [_title(status, width, language)]
    said = wrapped(words.shown(words.told(told, language)), width - 2)
    head += [Text(f"{mark if not number else ' '} {part}", style) for number, part in enumerate(said)]
    foot = _foot(width, language, note)
    rows = _rows(status, language, details)
    indent = min(max(cell_len(row.label) for row in rows) + (1 if width < NARROW else 2), width // 2)
    space = height - len(foot)
    for rank in (9, 4, 3, 2, 1):
        if len(head) + sum(len(_lines(row, indent, width)) for row in rows) <= space:
            break
        rows = [row for row in rows if row.rank < rank]
    body = [line for row in rows for line in _lines(row, indent, width)]
    room = space - len(head) - len(body)
    if room >= 2:
        head, body = [*head, Text()], [*body, Text()]
    lines = [*[*head, *body][: max(space, 0)], *foot][-height:]
    for item in lines:
        item.no_wrap = True
        item.truncate(width, overflow="ellipsis")
    return Group(*lines)


def help_view(width: int, height: int, language: str, *, closes: bool = False) -> Group:
    """What the keys do; `closes`: q closes this view, and the peer works on."""
    lines = [Text(text("keys", language), "bold")]
    for key in (*KEYS, *(("q",) if closes else ())):
        name = "help" if key == "?" else key
        first, *more = wrapped(text(f"key-{name}-long", language), width - 4)
        lines += [Text.assemble((f" {key}  ", "bold"), first), *(Text(f"    {part}") for part in more)]
    return Group(*lines[:height])


def _title(status: Status, width: int, language: str) -> Text:
    rounds = status["rounds"]
    at = text("round-of" if rounds else "round-at", language, round=status["round"] + 1, rounds=rounds)
    left = set_cell_size(words.shown(status["name"]), max(width - cell_len(at) - 1, 0))
    return Text.assemble((left, "bold"), " ", at)


def _foot(width: int, language: str, note: str) -> list[Text]:
    if note:
        return [Text(part, "reverse") for part in wrapped(note, width)][:2]
    pieces = [(f"{key} {text('key-' + ('help' if key == '?' else key), language)}", "dim") for key in KEYS]
    return _laid(pieces, width)


def _rows(status: Status, language: str, details: bool) -> list[Row]:
    """In the order in which they stand."""

    def say(key: str, **values: object) -> str:
        return text(key, language, **values)

    rows = [
        Row(say("now-round"), _round(status, language)),
        _loss(status, language),
        Row(say("speed-label"), [(f"{status['tokens_per_s']:,.0f} {say('speed')}", "bold")]),
        Row(say("traffic"), _traffic(status, language), 1),
    ]
    if status["reduce_only"]:
        del rows[1:3]
    card = [(status["temperature_c"], "°C"), (status["power_w"], "W")]
    if told := [(f"{value:.0f} {unit}", "") for value, unit in card if value is not None]:
        rows.append(Row(say("card"), told, 1))
    if not status["reduce_only"]:
        rows.append(Row(say("credit-label"), _credit(status, language)))
    if status["next_limit"] not in (None, status["why"]):
        rows.append(Row(say("next-limit"), [(_next_limit(status, language), "")], 1))
    if status["left_out"]:
        who = name_left_out([(peer, why) for peer, why in status["left_out"]], language)
        rows.append(Row(say("left-out"), [(say("in-round", round=status["left_out_round"], who=who), "")], 4))
    if details:
        rows += _details(status, language)
    return rows


def _round(status: Status, language: str) -> list[tuple[str, str]]:
    goal, done, here = status["round_goal"], status["round_tokens"], status["here"]
    pieces = []
    if goal:
        part = min(done / goal, 1.0)
        full = round(part * 10)
        pieces.append((f"[{'#' * full}{'-' * (10 - full)}] {part:.0%}", ""))
    else:
        pieces.append((text("tokens-so-far", language, tokens=f"{done:,}"), ""))
    if not status["reduce_only"]:
        pieces.append((text("own-part", language, tokens=f"{status['tokens']:,}"), ""))
    others = [f"…{member['peer'][-6:]}" for member in here[:3]] + (["…"] if len(here) > 3 else [])
    pieces.append((text("who-is-in", language, count=len(here) + 1), ""))
    if others:
        pieces.append((" ".join(others), "dim"))
    return pieces


def _loss(status: Status, language: str) -> Row:
    losses = status["losses"]
    if not losses:
        return Row(text("loss", language), [(text("after-round", language), "dim")])
    return Row(text("loss", language), [(f"{losses[-1]:.3f}", "bold"), (sparkline(losses[-SHOWN_LOSSES:]), "cyan")])


def sparkline(values: list[float]) -> str:
    """Higher bars for higher values, the oldest first.

    >>> sparkline([3.0, 2.0, 1.0])
    '█▅▁'
    """
    low, high = min(values), max(values)
    return "".join(BARS[round((value - low) / ((high - low) or 1.0) * 7)] for value in values)


def _traffic(status: Status, language: str) -> list[tuple[str, str]]:
    return [
        (
            text(
                f"traffic-{way}",
                language,
                speed=size_text(status[f"{name}_bytes_s"]),
                total=size_text(status[f"{name}_bytes"]),
            ),
            "",
        )
        for way, name in (("up", "sent"), ("down", "received"))
    ] + [(text("traffic-month", language, total=size_text(status["month_bytes"])), "")]


def _credit(status: Status, language: str) -> list[tuple[str, str]]:
    credit, now = status["credit"], status["now"]
    pieces = [(text("verified", language, tokens=f"{credit['tokens']:,}", rounds=credit["rounds"]), "bold")]
    if credit["pending"]:
        pieces.append((text("pending", language, tokens=f"{credit['pending']:,}"), ""))
    granted, since = credit["granted_at"], credit["pending_since"]
    if since is not None and now - since >= LONG_AGO_S:
        waited = words.told(duration(now - since), language)
        return [*pieces, (text("credit-late", language, time=waited), ALERT)]
    if granted is None:
        return [*pieces, (text("none-granted", language), "dim")]
    return [*pieces, (text("granted", language, time=words.told(duration(now - granted), language)), "dim")]


def _next_limit(status: Status, language: str) -> str:
    at = status["next_limit_at"]
    time = told_time(datetime.datetime.fromtimestamp(at).astimezone()) if at else ""
    near = f"{min(status['next_limit_near'], 1.0):.0%}"
    return text(f"next-{status['next_limit']}", language, near=near, time=time)


def _details(status: Status, language: str) -> list[Row]:
    def say(key: str) -> str:
        return text(key, language)

    rows = []
    if status["rates"]:
        rows.append(Row(say("rate"), [(words.told(status["rates"], language), "")], 9))
    if status["waited_s"] is not None:
        rows.append(Row(say("waited"), [(f"{status['waited_s']:.2f} s", "")], 9))
    rows.append(Row(say("share"), [(f"{status['share']:.0%}", "")], 9))
    rows.append(Row(say("this-peer"), [(status["peer"], "")], 9))
    here = [(f"…{member['peer'][-8:]} {member['tokens']:,}", "") for member in status["here"]]
    return [*rows, Row(say("others"), here, 9)] if here else rows


def _lines(row: Row, indent: int, width: int) -> list[Text]:
    """A row as it stands in so many columns, of which the label has `indent`."""
    lines = _laid(row.pieces, width - indent)
    label = set_cell_size(row.label, indent - 1) + " "
    labels = [label, *[" " * indent] * (len(lines) - 1)]
    return [Text.assemble((before, "dim")).append_text(laid) for before, laid in zip(labels, lines, strict=True)]


def _laid(pieces: Iterable[tuple[str, str]], width: int) -> list[Text]:
    """Pieces side by side, two spaces between them, on as many lines as it takes; longer ones are broken."""
    lines: list[Text] = []
    for piece, style in pieces:
        for part in wrapped(words.shown(piece), width):
            if lines and cell_len(lines[-1].plain) + 2 + cell_len(part) <= width:
                lines[-1].append("  ").append(part, style)
            else:
                lines.append(Text().append(part, style))
    return lines
