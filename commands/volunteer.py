"""What a volunteer types first: `potluck join`. What they ask of it later is in `own_peers`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from commands.options import Home, InviteLine, Json, Lang, Verbose, one_of
from commands.talk import log_to_stderr, need
from protocol import words
from protocol.errors import InputError

if TYPE_CHECKING:
    from peer.participation import PeerConfig
    from peer.screen.json_lines import JsonScreen
    from peer.screen.terminal import TerminalScreen
    from protocol.invite import Invite

LimitList = Annotated[
    list[str] | None, typer.Option(metavar="KEY=VALUE", help="A limit, before those of limits.toml; may be repeated.")
]


def join(
    invite: InviteLine,
    home: Home = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Agree to the run's terms without being asked.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps; or several: cuda:0,cuda:1")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads to use [default: all].")] = None,
    precision: Annotated[
        str, typer.Option(help="auto, bf16, fp16, fp32: of the passes; auto: what this card does well.")
    ] = "auto",
    moments: Annotated[
        str, typer.Option(help="fp32, 8bit: of the optimizer's moments; in 8 bits they take a quarter of the memory.")
    ] = "fp32",
    listen: Annotated[
        str, typer.Option(help="Address and port for other members; port 0: any free one.")
    ] = "0.0.0.0:0",
    announce: Annotated[str | None, typer.Option(help="Host name or address others reach you by, if another.")] = None,
    data_cache: Annotated[
        float, typer.Option(min=0.1, help="GB on disk for the run's data, where they are fetched in parts.")
    ] = 5.0,
    limit: LimitList = None,
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
    from peer.limits.limits import read as check_limits
    from peer.net.listening import check_listen
    from peer.screen.starting import starting
    from protocol.pasted import read_invite
    from protocol.trust import home as default_home

    parsed = read_invite(invite)  # before the heavy imports: a bad paste is told at once
    one_of("--precision", precision, ("auto", "bf16", "fp16", "fp32"))
    one_of("--moments", moments, ("fp32", "8bit"))
    own = check_limits((home or default_home()) / "limits.toml", limit or ())
    check_listen(listen, announce)  # before gigabytes are fetched in vain
    log_to_stderr(verbose)
    need("peer", "torch", "hivemind")
    starting("torch", "transformers", "hivemind", "peer.volunteer", quiet=json_output)
    from peer.net.swarm import SwarmConfig
    from peer.participation import PeerConfig

    config = PeerConfig(
        home=home or default_home(),
        devices=usable_devices(device, own.devices),
        threads=threads,
        precision=precision,
        moments="8bit" if moments == "8bit" else "fp32",
        cache_bytes=int(data_cache * 1e9),
        limits=tuple(limit or ()),
        swarm=SwarmConfig(listen=listen, announce=announce, reduce_only=reduce_only),
    )
    _take_part(parsed, config, _screen(config, yes=yes, as_json=json_output, details=verbose))


def _screen(config: PeerConfig, *, yes: bool, as_json: bool, details: bool) -> JsonScreen | TerminalScreen:
    from peer.screen.json_lines import JsonScreen
    from peer.screen.terminal import TerminalScreen
    from protocol.release import this_release

    if as_json:
        lines = JsonScreen()
        lines.started(this_release())
        return lines
    reduce_only = config.swarm.reduce_only
    return TerminalScreen(words.language_of_user(), yes=yes, reduce_only=reduce_only, details=details)


def _take_part(invite: Invite, config: PeerConfig, screen: JsonScreen | TerminalScreen) -> None:
    """Train until the run is over or its owner leaves; ends the program when the answer is not simply yes."""
    from peer.handing_on import Outcome
    from peer.volunteer import Volunteer
    from protocol.leaving import LeaveSignals

    with LeaveSignals(
        lambda: screen.step("leaving"), lambda: screen.step("left"), lambda failure: volunteer.failed(failure)
    ) as leaving:
        volunteer = Volunteer(invite, config, screen, leaving)
        try:
            agreed = volunteer.run()
        finally:
            screen.close()
        if not agreed:
            screen.step("declined")
        elif volunteer.took_part:
            screen.step("left" if leaving.is_asked or volunteer.left_early else "done")
    if not agreed:
        raise typer.Exit(1)
    if volunteer.outcome in (Outcome.NOT_HANDED_ON, Outcome.ALONE):
        raise typer.Exit(4)


def usable_devices(wanted: str, own: Sequence[str] = ()) -> tuple[str, ...]:
    """The devices that are meant, the first one first; a CPU may be there several times, its threads are divided.

    Args:
        own: of limits.toml, where `wanted` is "auto".

    Raises:
        InputError: one that torch cannot use, or a card twice.
    """
    import torch

    from peer.training.device import why_unusable

    names = [name.strip() for name in (",".join(own) if wanted == "auto" and own else wanted).split(",")]
    cards = tuple(f"cuda:{number}" for number in range(torch.cuda.device_count()))
    if names == ["all"] and cards:
        return cards
    if names in (["all"], ["auto"]):
        return ("cuda" if cards else "mps" if torch.backends.mps.is_available() else "cpu",)
    for place, name in enumerate(names):
        if why := why_unusable(name):
            raise InputError(
                f"--device {name}: {why}", "use auto, all, cpu, cuda or mps, or several with commas: cuda:0,cuda:1"
            )
        before = [f"{other}:0" if other == "cuda" else other for other in names[:place]]
        if name != "cpu" and (f"{name}:0" if name == "cuda" else name) in before:
            raise InputError(f"--device {','.join(names)}: {name} is named twice", "name each card once")
    return tuple(names)
