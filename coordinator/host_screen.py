"""What `potluck host` shows: the invite, then a live table of the run; JSON lines for scripts."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from protocol import words
from protocol.release import this_release
from protocol.status import Alarm, RunStatus

if TYPE_CHECKING:
    from coordinator.host import Host


class HostScreen:
    """One screen for one `potluck host`."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._console = Console(stderr=True, highlight=False)
        self._live: Live | None = None
        self._shown: tuple[object, ...] = ()  # round, newest evaluation, whether finished, parts that failed
        self._alarm: Alarm | None = None  # that was shown last

    def note(self, text: str) -> None:
        """A line before volunteers can join: what the model is, say."""
        if self._as_json:
            self._write("note", text=text)
        else:
            self._console.print(words.told(text), soft_wrap=True, markup=False)

    def started(self, running: Host) -> None:
        """Volunteers can join: show the invite."""
        if self._as_json:
            release = this_release()
            reducers = {"reducer_invite": str(running.reducer_invite)} if running.reducer_invite else {}
            self._write(
                "started",
                invite=str(running.invite),
                folder=str(running.folder),
                run=running.invite.run,
                open=running.invite.code is None,
                version=release.version,
                commit=release.commit,
                **reducers,
            )
            return
        self._console.print(f"{this_release()}\n", markup=False)
        say = words.told
        if running.invite.code is None:
            self._console.print(say("This run is open: whoever reaches this host can join. To pass on:") + "\n")
        else:
            self._console.print(say("This run is by invite: pass this line on, whoever has it can join.") + "\n")
        sys.stdout.write(f"{running.invite}\n")
        sys.stdout.flush()
        how = words.labelled("to join:", f"potluck join {str(running.invite)[:24]}…")
        where = words.labelled("folder:", str(running.folder))
        self._console.print(f"\n{how}\n{where}\n", soft_wrap=True, markup=False)
        if running.reducer_invite:
            to_reduce = (
                "for those whom you trust to reduce for everyone (potluck join --reduce-only): "
                f"the line in {running.folder / 'reducer-invite.txt'}"
            )
            self._console.print(say(to_reduce) + "\n", soft_wrap=True, markup=False)
        self._console.print(
            say("Ctrl-C stops the coordinator; peers go on training, and the same command goes on with the run.") + "\n"
        )

    def status(self, status: RunStatus) -> None:
        """How the run stands; called about every second."""
        newest = max((item.round for item in status.evaluations), default=-1)
        now = (status.round, newest, status.finished, status.parts_failed)
        changed, self._shown = now != self._shown, now
        if self._as_json:
            if changed:
                self._write("status", status=json.loads(status.to_bytes()))
        elif self._console.is_terminal:
            self._draw(status)
        elif changed or status.alarm != self._alarm:
            if status.alarm != self._alarm and status.alarm is not None:
                self._console.print(_alarm_line(status.alarm), soft_wrap=True)
            self._alarm = status.alarm
            loss = f", held-out loss {status.evaluations[-1].held_out_loss:.4f}" if status.evaluations else ""
            self._console.print(words.told(f"round {status.round}: {status.tokens:,} tokens agreed{loss}"))
            for item in status.parts_failed:
                self._console.print(words.told(f"a part of the coordinator has failed: {item}"), markup=False)

    def ended(self, status: RunStatus) -> None:
        """The coordinator has stopped."""
        if status.alarm is not None and not self._as_json:
            self._console.print(_alarm_line(status.alarm), soft_wrap=True)
        if self._as_json:
            self._write("ended", finished=status.finished, status=json.loads(status.to_bytes()))
        elif status.finished:
            self._console.print(words.told(f"the run has had all its {status.rounds} rounds"))
        else:
            self._console.print(words.told(f"stopped at round {status.round}; the same command goes on from here"))

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _draw(self, status: RunStatus) -> None:
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        self._live.update(run_view(status), refresh=True)

    def _write(self, event: str, **values: Any) -> None:
        sys.stdout.write(json.dumps({"event": event, "time": round(time.time(), 3), **values}) + "\n")
        sys.stdout.flush()


def run_view(status: RunStatus) -> Group:
    """A run as a table of its peers under a line of its figures; `scripts/demo` shows the same."""
    losses = [item.held_out_loss for item in status.evaluations]
    trend = f"{losses[0]:.4f} → {losses[-1]:.4f}" if len(losses) > 1 else f"{losses[0]:.4f}" if losses else "…"
    at = f"{status.round}/{status.rounds}" if status.rounds else f"{status.round}"
    figures = (
        f"round {at}",
        f"held-out loss {trend}",
        f"{status.tokens_per_s:,.0f} tokens/s",
        f"{status.tokens:,} tokens agreed",
        *([f"learning rate {status.rates}"] if status.rates else []),
        f"ledger {status.ledger.size} entries",
    )
    head = Text.assemble((f"{status.name}  ", "bold"), "   ".join(map(words.told, figures)))
    bar = Text()
    if status.rounds:
        done = round(40 * status.round / status.rounds)
        bar = Text.assemble(("━" * done, "green"), ("━" * (40 - done), "dim"))
    table = Table(box=None, padding=(0, 2))
    holds = any(peer.pending_tokens for peer in status.peers)
    for name, justify in (
        ("peer", "left"),
        ("round", "right"),
        ("tokens/s", "right"),
        ("credit, tokens", "right"),
        *([("pending", "right")] if holds else []),
        ("seen", "right"),
    ):
        table.add_column(words.told(name), justify=justify)  # type: ignore[arg-type]
    for peer in sorted(status.peers, key=lambda item: item.peer_id):
        away = "away" if peer.last_seen_s is None else f"{peer.last_seen_s:.0f} s ago"
        seen = words.told("banned" if peer.banned else away)
        credit = (f"{peer.credit_tokens:,}", *([f"{peer.pending_tokens:,}"] if holds else []))
        table.add_row(peer.peer_id[-8:], str(peer.round), f"{peer.tokens_per_s:,.0f}", *credit, seen)
    failures = [f"a part of the coordinator has failed: {item}" for item in status.parts_failed]
    told = [Text(words.told(failure), "bold red") for failure in failures]
    if status.alarm:
        told.append(_alarm_line(status.alarm))
    return Group(head, *told, bar, table)


def _alarm_line(alarm: Alarm) -> Text:
    return Text(words.told(f"ALARM: {alarm}"), "bold red")
