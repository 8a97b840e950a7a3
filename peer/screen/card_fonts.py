"""The fonts that a card is written in: matplotlib's own, and one for Chinese where this computer has it."""

from __future__ import annotations

PLAIN, MONO = "DejaVu Sans", "DejaVu Sans Mono"  # matplotlib brings both along
_CHINESE = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "PingFang SC",
    "Hiragino Sans GB",
    "Heiti SC",
    "STHeiti",
    "Microsoft YaHei",
    "SimHei",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Arial Unicode MS",
    "Droid Sans Fallback",
)


def chinese_font() -> str | None:
    """The family of one that is installed."""
    from matplotlib import font_manager

    there = {font.name for font in font_manager.fontManager.ttflist}
    return next((name for name in _CHINESE if name in there), None)


def drawable(text: str, families: list[str]) -> str:
    """The text, with "?" for what none of these fonts has."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = [get_font(findfont(FontProperties(family=[name]))) for name in families]
    return "".join(item if any(font.get_char_index(ord(item)) for font in fonts) else "?" for item in text)
