"""What anyone may type: `potluck verify`, `potluck fetch` and `potluck status`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from commands.options import Home, InviteLine, Json, Lang
from commands.talk import need
from protocol import words
from protocol.errors import InputError

Keys = Annotated[
    list[str] | None, typer.Option("--key", help="A key you trust: a PEM file or a fingerprint. May be repeated.")
]
Checkpoints = Annotated[
    Path | None,
    typer.Option(help="The folder of all checkpoints and of rounds/ [default: the one that the checkpoint lies in]."),
]
Alone = Annotated[
    bool,
    typer.Option(
        "--signature-only",
        help="Check this one folder: signature, files, weights, the members' agreement; not the chain back to genesis.",
    ),
]
NewestBy = Annotated[
    str | None,
    typer.Option(
        metavar="INVITE|FILE",
        help="Ask whether it is the newest: the run's coordinator, by its invite, or a signed ledger head "
        "(a receipt or a log proof holds one).",
    ),
]
Signature = Annotated[
    Path | None,
    typer.Option(
        help="Of a model that is not of a run: PATH is the model, this its OMS signature, --key the signer's PEM file."
    ),
]


def verify(
    path: Annotated[
        Path,
        typer.Argument(help="A checkpoint folder (step-…), a receipt or a folder of them, or evidence (round-…)."),
    ],
    key: Keys = None,
    checkpoints: Checkpoints = None,
    signature_only: Alone = False,
    newest_by: NewestBy = None,
    signature: Signature = None,
    home: Home = None,
    lang: Lang = None,
    json_output: Json = False,
) -> None:
    """Check a published checkpoint or a receipt, offline, without trusting its host's word.

    Exit codes: 0 all of it holds; 1 something does not, or the key is not one that you trust; 2 wrong usage; 3
    incomplete: something that the checkpoint says there is (an ancestor, the agreement of a round) is not at hand, or
    it cannot be said whether it is the newest; 4 all of it holds, and there is a newer one.
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
    elif os.path.isfile(path / "claim.json"):  # a card pasted as text is too long for `Path.is_file`
        if signature_only or checkpoints is not None or newest_by is not None:
            raise InputError("--checkpoints, --signature-only and --newest-by go with a checkpoint", "leave them out")
        need("coordinator", "torch")
        from coordinator.evidence import verify_evidence

        report = verify_evidence(path, trusted)
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
    need("peer", "grpc")
    from peer.link.client import CoordinatorClient

    def ask(size: int) -> newest.RunNow:
        with CoordinatorClient(invite) as client:
            client.get_run()
            return client.run_now(size)

    return newest.by_coordinator(invite, ask)


def fetch(
    invite: InviteLine,
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where to put it.")] = Path("."),
    chain: Annotated[
        bool, typer.Option("--chain", help="All checkpoints and rounds, so that the way from genesis can be verified.")
    ] = False,
    home: Home = None,
    lang: Lang = None,
    json_output: Json = False,
) -> None:
    """Fetch a run's newest published checkpoint from its coordinator, and verify it; goes on where it broke off."""
    need("peer", "grpc")
    from peer.link.fetching import fetch_checkpoint
    from peer.screen.download_bar import DownloadBar
    from protocol.pasted import read_invite
    from protocol.trust import home as default_home

    with DownloadBar() as bar:
        step, report = fetch_checkpoint(read_invite(invite), folder, home or default_home(), bar, chain=chain)
    told = {"folder": str(step), **report.to_json()}
    typer.echo(json.dumps(told, indent=2) if json_output else f"{step}\n{report.to_text(words.told)}")
    raise typer.Exit(report.answer.exit_code)
