"""A round in words, on one line: what `potluck status`, the screens and the log say of it.

>>> told = Round(41, 3, 9216, 0.2, 1, True, (("12D3Kooab12cd34", "not heard for 12 s"),), 1763769600.0)
>>> describe(told)
'round 41: 3 members, 9216 tokens; left out …ab12cd34: not heard for 12 s'
>>> describe(told, "zh")
'第 41 轮：3 名成员，9216 个词元；未计入 …ab12cd34：已 12 秒没有消息'
>>> describe(Round(42, 8, 9216, 0.0, 0, False, (), 1763769600.0, waits=True))
'round 42: 8 members, 9216 tokens; this peer waits for its turn, and its work counts in full when it comes'
"""

from __future__ import annotations

from collections.abc import Iterable

from peer.disk.round_log import Round
from peer.screen.messages import text
from protocol import words


def describe(item: Round, language: str = "en") -> str:
    """One line for people."""
    line = text("round-line", language, round=item.round, members=item.members, tokens=item.tokens)
    if item.waits:
        line += text("waits-for-turn", language)
    return line + (text("left-out-of", language, peers=name_left_out(item.left_out, language)) if item.left_out else "")


def name_left_out(left_out: Iterable[tuple[str, str]], language: str = "en") -> str:
    """Who was left out and why, on one line."""
    reasons = [(peer[-8:], words.told(why, language)) for peer, why in left_out]
    return text("and", language).join(text("because", language, peer=peer, why=why) for peer, why in reasons)
