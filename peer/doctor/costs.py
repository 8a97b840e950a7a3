"""What taking part brings and takes: speed, share of a round, traffic, electricity. Figures in, findings out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from peer.doctor.finding import Finding
from peer.link.line import MeasuredLine
from peer.screen.terms import JoinTerms, duration, size_text
from protocol.status import RunStatus

DAYS = 30  # of a month
SURE = 2.0  # the speed is between an estimate divided by this and the estimate times this


@dataclass(frozen=True)
class Power:
    """Electricity.

    Args:
        watts: that are drawn more while it works, at most; None: not known.
        is_cards: they are the card's limit, not the owner's word.
        price: of a kWh, in the owner's currency; None: not given.
    """

    watts: float | None
    is_cards: bool
    price: float | None


def of_speed(tokens_per_s: float, status: RunStatus | None) -> Iterator[Finding]:
    """How fast it would work, and what part of a round that is."""
    low, high = (_rounded(tokens_per_s * times) for times in (1 / SURE, SURE))
    yield Finding("speed", "good", f"speed: {low} to {high} tokens/s here, an estimate from passes of one layer")
    if status is None:
        return
    if status.tokens_per_s <= 0:  # or the host says nonsense
        yield Finding("share", "good", "share: nobody works on this run now, a round would be all yours")
        return
    share, others = 100 * tokens_per_s / (tokens_per_s + status.tokens_per_s), f"{status.tokens_per_s:,.0f}"
    text = f"share: about {_rounded(share)} % of a round; all who are here now do {others} tokens/s together"
    yield Finding("share", "good", text)


def of_traffic(terms: JoinTerms, line: MeasuredLine | None, tokens_per_s: float | None) -> Finding:
    """What travels, and whether the line is up to it.

    Args:
        tokens_per_s: of this computer, for a run that is just beginning; None: not known.
    """
    if terms.round_s is None and tokens_per_s and terms.card.spec.sync.round_tokens is not None:
        terms = dataclasses.replace(terms, round_s=terms.card.spec.sync.round_tokens / tokens_per_s)
    hourly, each = terms.traffic_bytes_per_hour, size_text(terms.round_bytes)
    if hourly is None or terms.round_s is None:
        text = f"traffic: up to about {each} a round each way; how often that is shows in training"
        return Finding("traffic", "note", text, "nothing is to be done; potluck limits --edit sets a most for a month")
    hour, month = size_text(hourly), size_text(hourly * 24 * DAYS)
    takes_s = terms.round_bytes / min(line.up_bytes_s, line.down_bytes_s) if line is not None else 0.0
    if takes_s <= terms.round_s:
        text = f"traffic: up to about {hour} an hour each way, {month} a month if it never stops"
        return Finding("traffic", "good", text)
    takes, lasts = duration(takes_s), duration(terms.round_s)
    text = f"traffic: sending takes up to {takes}, and a round {lasts}; that is {month} a month each way"
    remedy = "it works where the line is faster than measured; else join a run with smaller updates"
    return Finding("traffic", "note", text, remedy)


def of_power(power: Power) -> Iterator[Finding]:
    """Watts and what they cost."""
    watts, price = power.watts, power.price
    if watts is None:
        remedy = "a meter in the socket tells; give what it shows more while you train with --watts"
        yield Finding("power", "note", "power: this computer does not tell what it draws", remedy)
    elif power.is_cards:
        yield Finding("power", "good", f"power: up to {watts:.0f} W for the card, its own limit, and some for the rest")
    else:
        yield Finding("power", "good", f"power: {watts:.0f} W, as you say")
    if price is None:
        return
    month = (watts or 100.0) * 24 * DAYS / 1000 * price
    money, at = f"{month:,.2f}", f"{price:g}"
    if watts is None:
        yield Finding("cost", "good", f"cost: {money} a month for each 100 W, at {at} a kWh, if it never stops")
    else:
        yield Finding("cost", "good", f"cost: up to {money} a month at {at} a kWh, if it never stops")


def _rounded(value: float) -> str:
    """To two digits: it is an estimate.

    >>> _rounded(12345.0), _rounded(0.123)
    ('12,000', '0.12')
    """
    number = float(f"{value:.2g}")
    return f"{number:,.0f}" if number >= 10 else f"{number:g}"
