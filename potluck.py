"""The command line: `potluck host`, `potluck join`, `potluck verify` and their smaller siblings.

Each verb imports its package when it is called, so `--help` is quick and a verifier needs neither torch nor hivemind.
Exit codes: 0 yes or done, 1 the answer is no, 2 wrong usage or input, 130 interrupted; of `verify` also 3 incomplete, 4
outdated; of `join` also 4 left, and the run waits for this peer to come back, 5 a part of the program has failed. Results
go to standard output, everything else to standard error.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from protocol import words
from protocol.errors import InputError, PotluckError

app = typer.Typer(
    name="potluck",
    help="Train one model together on donated computers; verify what comes of it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
identity_app = typer.Typer(help="Your peer's key: show, back up, restore.", no_args_is_help=True)
app.add_typer(identity_app, name="identity")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more on standard error.")]
Lang = Annotated[
    str | None,
    typer.Option(
        "--lang", help="en or zh [default: from your locale].", callback=lambda given: _lang(given), is_eager=True
    ),
]
Home = Annotated[
    Path | None, typer.Option("--home", help="Where identity, runs and receipts are kept [default: your data folder].")
]


@app.command()
def host(
    config: Annotated[Path, typer.Argument(metavar="RUN.TOML", help="What to train: see examples/.")],
    folder: Annotated[Path | None, typer.Option(help="The run's folder [default: runs/NAME].")] = None,
    until_finished: Annotated[bool, typer.Option(help="Leave when the run has had all its rounds.")] = False,
    lang: Lang = None,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Launch a run: make and sign its genesis, admit volunteers, keep the ledger, publish checkpoints."""
    _log(verbose)
    _need("coordinator", "sqlalchemy", "torch")
    from peer.screen.starting import starting

    starting("torch", "transformers", "coordinator.host", quiet=json_output)
    from coordinator.host import host as run_host
    from coordinator.host_screen import HostScreen
    from protocol.trust import trust

    screen = HostScreen(as_json=json_output)

    def started(running: Any) -> None:
        trust(running.invite.root, name=running.status().name, run=running.invite.run)
        screen.started(running)

    try:
        status = run_host(
            config,
            folder,
            on_start=started,
            tell=screen.note,
            on_status=screen.status,
            linger_s=10.0 if until_finished else None,
        )
    finally:
        screen.close()
    screen.ended(status)


