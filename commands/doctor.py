"""`potluck doctor`: whether this computer can take part, before it does."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from commands.options import Home, Json, Lang, Verbose, one_of
from commands.talk import log_to_stderr, need
from commands.volunteer import usable_devices
from protocol import words

if TYPE_CHECKING:
    from peer.doctor.finding import Finding
    from peer.training.memory import MomentsKind


def doctor(
    invite: Annotated[
        str | None, typer.Argument(metavar="[INVITE]", help="A run's invite, or a file that holds it.")
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0, help="What a kWh costs, in your currency, such as 0.30: tells the costs.")
    ] = None,
    watts: Annotated[
        float | None, typer.Option(min=0, help="What this computer draws more while it trains, by your meter.")
    ] = None,
    home: Home = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:1, mps; of several the first is looked at.")
    ] = "auto",
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
    lang: Lang = None,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """See if this computer can take part, how fast and at what cost; with an invite: in that run. Joins nothing."""
    began = time.monotonic()
    from peer.net.listening import check_listen
    from peer.screen.starting import starting
    from protocol.pasted import read_invite
    from protocol.trust import home as default_home

    parsed = read_invite(invite) if invite is not None else None
    one_of("--precision", precision, ("auto", "bf16", "fp16", "fp32"))
    one_of("--moments", moments, ("fp32", "8bit"))
    check_listen(listen)
    log_to_stderr(verbose)
    need("peer", "torch", "grpc")
    starting("torch", quiet=json_output)
    import torch

    from peer.doctor.examination import LIMIT_S, Examination
    from peer.doctor.sources import RealSources
    from peer.link.client import CoordinatorClient

    if threads:
        torch.set_num_threads(threads)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(CoordinatorClient(parsed)) if parsed is not None else None
        used, held = usable_devices(device)[0], _held(moments)
        sources = RealSources(home or default_home(), used, precision, listen, parsed, client, held)
        has_run, left_s = parsed is not None, LIMIT_S - (time.monotonic() - began)
        look = Examination(sources, has_run=has_run, moments=held, watts=watts, price=price, limit_s=left_s)
        is_well = (_tell_json if json_output else _tell)(look.findings())
    if not is_well:
        raise typer.Exit(1)


def _held(moments: str) -> MomentsKind:
    return "8bit" if moments == "8bit" else "fp32"


def _tell(findings: Iterable[Finding]) -> bool:
    """A line or two each, as they come; whether nothing is bad."""
    from peer.screen.messages import text

    language, count = words.language_of_user(), {"good": 0, "note": 0, "bad": 0}
    for finding in findings:
        count[finding.level] += 1
        mark = words.padded(text(f"finding-{finding.level}", language), 6)
        typer.echo(f"{mark}{words.shown(words.told(finding.text))}")
        if finding.remedy:
            typer.echo(f"      -> {words.shown(words.told(finding.remedy))}")
    verdict = "doctor-no" if count["bad"] else "doctor-notes" if count["note"] else "doctor-yes"
    typer.echo(text(verdict, language))
    return not count["bad"]


def _tell_json(findings: Iterable[Finding]) -> bool:
    found = list(findings)
    is_well = all(finding.level != "bad" for finding in found)
    shown = [dataclasses.asdict(finding) for finding in found]
    typer.echo(json.dumps({"ok": is_well, "findings": shown}, indent=2, ensure_ascii=False))
    return is_well
