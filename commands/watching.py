"""`potluck status --watch`: the picture that `join` draws, of a peer that runs elsewhere on this computer."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from protocol import words
from protocol.errors import InputError, NetworkError

if TYPE_CHECKING:
    from peer.disk.local_peers import LocalPeer

LOOK_S = 1.0


def watch(home: Path | None, run: str | None, *, as_json: bool) -> None:
    """Show one peer until it has left, or its owner closes the view.

    Raises:
        InputError: none runs, or several do.
    """
    from rich.console import Console

    from peer.limits.control import ask
    from peer.screen.live import LiveView, is_for_people

    peer = _the_one(home, run)
    console = Console(highlight=False)

    def ask_peer(question: dict[str, Any]) -> dict[str, Any] | None:
        answer = ask(peer.folder, question)
        if answer is not None and "losses" not in answer["state"]:
            raise InputError("the peer here is of an older Potluck", "start it again to watch it")
        return answer

    with contextlib.suppress(KeyboardInterrupt), _ended_by_kill():
        if as_json or not is_for_people(console):
            lines(lambda: ask_peer({"do": "status"}), as_json=as_json)
        else:
            view = LiveView(ask_peer, lambda: _leave(peer), words.language_of_user(), console, closes=True)
            view.run(threading.Event())


def lines(look: Callable[[], dict[str, Any] | None], *, as_json: bool, wait_s: float = LOOK_S) -> None:
    """One line for each round, and for each other reason, until the peer has gone."""
    from peer.screen.view import line, state

    told: tuple[int, str] | None = None
    pause = threading.Event()
    while True:
        with contextlib.suppress(NetworkError):  # it is busy: the next look tells
            answer = look()
            if answer is None:
                break
            status = answer["state"]
            if told != (told := (status["round"], state(status)[1])):
                typer.echo(json.dumps(status) if as_json else line(status, words.language_of_user()))
                sys.stdout.flush()
        pause.wait(wait_s)


def _the_one(home: Path | None, run: str | None) -> LocalPeer:
    from peer.disk.local_peers import find_peers
    from protocol.trust import home as default_home

    running = [peer for peer in find_peers(home or default_home(), run) if peer.process is not None]
    if not running:
        raise InputError("no peer runs here", "`potluck join INVITE` starts one")
    if len(running) > 1:
        names = ", ".join(peer.name or peer.run for peer in running)
        raise InputError(f"several peers run here: {names}", "choose one with --run NAME")
    return running[0]


def _leave(peer: LocalPeer) -> None:
    assert peer.process is not None, "it ran when it was found"
    peer.process.signal(signal.SIGINT)


@contextlib.contextmanager
def _ended_by_kill() -> Iterator[None]:
    """SIGTERM ends what is inside as Ctrl-C does, so that the terminal is given back."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
