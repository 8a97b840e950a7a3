"""`potluck identity`: a peer's key, shown, backed up and restored; whoever loses it loses its credit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from commands.options import Home, Lang
from commands.talk import say
from protocol.errors import InputError

app = typer.Typer(help="Your peer's key: show, back up, restore.", no_args_is_help=True)


@app.command("show")
def show(home: Home = None, lang: Lang = None) -> None:
    """Print this peer's id."""
    from protocol.keys import PeerIdentity

    typer.echo(PeerIdentity.load_or_create(_identity_path(home)).peer_id)


@app.command("new")
def new(home: Home = None, lang: Lang = None) -> None:
    """Give this computer an identity of its own, if its home was copied; the one that was here is kept beside it."""
    from protocol.keys import PeerIdentity

    target = _identity_path(home)
    _keep_identity(target)
    typer.echo(PeerIdentity.load_or_create(target).peer_id)


@app.command("backup")
def backup(
    target: Annotated[Path, typer.Argument(help="The file to write.")], home: Home = None, lang: Lang = None
) -> None:
    """Copy this peer's key to a file: whoever has it can claim your credit, so keep it safe."""
    from protocol.disk import write_file
    from protocol.keys import PeerIdentity

    source = _identity_path(home)
    if not source.is_file():
        raise InputError(f"{source}: there is no identity yet", "join a run first")
    if os.path.lexists(target):
        raise InputError(f"{target}: is there already", "choose another name")
    identity = PeerIdentity.load_or_create(source)
    write_file(target, identity.to_bytes(), private=True)
    typer.echo(f"{identity.peer_id} -> {target}")


@app.command("restore")
def restore(source: Annotated[Path, typer.Argument(help="A backup.")], home: Home = None, lang: Lang = None) -> None:
    """Put a backed-up key in place; an identity that is already here is kept beside it."""
    from protocol.disk import write_file
    from protocol.keys import PeerIdentity

    try:
        with source.open("rb") as file:
            identity = PeerIdentity.from_bytes(file.read(128))
    except OSError as error:
        raise InputError(f"{source}: {error.strerror}") from error
    target = _identity_path(home)
    if target.is_file() and target.read_bytes() != identity.to_bytes():
        _keep_identity(target)
    write_file(target, identity.to_bytes(), private=True)
    typer.echo(identity.peer_id)


def _keep_identity(path: Path) -> None:
    """Put an identity that is there aside, under a name that says whose it is."""
    from protocol.keys import PeerIdentity

    if path.is_file():
        kept = path.with_name(f"identity.{PeerIdentity.load_or_create(path).peer_id[-8:]}")
        os.replace(path, kept)
        say(f"the identity that was here is now {kept}")


def _identity_path(home: Path | None) -> Path:
    from protocol.trust import home as default_home

    return (home or default_home()) / "identity"
