"""What `potluck join` shows to people: a live view in a terminal, lines elsewhere."""

from __future__ import annotations

import functools
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from peer.disk.round_log import Round
from peer.limits.gate import Permission
from peer.round.report import RoundReport
from peer.screen.download_bar import DownloadBar
from peer.screen.live import Ask, LiveView, is_for_people
from peer.screen.messages import text
from peer.screen.rounds import describe
from peer.screen.screen import tell_failure, tell_held
from peer.screen.terms import JoinTerms, count_text, duration, size_text
from peer.sync.shelf import Head
from peer.trainer import WorkReport
from protocol import words
from protocol.backoff import Backoff
from protocol.data_spec import PinnedDataSet
from protocol.parts import SupervisedThread
from protocol.run_spec import RunSpec

CLOSE_S = 3.0  # for the live view to end


class TerminalScreen:
    """For people.

    Args:
        yes: agrees to the terms without asking.
        reduce_only: nothing is trained here.
        details: figures for those who know the method are shown, too.
    """

    def __init__(self, language: str, *, yes: bool, reduce_only: bool = False, details: bool = False) -> None:
        self._language, self._yes, self._reduce_only = language, yes, reduce_only
        self._details = details
        self._console = Console(stderr=True, highlight=False)
        self._view: LiveView | None = None
        self._closing = threading.Event()
        self._thread: SupervisedThread | None = None
        self._bar = DownloadBar(self._console)
        self._credit = 0, 0  # tokens and rounds in the ledger
        self._held = ""
        self._problem: tuple[str, str | None] = ("", None)

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
        self._say(self._text(key))

    def live(self, ask: Ask, leave: Callable[[], object]) -> None:
        if self._thread is not None or not is_for_people(self._console):
            return
        self._view = LiveView(ask, leave, self._language, self._console, details=self._details)
        work, told = functools.partial(self._view.run, self._closing), functools.partial(tell_failure, self)
        self._thread = SupervisedThread("screen", work, self._closing, told, Backoff(1.0, 30.0), vital=False)
        self._thread.start()

    def working(self, report: WorkReport) -> None: ...

    def committed(self, head: Head, report: RoundReport) -> None:
        if self._view is None:
            self._say(describe(Round.of(report), self._language))

    def credited(self, tokens: int, rounds: int, newest: int) -> None:
        self._credit = tokens, rounds

    def over(self, rounds: int, receipts: Path | None) -> None:
        self.close()
        self._say(self._text("run-over", rounds=rounds))
        if receipts is not None:
            tokens, count = self._credit
            self._say(self._text("run-over-credit", tokens=f"{tokens:,}", rounds=count, folder=receipts))
        self._say(self._text("run-over-fetch"))

    def waiting(self, reason: str) -> None: ...

    def paused(self, reason: str) -> None: ...

    def held(self, verdict: Permission) -> None:
        told = self._told(tell_held(verdict))
        if told and told != self._held and self._view is None:
            self._say(told)
        self._held = told

    def problem(self, key: str, **values: str) -> None:
        if (key, values.get("reason")) != self._problem:
            own = {name: self._told(value) for name, value in values.items()}
            self._say(self._text(key, **own))
        self._problem = key, values.get("reason")

    def stage(self, round: int, name: str) -> None: ...

    def close(self) -> None:
        self._bar.close()
        self._closing.set()
        if self._thread is not None:
            self._thread.join(CLOSE_S)
        self._view = None

    def _say(self, line: str) -> None:
        view = self._view  # while there is one the terminal is its own
        if view is not None:
            view.say(line)
        else:
            self._console.print(line, markup=False)

    def _text(self, key: str, **values: object) -> str:
        return text(key, self._language, **values)

    def _told(self, message: str) -> str:
        return words.told(message, self._language)
