"""`potluck uninstall`: what Potluck has put on this disk goes again, after its owner has seen the list."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from commands.options import Home, Lang
from commands.service import manager_here
from commands.talk import say
from protocol import words
from protocol.errors import InputError


def uninstall(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask whether this is meant.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    identity: Annotated[
        bool, typer.Option("--identity", help="Also the identity and the receipts, which alone prove your credit.")
    ] = False,
    home: Home = None,
    lang: Lang = None,
) -> None:
    """Remove what Potluck keeps on this computer: runs, models, data, services. Identity and receipts stay.

    It says what it would remove, and asks. It follows no links. The program itself is removed as it was installed.
    """
    from peer.disk.footprint import look, others, remove
    from peer.service.plan import service_name
    from peer.service.steps import Shell, carry_out
    from protocol.installed import this_installation
    from protocol.trust import home as default_home

    place = (home or default_home()).absolute()
    if not dry_run:
        _check_quiet(place)
    runner = Shell()
    manager = manager_here(runner)
    services, items = manager.installed(place), look(place, everything=identity)
    for run in services:
        say(f"goes: the service {service_name(place, run)}")
    for item in items:
        megabytes = f"{item.size_bytes / 1e6:,.1f}"
        if item.kept:
            say(f"stays: {item.path} ({megabytes} MB)")
        else:
            say(
                f"goes: {item.path}, a link; what it leads to stays"
                if item.link
                else f"goes: {item.path} ({megabytes} MB)"
            )
    for path in others(place, items):
        say(f"stays: {path}, which is not Potluck's")
    going = [item for item in items if not item.kept]
    say(f"together {sum(item.size_bytes for item in going) / 1e6:,.1f} MB")
    question = words.told("remove this?", words.language_of_user())
    if dry_run or not (services or going):
        say("nothing was removed")
    elif not yes and not typer.confirm(question):
        raise typer.Exit(1)
    else:
        for run in services:
            carry_out(manager.uninstall(service_name(place, run), place, run), runner)
        remove(place, items)
        say("removed")
    say(f"the program itself goes by: {this_installation().remove()}")


def _check_quiet(home: Path) -> None:
    """Raises: InputError: a peer is running in this home."""
    from peer.disk.local_peers import find_peers

    for peer in find_peers(home):
        if peer.process is not None:
            raise InputError(
                f"a peer is running here: {peer.name or peer.run} (process {peer.process.pid})",
                "type potluck leave, or of a service potluck service stop; then the same command again",
            )
