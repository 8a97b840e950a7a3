"""A card to share: which run, how much credit in words that people understand, the ledger head, and the proof.

The proof of credit (`protocol.credit_proof`) is written into the file as its description, so that `potluck verify`
finds it there. What is drawn is what that proof was checked to show, and nothing else.

>>> amount_key(90), amount_key(81_920), amount_key(2_500_000)
(('card-lines', ''), ('card-pages', '200'), ('card-novels', '19'))
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peer.screen.card_fonts import MONO, PLAIN, chinese_font, drawable
from peer.screen.messages import text
from protocol import words
from protocol.credit_proof import CreditProof

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE_TOKENS, NOVEL_TOKENS = 400, 130_000  # 300 and 100,000 words of English, about
FORMATS = (".svg", ".png")
_INK, _FAINT, _FIRE, _PAPER = "#292524", "#78716c", "#c2410c", "#fffaf3"
_WIDTH, _HEIGHT, _DPI = 12.0, 6.3, 100  # inches, pixels to one
_LEFT, _RIGHT = 0.08, 0.95  # of the width


@dataclass(frozen=True)
class CreditCard:
    """What stands on a card."""

    run: str  # its name
    model: str
    peer_id: str
    tokens: int
    rounds: int
    origin: str  # of the ledger
    leaves: int
    root: str  # hex
    proof: str

    @classmethod
    def of(cls, proof: CreditProof) -> CreditCard:
        """What a proof shows.

        Raises:
            FormatError, SignatureError, VerificationError: it does not hold.
        """
        card = proof.open_card()
        total = proof.check(card)
        head = total.newest_head
        assert head is not None, "it shows some credit"
        spec = card.spec
        return cls(
            run=spec.run.name,
            model=words.shown(spec.model.name),
            peer_id=total.peers[0],
            tokens=total.tokens,
            rounds=len(total.rounds),
            origin=head.origin,
            leaves=head.size,
            root=head.root.hex(),
            proof=str(proof),
        )

    def draw(self, suffix: str, language: str) -> bytes:
        """The file, an SVG or a PNG; Chinese only where there is a `chinese_font`.

        Args:
            suffix: one of `FORMATS`.
        """
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        settings: Any = {"text.usetex": False, "svg.fonttype": "path", "svg.hashsalt": self.proof[-8:]}
        file = io.BytesIO()
        with matplotlib.rc_context(settings):
            figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=_DPI, facecolor=_PAPER)
            canvas: Any = FigureCanvasAgg(figure)  # measures what is written on it
            _Sheet(figure).write(self, language)
            if suffix == ".svg":
                canvas = FigureCanvasSVG(figure)
                canvas.print_svg(file, metadata={"Description": self.proof, "Creator": "Potluck", "Date": None})
            else:
                canvas.print_png(file, metadata={"Description": self.proof, "Software": "Potluck"})
        return file.getvalue()


def amount_key(tokens: int) -> tuple[str, str]:
    """How much text that is: a key of `messages`, and the number in it, to two digits."""
    if tokens < 2 * PAGE_TOKENS:
        return "card-lines", ""
    key, size = ("card-pages", PAGE_TOKENS) if tokens < 2 * NOVEL_TOKENS else ("card-novels", NOVEL_TOKENS)
    count = tokens // size
    rounded = round(count, 2 - len(str(count))) if count >= 100 else count
    return key, f"{rounded:,}"


class _Sheet:
    """A figure that is written on from the top down."""

    def __init__(self, figure: Figure) -> None:
        from matplotlib.patches import Rectangle

        chinese = chinese_font()
        others = [] if chinese is None else [chinese]
        self._figure, self._plain, self._mono = figure, [PLAIN, *others], [MONO, *others]
        figure.add_artist(Rectangle((0, 0), 0.025, 1, transform=figure.transFigure, color=_FIRE, linewidth=0))

    def write(self, card: CreditCard, language: str) -> None:
        def say(key: str, **values: object) -> str:
            return text(key, language, **values)

        key, count = amount_key(card.tokens)
        model = card.model if len(card.model) <= 60 else card.model[:59] + "…"
        self._line(0.89, "POTLUCK", 17, _FIRE, weight="bold")
        self._line(0.76, card.run, 44, weight="bold")
        self._line(0.67, say("card-model", model=model), 16, _FAINT)
        self._line(0.51, say("card-tokens", tokens=f"{card.tokens:,}"), 40, _FIRE, weight="bold")
        self._line(0.42, say(key, count=count, rounds=f"{card.rounds:,}"), 18)
        self._line(0.29, say("card-peer"), 13, _FAINT)
        self._line(0.29, "…" + card.peer_id[-8:], 13, mono=True, left=0.18)
        self._line(0.23, say("card-ledger"), 13, _FAINT)
        self._line(0.23, card.origin, 13, mono=True, left=0.18)
        self._line(0.17, say("card-leaves", size=f"{card.leaves:,}"), 13, _FAINT, left=0.18)
        self._line(0.12, card.root, 13, mono=True, left=0.18)
        self._line(0.045, say("card-check", check=card.proof[-8:]), 13, _FAINT)

    def _line(
        self, y: float, line: str, size: float, color: str = _INK, *, mono: bool = False, weight: str = "normal",
        left: float = _LEFT,
    ) -> None:  # fmt: skip
        """One line at a height, made smaller where it would run over the edge."""
        families = self._mono if mono else self._plain
        written = self._figure.text(
            left, y, drawable(line, families), fontsize=size, color=color, fontweight=weight, parse_math=False,
            fontfamily=families,
        )  # fmt: skip
        room = (_RIGHT - left) * _WIDTH * _DPI
        width = written.get_window_extent().width
        if width > room:
            written.set_fontsize(size * room / width)
