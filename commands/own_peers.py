"""What a volunteer asks of the peers on this computer: status, pause, resume, finish, leave; and the limits."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands.options import Home, Json, Lang
from commands.talk import need, say
from protocol import words
from protocol.errors import InputError, PotluckError

if TYPE_CHECKING:
    from peer.disk.local_peers import LocalPeer

Run = Annotated[str | None, typer.Option("--run", help="Only this run: its name, or how its digest begins.")]
_UNITS_S = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_SPAN = re.compile(r"(\d{1,6}(?:\.\d{1,3})?) ?(s|min|m|h|d)")


def pause(
    span: Annotated[
        str | None, typer.Option("--for", metavar="SPAN", help="As 30min, 2h, 1d [default: until resume].")
    ] = None,
    run: Run = None,
    home: Home = None,
    lang: Lang = None,
) -> None:
    """Stop the work of the peers on this computer, within two seconds; what they have done is kept or handed over."""
    seconds = None if span is None else _seconds(span)
    _tell_all(home, run, {"do": "pause", "seconds": seconds}, "paused; potluck resume goes on")


def resume(run: Run = None, home: Home = None, lang: Lang = None) -> None:
    """Take back `pause` and `finish`: work goes on, as far as the limits allow."""
    _tell_all(home, run, {"do": "resume"}, "goes on")


def finish(run: Run = None, home: Home = None, lang: Lang = None) -> None:
    """Ask the peers on this computer to leave once the round in hand is made, and do not wait for it."""
    _tell_all(home, run, {"do": "finish"}, "leaves after this round")


def _tell_all(home: Path | None, run: str | None, question: dict[str, Any], done: str) -> None:
    from peer.disk.local_peers import find_peers
    from peer.limits.control import ask
    from protocol.trust import home as default_home

    running = [peer for peer in find_peers(home or default_home(), run) if peer.process is not None]
    if not running:
        raise InputError("no peer runs here", "`potluck join INVITE` starts one")
    failed = 0
    for peer in running:
        name = peer.name or peer.run
        try:
            answer = ask(peer.folder, question)
        except PotluckError as error:
            say(f"{name}: {error.message}")
            failed += 1
            continue
        failed += answer is None
        say(f"{name}: {done}" if answer else f"{name}: is still starting; try again in some seconds")
    if failed:
        raise typer.Exit(1)


def _seconds(span: str) -> float:
    found = _SPAN.fullmatch(span.strip().lower())
    if not found or not float(found[1]):
        raise InputError(f"--for {span[:40]}: no span of time", "write, say, 30min, 2h or 1d")
    return float(found[1]) * _UNITS_S[found[2]]


def limits(
    new: Annotated[bool, typer.Option("--new", help="Write the commented example, where there is none yet.")] = False,
    edit: Annotated[bool, typer.Option("--edit", help="Open it in $EDITOR, and check it afterwards.")] = False,
    home: Home = None,
    lang: Lang = None,
) -> None:
    """Check limits.toml: when and how much the peers on this computer may work. It may change while they run."""
    from peer.limits.limits import OwnLimits, read, write_example
    from protocol.trust import home as default_home

    path = (home or default_home()) / "limits.toml"
    if (new or edit) and write_example(path, words.language_of_user()):
        say(f"{path}: written, with every limit explained and off")
    if edit:
        editor = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "nano")
        try:
            subprocess.run([*editor, str(path)], check=False)
        except OSError as error:
            raise InputError(f"{editor[0]}: {error.strerror}", f"set EDITOR, or edit {path} yourself") from error
    found, plain = read(path), OwnLimits()
    held = {key: value for key, value in found.model_dump().items() if value != getattr(plain, key)}
    say(f"{path}: nothing is limited; --edit changes that" if not held else f"{path}: holds")
    for key, value in held.items():
        typer.echo(f"  {key} = {json.dumps(value)}")


def leave(
    run: Annotated[str | None, typer.Option("--run", help="Only this run: its name, or how its digest begins.")] = None,
    now: Annotated[bool, typer.Option("--now", help="At once, as a second Ctrl-C: the step in hand is lost.")] = False,
    home: Home = None,
    lang: Lang = None,
) -> None:
    """Ask the peers that run on this computer to leave, and wait until they have: as Ctrl-C does where they began."""
    from peer.disk.local_peers import ask_to_leave, find_peers
    from protocol.trust import home as default_home

    running = [peer for peer in find_peers(home or default_home(), run) if peer.process is not None]
    if not running:
        say("no peer runs here")
    stayed = 0
    for peer in running:
        assert peer.process is not None
        name = f"{peer.name or peer.run} (process {peer.process.pid})"
        if ask_to_leave(peer, now=now):
            say(f"{name}: left")
        else:
            stayed += 1
            waits = "it may wait until another member has the run's newest state; --now makes it leave at once"
            say(f"{name}: has not left yet; {'kill -9 does it no harm' if now else waits}")
    if stayed:
        raise typer.Exit(1)


def status(
    invite: Annotated[
        str | None, typer.Argument(metavar="[INVITE]", help="A run's invite, or a file that holds it.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Watch the peer that runs here, with keys to pause it and the like.")
    ] = False,
    run: Run = None,
    home: Home = None,
    lang: Lang = None,
    json_output: Json = False,
) -> None:
    """Show the peers of this computer; with an invite, ask the run's coordinator how the run stands."""
    if watch:
        from commands.watching import watch as watch_peer

        if invite is not None:
            raise InputError("--watch is for a peer on this computer", "leave the invite away; --run NAME chooses one")
        watch_peer(home, run, as_json=json_output)
        return
    if invite is None:
        _local_status(home, run, json_output)
        return
    need("peer", "grpc")
    from peer.link.client import CoordinatorClient
    from protocol.pasted import read_invite

    with CoordinatorClient(read_invite(invite)) as client:
        client.get_run()
        current = client.status()
    if json_output:
        typer.echo(current.to_bytes().decode())
        return
    say(f"{current.name}: round {current.round} of {current.rounds or 'open end'}, {current.tokens:,} tokens agreed")
    if current.rates is not None:
        say(f"learning rate {current.rates}")
    if current.finished:
        say("this run is over; `potluck fetch INVITE` brings its newest checkpoint")
    for part in current.parts_failed:
        say(f"a part of the coordinator has failed: {part}")
    if current.alarm is not None:
        say(f"ALARM: {current.alarm}")
    for peer in sorted(current.peers, key=lambda item: -item.credit_tokens):
        seen = words.told("away") if peer.last_seen_s is None else f"seen {peer.last_seen_s:.0f} s ago"
        held = f", {peer.pending_tokens:,} pending" if peer.pending_tokens else ""
        seen = words.told("banned") if peer.banned else seen
        say(f"  {peer.peer_id[-8:]}  {peer.credit_tokens:>12,} tokens in {peer.rounds} rounds{held}, {seen}")
    for item in current.evaluations:
        say(f"  round {item.round:>6}: held-out loss {item.held_out_loss:.4f}")