@app.command()
def join(
    invite: Annotated[
        str, typer.Argument(metavar="INVITE", help="The line the host sent you, or a file that holds it.")
    ],
    home: Home = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Agree to the run's terms without being asked.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads to use [default: all].")] = None,
    precision: Annotated[
        str, typer.Option(help="auto, bf16, fp16, fp32: of the passes; auto: what this card does well.")
    ] = "auto",
    listen: Annotated[
        str, typer.Option(help="Address and port for other members; port 0: any free one.")
    ] = "0.0.0.0:0",
    announce: Annotated[str | None, typer.Option(help="Host name or address others reach you by, if another.")] = None,
    reduce_only: Annotated[
        bool,
        typer.Option(
            "--reduce-only", help="Train nothing: average for the others, on a fast line. Needs its own invite."
        ),
    ] = False,
    lang: Lang = None,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Donate this computer's time to a run: train with the others until it is over or you press Ctrl-C."""
    from peer.listening import check_listen
    from peer.screen.starting import starting
    from protocol.pasted import read_invite

    parsed = read_invite(invite)  # before the heavy imports: a bad paste is told at once
    _one_of("--precision", precision, ("auto", "bf16", "fp16", "fp32"))
    check_listen(listen, announce)  # before gigabytes are fetched in vain
    _log(verbose)
    _need("peer", "torch", "hivemind")
    starting("torch", "transformers", "hivemind", "peer.volunteer", quiet=json_output)
    from peer.handing_on import Outcome
    from peer.screen.json_lines import JsonScreen
    from peer.screen.terminal import TerminalScreen
    from peer.swarm.swarm import SwarmConfig
    from peer.volunteer import PeerConfig, Volunteer
    from protocol.keys import PeerIdentity
    from protocol.leaving import Leaving
    from protocol.trust import home as default_home

    config = PeerConfig(
        home=home or default_home(),
        device=_device(device),
        threads=threads,
        precision=precision,
        swarm=SwarmConfig(listen=listen, announce=announce, reduce_only=reduce_only),
    )
    me = PeerIdentity.load_or_create(config.home / "identity").peer_id
    screen: Any = (
        JsonScreen()
        if json_output
        else TerminalScreen(words.language_of_user(), me, yes=yes, reduce_only=reduce_only, details=verbose)
    )
    with Leaving(
        lambda: screen.step("leaving"), lambda: screen.step("left"), lambda failure: volunteer.failed(failure)
    ) as leaving:
        volunteer = Volunteer(parsed, config, screen, leaving)
        try:
            agreed = volunteer.run()
        finally:
            screen.close()
        if not agreed:
            screen.step("declined")
        elif volunteer.took_part:
            screen.step("left" if leaving.is_asked else "done")
    if not agreed:
        raise typer.Exit(1)
    if volunteer.outcome in (Outcome.NOT_HANDED_ON, Outcome.ALONE):
        raise typer.Exit(4)


@app.command()
def leave(
    run: Annotated[str | None, typer.Option("--run", help="Only this run: its name, or how its digest begins.")] = None,
    now: Annotated[bool, typer.Option("--now", help="At once, as a second Ctrl-C: the step in hand is lost.")] = False,
    home: Home = None,
    lang: Lang = None,
) -> None:
    """Ask the peers that run on this computer to leave, and wait until they have: as Ctrl-C does where they were started."""
    from peer.disk.local_peers import ask_to_leave, find_peers
    from protocol.trust import home as default_home

    running = [peer for peer in find_peers(home or default_home(), run) if peer.process is not None]
    if not running:
        _say("no peer runs here")
    stayed = 0
    for peer in running:
        assert peer.process is not None
        name = f"{peer.name or peer.run} (process {peer.process.pid})"
        if ask_to_leave(peer, now=now):
            _say(f"{name}: left")
        else:
            stayed += 1
            waits = "it may wait until another member has the run's newest state; --now makes it leave at once"
            _say(f"{name}: has not left yet; {'kill -9 does it no harm' if now else waits}")
    if stayed:
        raise typer.Exit(1)


@app.command()
def fetch(
    invite: Annotated[
        str, typer.Argument(metavar="INVITE", help="The line the host sent you, or a file that holds it.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where to put it.")] = Path("."),
    chain: Annotated[
        bool, typer.Option("--chain", help="All checkpoints and rounds, so that the way from genesis can be verified.")
    ] = False,
    home: Home = None,
    lang: Lang = None,
    json_output: Json = False,
) -> None:
    """Fetch a run's newest published checkpoint from its coordinator, and verify it; goes on where it was broken off."""
    _need("peer", "grpc")
    from peer.link.fetching import fetch_checkpoint
    from peer.screen.download_bar import DownloadBar
    from protocol.pasted import read_invite
    from protocol.trust import home as default_home

    with DownloadBar() as bar:
        step, report = fetch_checkpoint(read_invite(invite), folder, home or default_home(), bar, chain=chain)
    told = {"folder": str(step), **report.to_json()}
    typer.echo(json.dumps(told, indent=2) if json_output else f"{step}\n{report.to_text(words.told)}")
    raise typer.Exit(report.answer.exit_code)


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="A checkpoint folder (step-…), a receipt, or a folder of receipts.")],
    key: Annotated[
        list[str] | None, typer.Option("--key", help="A key you trust: a PEM file or a fingerprint. May be repeated.")
    ] = None,
    checkpoints: Annotated[
        Path | None,
        typer.Option(
            help="The folder of all checkpoints and of rounds/ [default: the one that the checkpoint lies in]."
        ),
    ] = None,
    signature_only: Annotated[
        bool,
        typer.Option(
            "--signature-only",
            help="Check this one folder: signature, files, weights, the members' agreement; not the chain back to genesis.",
        ),
    ] = False,
    newest_by: Annotated[
        str | None,
        typer.Option(
            metavar="INVITE|FILE",
            help="Ask whether it is the newest: the run's coordinator, by its invite, or a signed ledger head "
            "(a receipt or a log proof holds one).",
        ),
    ] = None,
    signature: Annotated[
        Path | None,
        typer.Option(
            help="Of a model that is not of a run: PATH is the model, this its OMS signature, --key the signer's PEM file."
        ),
    ] = None,
    home: Home = None,
    lang: Lang = None,
    json_output: Json = False,
) -> None:
    """Check a published checkpoint or a receipt, offline, without trusting its host's word.

    Exit codes: 0 all of it holds; 1 something does not, or the key is not one that you trust; 2 wrong usage; 3 incomplete:
    something that the checkpoint says there is (an ancestor, the agreement of a round) is not at hand, or it cannot be
    said whether it is the newest; 4 all of it holds, and there is a newer one.
    """
    from protocol.signed_model import verify_model
    from protocol.trust import confirmed
    from protocol.verify import verify_path

    trusted, keys = confirmed(key or [], home)
    if signature_only and checkpoints is not None:
        raise InputError(
            "--signature-only and --checkpoints: one or the other", "the chain is checked without the first"
        )
    if newest_by is not None and os.path.isfile(path):
        raise InputError("--newest-by: only a checkpoint can be the newest", "give a checkpoint folder")
    if signature is not None:
        if not keys or signature_only or checkpoints is not None or newest_by is not None:
            raise InputError(
                "--signature goes with the signer's public key, and with no other option",
                "give the PEM file of the key with --key; the other options are for checkpoints",
            )
        report = verify_model(path, signature, keys)
    else:
        report = verify_path(
            path,
            trusted=trusted,
            keys=keys,
            checkpoints_dir=checkpoints,
            alone=signature_only,
            newest=None if newest_by is None else _newest(newest_by),
        )
    typer.echo(json.dumps(report.to_json(), indent=2) if json_output else report.to_text(words.told))
    raise typer.Exit(report.answer.exit_code)


