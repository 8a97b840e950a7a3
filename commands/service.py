"""`potluck service`: a peer that starts with this computer, by what looks after programs here."""

from __future__ import annotations

import getpass
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands.options import Home, Lang
from commands.talk import need, say
from commands.volunteer import usable_devices
from protocol import words
from protocol.errors import InputError

if TYPE_CHECKING:
    from peer.service.launchd import Launchd
    from peer.service.plan import ServicePlan
    from peer.service.steps import Runner, Step
    from peer.service.systemd import Systemd

app = typer.Typer(
    help="Let a peer start with this computer: install, start, stop, logs, uninstall.", no_args_is_help=True
)

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
OfRun = Annotated[str | None, typer.Option("--run", help="Only this run: its name, or how its digest begins.")]
_THEIRS = {"ignore_unknown_options": True}
SYSTEMD_RUNS = Path("/run/systemd/system")


@app.command("install", context_settings=_THEIRS)
def install(
    arguments: Annotated[
        list[str], typer.Argument(metavar="INVITE", help="As for `potluck join`, whose options it takes.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Agree to the run's terms without being asked.")] = False,
    dry_run: DryRun = False,
    home: Home = None,
    lang: Lang = None,
) -> None:
    """Take part in a run whenever this computer is on: installs a service of this user, and starts it.

    It is a unit of systemd on Linux, an agent of launchd on macOS. It starts again after a failure, not after you made
    it leave. Its invite lies in a file that only you can read.
    """
    from peer.service.steps import Shell, carry_out, described
    from peer.service.systemd import Systemd

    runner, (plan, given) = Shell(), _planned(arguments, home)
    manager = manager_here(runner)
    steps = manager.install(plan)
    if dry_run:
        _show(steps)
        return
    if isinstance(manager, Systemd) and not SYSTEMD_RUNS.is_dir():
        raise _no_systemd(plan)
    _check_free(plan)
    if not (yes or _was_joined(plan) or _agrees(plan, given)):
        say("not installed")
        raise typer.Exit(1)
    for step in steps:
        say(described(step))
    carry_out(steps, runner)
    say(f"installed: {manager.starts_with(runner, getpass.getuser())}")
    say("what it says: potluck service logs; to remove it: potluck service uninstall")


@app.command("start")
def start(run: OfRun = None, dry_run: DryRun = False, home: Home = None, lang: Lang = None) -> None:
    """Start the service that was stopped."""
    _do("start", run, dry_run, home)


@app.command("stop")
def stop(run: OfRun = None, dry_run: DryRun = False, home: Home = None, lang: Lang = None) -> None:
    """Let the service's peer leave; it starts again with this computer, or by `potluck service start`."""
    _do("stop", run, dry_run, home)


@app.command("uninstall")
def uninstall(run: OfRun = None, dry_run: DryRun = False, home: Home = None, lang: Lang = None) -> None:
    """Let the service's peer leave, and remove the service; identity, receipts and the run's files stay."""
    _do("uninstall", run, dry_run, home)


@app.command("logs")
def logs(
    run: OfRun = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on showing what comes.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many of the newest lines.")] = 200,
    dry_run: DryRun = False,
    home: Home = None,
    lang: Lang = None,
) -> None:
    """Show what the service's peer has said."""
    from peer.service.plan import log_file, service_name
    from peer.service.steps import Shell

    place, shell = _home(home), Shell()
    manager = manager_here(shell)
    runs = _chosen(manager.installed(place), place, run)
    names, files = [service_name(place, one) for one in runs], [log_file(place, one) for one in runs]
    command = manager.logs(names, files, lines=lines, follow=follow)
    if dry_run:
        say(f"run: {shlex.join(command)}")
    else:
        raise typer.Exit(shell.show(command))


@app.command("run", hidden=True, context_settings=_THEIRS)
def keep_running(
    log: Annotated[Path, typer.Argument(metavar="LOG")],
    arguments: Annotated[list[str], typer.Argument(metavar="INVITE")],
) -> None:
    from peer.service.keeping import keep
    from peer.service.plan import START

    keep([sys.executable, *START, "join", *arguments], log)


def _do(verb: str, run: str | None, dry_run: bool, home: Path | None) -> None:
    """Carry out one verb for the services of a home."""
    from peer.service.plan import service_name
    from peer.service.steps import Shell, carry_out

    runner, place = Shell(), _home(home)
    manager = manager_here(runner)
    for one in _chosen(manager.installed(place), place, run):
        name = service_name(place, one)
        match verb:
            case "start":
                steps, done = manager.start(name), f"{name}: started"
            case "stop":
                steps, done = manager.stop(name), f"{name}: stopped"
            case _:
                steps, done = manager.uninstall(name, place, one), f"{name}: removed"
        if dry_run:
            _show(steps)
        else:
            carry_out(steps, runner)
            say(done)


def _show(steps: list[Step]) -> None:
    from peer.service.steps import Write, described

    for step in steps:
        say(described(step))
        if isinstance(step, Write):
            said = words.told("(the invite, which only you can read)") if step.secret else step.data.decode()
            typer.echo("".join(f"    {line}\n" for line in said.splitlines()), nl=False)


