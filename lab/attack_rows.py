"""What an attack came to, as a row of a table: `attack_scenarios` plays it, `scripts/bench attackers` prints it."""

from __future__ import annotations

from dataclasses import dataclass, field

MOST_SAID = 3  # different things, of each side, that the table shows
MOST_CHARS = 110


@dataclass
class Row:
    """What a scenario came to."""

    name: str
    wire: str
    ended: str  # "all rounds", "no round for 120 s", or "out of time"
    rounds: int
    seconds: float  # from the first micro-batch to the last agreed round
    loss: float  # held-out, of the newest state that the host has evaluated, nats per token
    loss_round: int  # whose state that is
    losses: list[tuple[int, float]]
    shares: dict[int, float]  # round in which an attacker was -> its share of the weight, of all attackers together
    credit: int  # tokens in the ledger, of all attackers together
    credit_honest: float  # of an honest member, mean
    one_state: bool
    verdicts: dict[str, int] = field(default_factory=dict)  # on the attackers' claims -> how often
    verdicts_honest: dict[str, int] = field(default_factory=dict)
    banned: dict[str, int] = field(default_factory=dict)  # "attacker" or "honest" and a number -> after which round
    replayed: float = 0.0  # tokens that were replayed, as a share of those agreed on
    farthest_ppm: int = 0  # of an honest member's replay
    said: dict[str, int] = field(default_factory=dict)  # by the members' screens and logs -> how often
    host_said: dict[str, int] = field(default_factory=dict)

    @staticmethod
    def header() -> str:
        return (
            "| attacker | wire | held-out loss | against clean | rounds made | the attacker's weight "
            "| its credit, tokens | the members say | the host says |\n|---|---|---:|---:|---|---|---|---|---|"
        )

    @staticmethod
    def audited_header() -> str:
        return (
            "| attacker | held-out loss | against clean | banned after round | its credit, tokens | its audits "
            "| honest members' audits | farthest honest, of the limit | replayed |\n"
            "|---|---:|---:|---|---:|---|---|---:|---:|"
        )

    def audited_markdown(self, clean: Row | None) -> str:
        """The same of a run whose work is replayed."""
        against = f"{self.loss / clean.loss - 1:+.1%}" if clean is not None and clean is not self else "–"
        banned = ", ".join(f"{after}" for name, after in self.banned.items() if name.startswith("attacker")) or "never"
        wrongly = [name for name in self.banned if name.startswith("honest")]
        honest = _told(self.verdicts_honest) + (f"; **banned: {len(wrongly)}**" if wrongly else "")
        return (
            f"| {self.name} | {self.loss:.3f} | {against} | {banned if self.shares or self.verdicts else '–'} "
            f"| {self.credit:,} | {_told(self.verdicts)} | {honest} | {self.farthest_ppm / 20_000:.4f} "
            f"| {self.replayed:.0%} |"
        )

    def to_markdown(self, clean: Row | None) -> str:
        """A row of the table; `clean`: the one without attackers, on the same wire."""
        newest = "" if self.loss_round == self.rounds else f" (round {self.loss_round})"
        against = f"{self.loss / clean.loss - 1:+.1%}" if clean is not None and clean is not self else "–"
        end = "" if self.ended == "all rounds" else f", then {self.ended}"
        share = "none"
        if self.shares:
            low, high, count = min(self.shares.values()), max(self.shares.values()), len(self.shares)
            share = f"{low:.0%} to {high:.0%}, in {count} rounds" if count > 1 else f"{high:.0%}, in one round"
        return (
            f"| {self.name} | {self.wire} | {self.loss:.2f}{newest} | {against} "
            f"| {self.rounds} in {self.seconds:.0f} s{end} | {share} "
            f"| {self.credit:,} ({self.credit_honest:,.0f} a member) | {_most(self.said)} | {_most(self.host_said)} |"
        )


def _told(verdicts: dict[str, int]) -> str:
    return ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items())) or "none"


def _most(said: dict[str, int]) -> str:
    """What was said most often, short enough for a table."""
    told = [f"{_short(text)} ({count}×)" for text, count in list(said.items())[:MOST_SAID]]
    return "; ".join(told).replace("|", "/") or "nothing"


def _short(text: str) -> str:
    return text if len(text) <= MOST_CHARS else text[: MOST_CHARS - 1] + "…"
