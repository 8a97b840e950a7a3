"""`potluck identity`: a peer's key, shown, exported and brought back; whoever loses it loses its credit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commands.options import Home, Lang
from commands.talk import say
from protocol.errors import FormatError, InputError

if TYPE_CHECKING:
    from peer.disk.own_identity import OwnIdentity, Replaced
    from protocol.identity_export import Passphrase

app = typer.Typer(help="Your peer's key: show, export, import.", no_args_is_help=True)

PassphraseFile = Annotated[
    Path | None,
    typer.Option(help="A file whose only line is the passphrase, for scripts [default: you are asked for it]."),
]


@app.command("show")
def show(home: Home = None, lang: Lang = None) -> None:
    """Print this peer's id."""
    from protocol.keys import PeerIdentity

    typer.echo(PeerIdentity.load_or_create(_own(home).path).peer_id)


@app.command("export")
def export_(
    target: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")],
    replace: Annotated[bool, typer.Option("--replace", help="Write over an earlier export of this identity.")] = False,
    passphrase_file: PassphraseFile = None,
    home: Home = None,
    lang: Lang = None,
) -> None:
    """Write this peer's key to a file under a passphrase, for another disk or another computer.

    The key alone is in it. Receipts are no secret, and are files that you may copy as they are.
    """
    own = _own(home)
    own.load()  # before anybody thinks of a passphrase
    if os.path.lexists(target) and not replace:
        raise InputError(f"{target}: is there already", "choose another name, or --replace")
    identity = own.export(target, _passphrase(passphrase_file, twice=True), replace=replace)
    typer.echo(f"{identity.peer_id} -> {target}")
    say("it opens with your passphrase alone; keep both away from this computer, for neither can be made anew")


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="What `potluck identity export` wrote.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Put it in the place of another one that is here, which is kept beside.")
    ] = False,
    passphrase_file: PassphraseFile = None,
    home: Home = None,
    lang: Lang = None,
) -> None:
    """Bring an exported key back: the peer of this home is that one from now on, and so is the credit."""
    from peer.disk.own_identity import read_export
    from protocol.identity_export import IdentityExport

    own, data = _own(home), read_export(source)
    try:
        own.check_place(IdentityExport.parse(data), replace=replace)
    except FormatError as error:
        raise FormatError(f"{source}: {error.message}", error.hint) from error
    _tell(own.bring_in(data, _passphrase(passphrase_file), replace=replace))
    say("on one computer at a time: stop the peer of this identity elsewhere before you join here")


@app.command("new")
def new(home: Home = None, lang: Lang = None) -> None:
    """Give this computer an identity of its own, if its home was copied; the one that was here is kept beside it."""
    from protocol.keys import PeerIdentity

    _tell(_own(home).replace(PeerIdentity.generate()))


@app.command("backup")
def backup(
    target: Annotated[Path, typer.Argument(help="The file to write.")], home: Home = None, lang: Lang = None
) -> None:
    """Copy this peer's key to a file as it is: whoever has it can claim your credit. `export` takes a passphrase."""
    from protocol.disk import write_file

    own = _own(home)
    identity = own.load()
    if os.path.lexists(target):
        raise InputError(f"{target}: is there already", "choose another name")
    write_file(target, identity.to_bytes(), private=True)
    own.note_copy(identity.peer_id)
    typer.echo(f"{identity.peer_id} -> {target}")


@app.command("restore")
def restore(source: Annotated[Path, typer.Argument(help="A backup.")], home: Home = None, lang: Lang = None) -> None:
    """Put a backed-up key in place; an identity that is already here is kept beside it."""
    from peer.disk.own_identity import read_export
    from protocol.identity_export import is_export
    from protocol.keys import PeerIdentity

    data = read_export(source, "give the file that `potluck identity backup` wrote")
    if is_export(data):
        raise InputError(f"{source}: an export, under a passphrase", "bring it back with `potluck identity import`")
    try:
        identity = PeerIdentity.from_bytes(data)
    except FormatError as error:
        raise FormatError(f"{source}: {error.message}", "give the file that `potluck identity backup` wrote") from error
    _tell(_own(home).replace(identity))


def _tell(replaced: Replaced) -> None:
    if replaced.kept is not None:
        say(f"the identity that was here is now {replaced.kept}")
    typer.echo(replaced.identity.peer_id)


def _own(home: Path | None) -> OwnIdentity:
    from peer.disk.own_identity import OwnIdentity
    from protocol.trust import home as default_home

    return OwnIdentity(home or default_home())


def _passphrase(file: Path | None, *, twice: bool = False) -> Passphrase:
    """What the file says, or what is typed, without an echo. Raises: InputError."""
    from commands.passphrases import ask, read_line
    from protocol.identity_export import MAX_PASSPHRASE_CHARS, Passphrase

    return Passphrase(ask(twice=twice) if file is None else read_line(file, 4 * MAX_PASSPHRASE_CHARS))