def _local_status(home: Path | None, run: str | None, json_output: bool) -> None:
    from peer.disk.local_peers import find_peers
    from peer.screen.rounds import describe
    from protocol.trust import home as default_home

    found = find_peers(home or default_home(), run)
    if json_output:
        typer.echo(json.dumps([peer.to_json() | {"live": _live(peer)} for peer in found], indent=2))
        return
    if not found:
        say("no run was joined here; `potluck join INVITE` joins one")
    for peer in found:
        running = f"running, process {peer.process.pid}" if peer.process else "not running"
        at = f", round {peer.rounds[-1].round}" if peer.rounds else ""
        say(f"{peer.name or words.told('(unknown)')} ({peer.run}…): {running}{at}")
        _say_live(peer)
        for item in peer.rounds:
            typer.echo(f"  {describe(item, words.language_of_user())}")


def _live(peer: LocalPeer) -> dict[str, Any] | None:
    """What a running peer says of itself; None: it says nothing."""
    from peer.limits.control import ask

    if peer.process is None:
        return None
    try:
        answer = ask(peer.folder, {"do": "status"})
    except PotluckError as error:
        return {"error": error.message}
    return answer["state"] if answer else None


def _say_live(peer: LocalPeer) -> None:
    from peer.screen.view import state

    status = _live(peer)
    if status is None or "error" in status:
        if status is not None:
            say(f"  {status['error']}")
        return
    kind, told = state(status)
    say(f"  working: {status['tokens_per_s']:,.0f} tokens/s" if kind == "working" else f"  {told}")
    credit = status["credit"]
    say(f"  credit: {credit['tokens']:,} tokens in {credit['rounds']} rounds")
