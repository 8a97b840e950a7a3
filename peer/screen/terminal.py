"""What `potluck join` shows to people: a live table in a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from peer.disk.round_log import Round
from peer.limits.gate import Permission
from peer.round.report import STAGES, RoundReport
from peer.screen.download_bar import DownloadBar
from peer.screen.messages import text
from peer.screen.rounds import describe, name_left_out
from peer.screen.screen import tell_held
from peer.screen.terms import JoinTerms, count_text, duration, size_text
from peer.sync.shelf import Head
from peer.trainer import WorkReport
from protocol import words
from protocol.data_spec import PinnedDataSet
from protocol.run_spec import RunSpec

_REFRESH_S = 0.25
_AVERAGING = STAGES[STAGES.index("group") : STAGES.index("kept")]  # what is said when "kept" comes: the round is over


class TerminalScreen:
    """For people.

    Args:
        yes: agrees to the terms without asking.
        reduce_only: nothing is trained here.
        details: figures for those who know the method are shown, too.
    """

    def __init__(self, language: str, me: str, *, yes: bool, reduce_only: bool = False, details: bool = False) -> None:
        self._language, self._me, self._yes, self._reduce_only = language, me, yes, reduce_only
        self._details = details
        self._console = Console(stderr=True, highlight=False)
        self._live: Live | None = None
        self._bar = DownloadBar(self._console)
        self._drawn = 0.0
        self._work: WorkReport | None = None
        self._report: RoundReport | None = None
        self._credit, self._credited_until = (0, 0), 0  # tokens and rounds in the ledger, up to this round
        self._pending: dict[int, int] = {}  # round -> tokens that are agreed and not known to be in the ledger
        self._reason = self._held = ""
        self._problem: tuple[str, str | None] = ("", None)
        self._left_out = ""  # of the newest round that left somebody out
        self._averaging = False

    def agree(self, terms: JoinTerms) -> bool:
        say = self._text
        table = Table(show_header=False, box=None, padding=(0, 2))
        for key, value in self._rows(terms):
            table.add_row(Text(say(key)), Text(value))
        self._console.print(say("terms"))
        self._console.print(table)
        if self._yes:
            return True
        if not sys.stdin.isatty():
            self._console.print(say("nobody-to-ask"), markup=False)
            return False
        return self._console.input(say("ask"), markup=False).strip().lower() in ("y", "yes", "是")

    def _rows(self, terms: JoinTerms) -> Iterator[tuple[str, str]]:
        """What is told of a run: a key of `peer.screen.messages`, and what there is to say."""
        say, spec = self._text, terms.card.spec
        yield "run", spec.run.name
        yield "host", say("host-is", address=terms.address, root=terms.root[:16])
        total, trained = count_text(spec.model.parameters), count_text(spec.model.trainable)
        whole = spec.model.parameters == spec.model.trainable
        model = say("model-whole" if whole else "model-part", name=spec.model.name, total=total, trainable=trained)
        yield "model", say("with-licence", what=model, licence=spec.model.license)
        yield "data", self._data(spec)
        here = say("partly-here", size=size_text(terms.here_bytes)) if terms.here_bytes else ""
        yield "download", size_text(terms.download_bytes) + here
        yield "disk", say("about", what=size_text(terms.disk_bytes))
        yield "memory", say("about", what=size_text(terms.memory_bytes))
        yield "traffic", self._traffic(terms)
        yield "lasts", self._lasts(terms)
        yield "sent", say("what-is-sent-reducing" if self._reduce_only else "what-is-sent")
        yield "never-sent", say("what-is-never-sent")
        if self._details:
            parts = [spec.method.kind, spec.method.base, spec.sync.method, spec.sync.wire]
            yield "details", f"{', '.join(parts)}, {spec.sync.fragments}; {terms.card.run}"

    def _data(self, spec: RunSpec) -> str:
        say, data = self._text, spec.data
        if isinstance(data, PinnedDataSet):
            names = ", ".join(source.name for source in data.sources)
            licences = ", ".join(dict.fromkeys(source.license for source in data.sources))
            return say("with-licence", what=say("data-prepared", names=names), licence=licences)
        told = say(f"data-{data.kind}", size=size_text(data.size_bytes))
        if data.url is not None:
            told = say("data-from", data=told, place=urllib.parse.urlsplit(data.url).netloc)
        return say("with-licence", what=told, licence=data.license)

    def _traffic(self, terms: JoinTerms) -> str:
        hourly = terms.traffic_bytes_per_hour
        if hourly is None:
            return self._text("traffic-by-round", size=size_text(terms.round_bytes))
        return self._text("traffic-by-hour", size=size_text(hourly))

    def _lasts(self, terms: JoinTerms) -> str:
        say, rounds = self._text, terms.card.spec.run.rounds
        at = "" if terms.round is None else say("now-at", round=terms.round)
        if not rounds:
            return say("until-host-ends") + at
        if terms.left_s is None:
            return say("so-many-rounds", rounds=f"{rounds:,}") + at
        return say("so-much-longer", time=self._told(duration(terms.left_s)), rounds=f"{rounds:,}") + at

    def fetching(self, name: str, done_bytes: int, size_bytes: int) -> None:
        self._bar(name, done_bytes, size_bytes)

    def step(self, key: str) -> None:
        if key != "fetching":
            self._bar.close()
        self._console.print(self._text(key))

    def working(self, report: WorkReport) -> None:
        self._work = report
        self._draw()

    def committed(self, head: Head, report: RoundReport) -> None:
        self._report = report
        if head.agreement is not None:
            self._pending[head.round] = head.agreement.weights.get(self._me, 0)
        if report.left_out:
            self._left_out = f"{self._text('round')} {report.round}: {name_left_out(report.left_out, self._language)}"
        if not self._console.is_terminal:
            self._console.print(describe(Round.of(report), self._language), markup=False)
        self._draw(force=True)

    def credited(self, tokens: int, rounds: int, newest: int) -> None:
        self._credit, self._credited_until = (tokens, rounds), newest

    def over(self, rounds: int, receipts: Path | None) -> None:
        self.close()
        self._console.print(self._text("run-over", rounds=rounds))
        if receipts is not None:
            tokens, count = self._credit
            self._console.print(
                self._text("run-over-credit", tokens=f"{tokens:,}", rounds=count, folder=receipts), markup=False
            )
        self._console.print(self._text("run-over-fetch"), markup=False)

    def waiting(self, reason: str) -> None:
        self._reason = self._told(reason)
        self._draw()

    def paused(self, reason: str) -> None:
        self.waiting(self._text("paused", reason=self._told(reason)))

    def held(self, verdict: Permission) -> None:
        told = self._told(tell_held(verdict))
        if told == self._held:
            return
        self._held = told
        if told and self._live is None:
            self._console.print(told, markup=False)
        self._draw(force=True)

    def problem(self, key: str, **values: str) -> None:
        if (key, values.get("reason")) != self._problem:
            own = {name: self._told(value) for name, value in values.items()}
            self._console.print(self._text(key, **own), markup=False)
        self._problem = key, values.get("reason")

    def stage(self, round: int, name: str) -> None:
        self._averaging = name in _AVERAGING

    def close(self) -> None:
        self._bar.close()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _draw(self, force: bool = False) -> None:
        now = time.monotonic()
        if not self._console.is_terminal or (now - self._drawn < _REFRESH_S and not force):
            return
        self._drawn = now
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        say, work, last = self._text, self._work, self._report
        table = Table(box=None, show_header=False, padding=(0, 2))
        if work is not None:
            table.add_row(say("round"), str(work.round))
            table.add_row(say("own-tokens"), f"{work.tokens:,}   ({work.tokens_per_s:,.0f} {say('speed')})")
            if work.loss is not None:
                table.add_row(say("loss"), f"{work.loss:.3f}")
            table.add_row(say("rate"), self._told(str(work.rates)))
        if last is not None:
            table.add_row(say("members"), str(last.members))
            table.add_row(say("waited"), f"{last.waited_s:.2f} s")
        if not self._reduce_only:
            table.add_row(say("credit"), self.credit_text())
        if self._left_out:
            table.add_row(say("left-out"), self._left_out)
        quiet = "between-rounds" if self._reduce_only else "working"
        table.add_row(say("now"), self._held or self._reason or say("averaging" if self._averaging else quiet))
        return table

    def credit_text(self) -> str:
        """This peer's tokens: in the ledger, and agreed but not there yet."""
        self._pending = {number: own for number, own in self._pending.items() if number > self._credited_until}
        pending, (tokens, _) = sum(self._pending.values()), self._credit
        return f"{tokens:,}" + (f"   ({self._text('credit-pending', tokens=f'{pending:,}')})" if pending else "")

    def _text(self, key: str, **values: object) -> str:
        return text(key, self._language, **values)

    def _told(self, message: str) -> str:
        return words.told(message, self._language)
