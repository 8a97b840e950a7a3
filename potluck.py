"""The command line: `potluck host`, `potluck join`, `potluck verify` and their smaller siblings.

Each verb imports its package when it is called, so `--help` is quick and a verifier needs neither torch nor hivemind.
Exit codes: 0 yes or done, 1 the answer is no, 2 wrong usage or input, 130 interrupted; of `verify` also 3 incomplete,
4 outdated; of `join` also 4 left, and the run waits for this peer to come back. 5: the program has failed, or a part of
it.
Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import contextlib
import io
import logging
import signal
import sys
from typing import Annotated, NoReturn

import typer

from commands import anyone, data, identity, ledger, own_peers, service, uninstall, volunteer
from commands.doctor import doctor
from commands.host import approve, ban, go_on, host, invite, invites, members, unban
from commands.receipts import receipts
from protocol import words
from protocol.errors import PartFailed, PotluckError
from protocol.release import this_release

logger = logging.getLogger(__name__)

app = typer.Typer(
    name="potluck",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for verb in (
    host,
    go_on,
    invite,
    invites,
    approve,
    members,
    ban,
    unban,
    doctor,
    volunteer.join,
    receipts,
    anyone.fetch,
    anyone.verify,
):
    app.command()(verb)
for asked in (own_peers.status, own_peers.pause, own_peers.resume, own_peers.finish, own_peers.leave, own_peers.limits):
    app.command()(asked)
app.command()(uninstall.uninstall)
app.add_typer(data.app, name="data")
app.add_typer(identity.app, name="identity")
app.add_typer(ledger.app, name="ledger")
app.add_typer(service.app, name="service")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(str(this_release()))
        raise typer.Exit


@app.callback(help="Train one model together on donated computers; verify what comes of it.")
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """What goes before a verb."""


def main() -> NoReturn:
    """Run the command line; errors become one line and a hint, in the user's language.

    Ctrl-C ends it as it ends any program, where no verb has taken that over: an exception would come wherever it is.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from peer.screen.usage import run

    if isinstance(sys.stdout, io.TextIOWrapper):  # a character that the terminal's encoding lacks ends nothing
        with contextlib.suppress(OSError):  # of a stream that cannot be changed any more
            sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = run(typer.main.get_command(app))
    except PotluckError as error:
        for label, text in (("error:", error.message), ("hint:", error.hint)):
            if text:
                sys.stderr.write(words.labelled(label, words.shown(words.told(text))) + "\n")
        code = error.exit_code
    except Exception:
        logger.exception("%s has failed", this_release())
        code = PartFailed.exit_code
    sys.exit(code)


if __name__ == "__main__":
    main()
