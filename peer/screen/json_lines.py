"""What `potluck join --json` shows: one JSON object a line, for scripts."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peer.limits.gate import Permission
from peer.round.report import RoundReport
from peer.screen.live import Ask
from peer.screen.messages import text
from peer.screen.screen import tell_held
from peer.screen.terms import JoinTerms
from peer.sync.shelf import Head
from peer.trainer import WorkReport
from protocol.release import Release


class JsonScreen:
    """One JSON object a line on standard output; agrees to the terms by itself, for whoever uses it has read them."""

    def __init__(self) -> None:
        self._told = ("waiting", "")
        self._problem: tuple[str, str | None] = ("", None)

    def started(self, release: Release) -> None:
        """This program has started."""
        self._write("started", version=release.version, commit=release.commit)

    def agree(self, terms: JoinTerms) -> bool:
        self._write(
            "terms",
            run=terms.card.run,
            spec=terms.card.spec.model_dump(mode="json"),
            memory_bytes=terms.memory_bytes,
            download_bytes=terms.download_bytes,
            disk_bytes=terms.disk_bytes,
            round_s=terms.round_s,
            traffic_bytes_per_hour=terms.traffic_bytes_per_hour,
            left_s=terms.left_s,
        )
        return True

    def fetching(self, name: str, done_bytes: int, size_bytes: int) -> None:
        if done_bytes == size_bytes:
            self._write("fetched", file=name, bytes=size_bytes)

    def step(self, key: str) -> None:
        self._write("step", step=key)

    def live(self, ask: Ask, leave: Callable[[], object]) -> None: ...

    def working(self, report: WorkReport) -> None:
        if report.loss is not None:
            self._write(
                "worked",
                round=report.round,
                tokens=report.tokens,
                tokens_per_s=round(report.tokens_per_s, 1),
                loss=report.loss,
                inner_lr=report.rates.inner,
                outer_lr=report.rates.outer,
            )

    def committed(self, head: Head, report: RoundReport) -> None:
        self._write(
            "committed",
            round=head.round,
            state=head.state.digest,
            members=report.members,
            tokens=report.tokens,
            waited_s=round(report.waited_s, 4),
            attempts=report.attempts,
            took_part=report.took_part,
            left_out=[list(item) for item in report.left_out],
        )

    def waiting(self, reason: str) -> None:
        self._once("waiting", reason)

    def paused(self, reason: str) -> None:
        self._once("paused", reason)

    def held(self, verdict: Permission) -> None:
        self._once("held", tell_held(verdict))

    def _once(self, event: str, reason: str) -> None:
        if (event, reason) != self._told:
            self._write(event, reason=reason)
        self._told = event, reason

    def problem(self, key: str, **values: str) -> None:
        if (key, values.get("reason")) != self._problem:
            self._write("waiting", reason=text(key, "en", **values), key=key)
        self._problem = key, values.get("reason")

    def credited(self, tokens: int, rounds: int, newest: int) -> None:
        self._write("credited", tokens=tokens, rounds=rounds, newest=newest)

    def over(self, rounds: int, receipts: Path | None) -> None:
        self._write("over", rounds=rounds, receipts=str(receipts) if receipts else None)

    def stage(self, round: int, name: str) -> None: ...

    def close(self) -> None: ...

    def _write(self, event: str, **values: Any) -> None:
        sys.stdout.write(json.dumps({"event": event, "time": round(time.time(), 3), **values}) + "\n")
        sys.stdout.flush()