def _newest(given: str) -> Any:
    """The rule that asks a coordinator or a ledger head whether a checkpoint is the newest."""
    from protocol import newest, pasted

    data = pasted.contents(given)
    if data is not None and not pasted.holds_invite(data):
        return newest.by_head(newest.head_note_in(data))
    invite = pasted.read_invite(given)
    _need("peer", "grpc")
    from peer.link.client import CoordinatorClient

    def ask(size: int) -> newest.RunNow:
        with CoordinatorClient(invite) as client:
            client.get_run()
            return client.run_now(size)

    return newest.by_coordinator(invite, ask)


@app.command()
def status(
    invite: Annotated[
        str | None, typer.Argument(metavar="[INVITE]", help="A run's invite, or a file that holds it.")
    ] = None,
    home: Home = None,
    lang: Lang = None,
    json_output: Json = False,
) -> None:
    """Show the peers of this computer; with an invite, ask the run's coordinator how the run stands."""
    if invite is None:
        _local_status(home, json_output)
        return
    _need("peer", "grpc")
    from peer.link.client import CoordinatorClient
    from protocol.pasted import read_invite

    with CoordinatorClient(read_invite(invite)) as client:
        client.get_run()
        current = client.status()
    if json_output:
        typer.echo(current.to_bytes().decode())
        return
    _say(f"{current.name}: round {current.round} of {current.rounds or 'open end'}, {current.tokens:,} tokens agreed")
    if current.finished:
        _say("this run is over; `potluck fetch INVITE` brings its newest checkpoint")
    for part in current.parts_failed:
        _say(f"a part of the coordinator has failed: {part}")
    if current.alarm is not None:
        _say(f"ALARM: {current.alarm}")
    for peer in sorted(current.peers, key=lambda item: -item.credit_tokens):
        seen = words.told("away") if peer.last_seen_s is None else f"seen {peer.last_seen_s:.0f} s ago"
        _say(f"  {peer.peer_id[-8:]}  {peer.credit_tokens:>12,} tokens in {peer.rounds} rounds, {seen}")
    for item in current.evaluations:
        _say(f"  round {item.round:>6}: held-out loss {item.held_out_loss:.4f}")