def _planned(arguments: list[str], home: Path | None) -> tuple[ServicePlan, dict[str, Any]]:
    """The service that runs `potluck join` with these arguments, and the options as `join` reads them."""
    from commands.volunteer import join
    from peer.service.plan import START, ServicePlan
    from protocol.installed import this_installation
    from protocol.pasted import read_invite

    joining = typer.Typer(add_completion=False)
    joining.command()(join)
    command: Any = typer.main.get_command(joining)
    options = ["--lang", words.language_of_user()]
    context = command.make_context("potluck service install", [*arguments, *options])
    for parameter in command.params:
        value = context.params.get(parameter.name)
        if parameter.name in ("invite", "yes", "home", "lang") or value == parameter.default or value is None:
            continue
        for item in value if isinstance(value, list | tuple) else [value]:
            options.append(max(parameter.opts, key=len))
            if not isinstance(item, bool):
                options.append(str(item.absolute() if isinstance(item, Path) else item))
    checkout = this_installation().checkout
    plan = ServicePlan(
        read_invite(context.params["invite"]),
        _home(home),
        (os.path.abspath(sys.executable), *START),
        tuple(options),
        {"PYTHONPATH": str(checkout)} if checkout is not None else {},
    )
    return plan, context.params


def manager_here(runner: Runner) -> Systemd | Launchd:
    """What looks after services here."""
    from peer.service.launchd import Launchd
    from peer.service.systemd import Systemd, version_of
    from peer.service.unit import STEPS_SINCE

    if sys.platform == "darwin":
        return Launchd(Path.home() / "Library" / "LaunchAgents", os.getuid())
    version = version_of(runner) if SYSTEMD_RUNS.is_dir() else STEPS_SINCE
    return Systemd(Path.home() / ".config" / "systemd" / "user", version)


def _no_systemd(plan: ServicePlan) -> InputError:
    """What to do where nothing starts services."""
    if "microsoft" in platform.release().lower():
        return InputError(
            "systemd does not run in this WSL",
            "write [boot] and below it systemd=true into /etc/wsl.conf, type wsl --shutdown in Windows, and come back",
        )
    invite, *rest = plan.join
    setting = ["env", *(f"{name}={value}" for name, value in plan.environment.items())] if plan.environment else []
    line = shlex.join([*setting, *plan.program, "join", invite, *rest]).replace("%", "\\%")  # cron's line end
    return InputError(
        "no systemd runs here, so nothing starts a peer after a reboot",
        f"keep it in tmux; or write the invite to {invite}, and with crontab -e this line: @reboot {line}",
    )


def _check_free(plan: ServicePlan) -> None:
    """Raises: InputError: a peer of this run is running in this home."""
    from peer.disk.run_lock import holder

    process = holder(_run_folder(plan) / "lock")
    if process is not None:
        raise InputError(
            f"a peer of this run is running here (process {process.pid})",
            "type potluck leave, then the same command again",
        )


def _was_joined(plan: ServicePlan) -> bool:
    """Whether the owner has agreed to this run's terms before: `join` does not ask again either."""
    return (_run_folder(plan) / "run-card.json").is_file()


def _agrees(plan: ServicePlan, given: dict[str, Any]) -> bool:
    """Show the run's terms, as `join` does, and ask."""
    need("peer", "torch", "hivemind")
    from peer.disk.peer_folder import PeerFolder
    from peer.doctor.fit import QuickLook
    from peer.doctor.probes import room_of
    from peer.link.client import CoordinatorClient
    from peer.link.newcomer import Newcomer
    from peer.screen.terminal import TerminalScreen
    from protocol.keys import PeerIdentity

    identity, reduce_only = PeerIdentity.load_or_create(plan.home / "identity"), given["reduce_only"]
    screen = TerminalScreen(words.language_of_user(), yes=False, reduce_only=reduce_only)
    folder = PeerFolder(plan.home, plan.invite.run)
    try:
        with CoordinatorClient(plan.invite) as client:
            cache_bytes = int(given["data_cache"] * 1e9)
            newcomer = Newcomer(
                plan.invite, client, identity, folder, screen, reduce_only=reduce_only, cache_bytes=cache_bytes,
                moments="8bit" if given["moments"] == "8bit" else "fp32",
            )  # fmt: skip
            room = None if reduce_only else room_of(usable_devices(given["device"])[0])
            return newcomer.agree(QuickLook(room, plan.home, given["moments"]).check)
    finally:
        screen.close()
        folder.close()


def _run_folder(plan: ServicePlan) -> Path:
    return plan.home / "runs" / plan.invite.run[:16]


def _home(given: Path | None) -> Path:
    from protocol.trust import home as default_home

    return (given or default_home()).absolute()


def _chosen(runs: list[str], home: Path, wanted: str | None) -> list[str]:
    """Those of a home's services that are meant. Raises: InputError: there is none."""
    if not runs:
        raise InputError("no service is installed for this home", "to install one: potluck service install INVITE")
    if wanted is None:
        return runs
    from peer.disk.local_peers import find_peers

    named = {peer.run for peer in find_peers(home) if peer.name == wanted}
    chosen = [run for run in runs if run in named or run.startswith(wanted[:16].lower())]
    if not chosen:
        raise InputError(f"no service here is of a run {wanted!r}", f"there are: {', '.join(runs)}")
    return chosen