def _local_status(home: Path | None, json_output: bool) -> None:
    from peer.disk.local_peers import find_peers
    from peer.screen.rounds import describe
    from protocol.trust import home as default_home

    found = find_peers(home or default_home())
    if json_output:
        typer.echo(json.dumps([peer.to_json() for peer in found], indent=2))
        return
    if not found:
        _say("no run was joined here; `potluck join INVITE` joins one")
    for peer in found:
        running = f"running, process {peer.process.pid}" if peer.process else "not running"
        at = f", round {peer.rounds[-1].round}" if peer.rounds else ""
        _say(f"{peer.name or words.told('(unknown)')} ({peer.run}…): {running}{at}")
        for item in peer.rounds:
            typer.echo(f"  {describe(item, words.language_of_user())}")


@identity_app.command("show")
def identity_show(home: Home = None, lang: Lang = None) -> None:
    """Print this peer's id."""
    from protocol.keys import PeerIdentity

    typer.echo(PeerIdentity.load_or_create(_identity_path(home)).peer_id)


@identity_app.command("new")
def identity_new(home: Home = None, lang: Lang = None) -> None:
    """Give this computer an identity of its own, for one whose home was copied; the one that was here is kept beside it."""
    from protocol.keys import PeerIdentity

    target = _identity_path(home)
    _keep_identity(target)
    typer.echo(PeerIdentity.load_or_create(target).peer_id)


@identity_app.command("backup")
def identity_backup(
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


@identity_app.command("restore")
def identity_restore(
    source: Annotated[Path, typer.Argument(help="A backup.")], home: Home = None, lang: Lang = None
) -> None:
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
        _say(f"the identity that was here is now {kept}")


def _identity_path(home: Path | None) -> Path:
    from protocol.trust import home as default_home

    return (home or default_home()) / "identity"


def _say(message: str) -> None:
    """One line on standard output, in the user's language."""
    typer.echo(words.told(message))


def _lang(given: str | None) -> str | None:
    if given is not None:
        _one_of("--lang", given, words.LANGUAGES)
    return words.choose(given)


def _device(wanted: str) -> str:
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=wanted)
    except (RuntimeError, AssertionError) as error:
        why = str(error).partition("\n")[0].partition(". ")[0][:200]  # torch goes on for a page
        raise InputError(f"--device {wanted}: {why}", "use auto, cpu, cuda or mps") from error
    return wanted


def _one_of(option: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise InputError(f"{option} {given}: no such choice", f"use one of {', '.join(allowed)}")


def _need(extra: str, *modules: str) -> None:
    """Say which extra to install when one of its modules is not there."""
    import importlib.util

    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"this needs {', '.join(missing)}", f"pip install 'potluck[{extra}]'")


class _StderrOfTheMoment(logging.StreamHandler[Any]):
    """Writes to what sys.stderr is when it writes: a live table on the screen redirects it, to stay whole."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _log(verbose: bool) -> None:
    level = logging.DEBUG if verbose else logging.WARNING
    handlers = [_StderrOfTheMoment()]
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", handlers=handlers)
    for noisy in ("asyncio", "hivemind", "httpx", "urllib3", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


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
    sys.exit(code)


if __name__ == "__main__":
    main()
