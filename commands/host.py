"""What a host types: `potluck host`, and what is told to one that runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from commands.options import Json, Lang, Verbose
from commands.talk import log_to_stderr, need, say
from protocol import words

RunFolder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The run's folder, as runs/NAME.")]


def host(
    config: Annotated[Path, typer.Argument(metavar="RUN.TOML", help="What to train: see examples/.")],
    folder: Annotated[Path | None, typer.Option(help="The run's folder [default: runs/NAME].")] = None,
    until_finished: Annotated[bool, typer.Option(help="Leave when the run has had all its rounds.")] = False,
    evaluate_on: Annotated[
        str | None,
        typer.Option(help="Where to measure the held-out loss, instead of what run.toml says: cpu, cuda, cuda:1, mps."),
    ] = None,
    lang: Lang = None,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Launch a run: make and sign its genesis, admit volunteers, keep the ledger, publish checkpoints."""
    log_to_stderr(verbose)
    need("coordinator", "sqlalchemy", "torch")
    from peer.screen.starting import starting

    starting("torch", "transformers", "coordinator.host", quiet=json_output)
    from coordinator.dataset.screen import PrepareScreen
    from coordinator.host import host as run_host
    from coordinator.host_screen import HostScreen
    from coordinator.run_data import Telling
    from protocol.trust import trust

    screen, preparing = HostScreen(as_json=json_output), PrepareScreen(as_json=json_output)

    def started(running: Any) -> None:
        preparing.close()
        trust(running.invite.root, name=running.status().name, run=running.invite.run)
        screen.started(running)

    try:
        status = run_host(
            config,
            folder,
            on_start=started,
            evaluate_on=evaluate_on,
            telling=Telling(screen.note, preparing.show),
            on_status=screen.status,
            linger_s=10.0 if until_finished else None,
        )
    finally:
        preparing.close()
        screen.close()
    screen.ended(status)


def go_on(
    folder: RunFolder,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask whether this is meant.")] = False,
    lang: Lang = None,
    json_output: Json = False,
) -> None:
    """Let a run that stands still go on without the members that are gone for good; the host must be running."""
    from coordinator.orders import ask

    question = (
        "those who are here will decide the next round; rounds that the others have made unseen are undone. "
        "Are the others gone for good?"
    )
    if not yes and not typer.confirm(words.told(question, words.language_of_user())):
        raise typer.Exit(1)
    answer = ask(folder, "go-on")
    if json_output:
        typer.echo(json.dumps(answer))
        return
    peers = answer["peers"]
    said = f"round {answer['round']} is decided by {len(peers)} members: {', '.join(peer[-8:] for peer in peers)}"
    typer.echo(words.told(said, words.language_of_user()))


def ban(
    folder: RunFolder,
    peer: Annotated[str, typer.Argument(metavar="PEER", help="Its id, or the end of it, as the table shows it.")],
    reason: Annotated[str, typer.Option(help="Why: it stands in the ledger, and the peer is told.")],
    lang: Lang = None,
    json_output: Json = False,
) -> None:
    """Ban a member from a run, whose host must be running: its credit on hold is void, and no member works with it."""
    from coordinator.orders import ask

    answer = ask(folder, "ban", peer=peer, reason=reason)
    _tell(answer, json_output, f"{answer['peer_id']} is banned; {answer['void_tokens']:,} tokens on hold are void")
    if answer["revoked_invite"] is not None and not json_output:
        say(f"the invite {answer['revoked_invite']}, by which it came, lets nobody in any more")


def unban(
    folder: RunFolder,
    peer: Annotated[str, typer.Argument(metavar="PEER", help="Its id, or the end of it, as the table shows it.")],
    reason: Annotated[str, typer.Option(help="Why: it stands in the ledger.")] = "",
    lang: Lang = None,
    json_output: Json = False,
) -> None:
    """End a member's ban; what was void stays void."""
    from coordinator.orders import ask

    answer = ask(folder, "unban", peer=peer, reason=reason)
    _tell(answer, json_output, f"{answer['peer_id']} is banned no more")


def members(
    folder: RunFolder,
    lang: Lang = None,
    json_output: Json = False,
) -> None:
    """Show everyone that was ever admitted to a run of this computer, and who waits to be let in."""
    need("coordinator", "sqlalchemy")
    from coordinator.members import list_members

    found = list_members(folder)
    if json_output:
        typer.echo(json.dumps([item.to_json() for item in found], indent=2))
        return
    for item in found:
        if not item.is_member:
            say(f"{item.peer_id}  waits to be let in")
            continue
        parts = [f"{item.tokens:,} tokens in {item.rounds} rounds, {item.pending:,} pending"]
        if item.invite is not None:
            parts.append(f"came by the invite {item.invite}")
        if item.banned is not None:
            parts.append(f"banned: {item.banned}")
        typer.echo(words.shown(f"{item.peer_id}  {'; '.join(map(words.told, parts))}"))


def approve(
    folder: RunFolder,
    peer: Annotated[str, typer.Argument(metavar="PEER", help="Its id; of one that waits, the end of it will do.")],
    lang: Lang = None,
    json_output: Json = False,
) -> None:
    """Let a newcomer in, where run.toml says `approve = true`; also before it has asked."""
    from coordinator.orders import ask

    answer = ask(folder, "approve", peer=peer)
    _tell(answer, json_output, f"{answer['peer_id']} may come in")


def invite(
    folder: RunFolder,
    note: Annotated[str, typer.Option(help="Whom it is for: shown in the lists, and nowhere else.")],
    uses: Annotated[int, typer.Option(min=1, help="How many may come in by it.")] = 1,
    days: Annotated[int, typer.Option(min=1, help="For how long.")] = 7,
    lang: Lang = None,
    json_output: Json = False,
) -> None:
    """Print an invite of its own for some people, with a quota and an end; the host must be running."""
    from coordinator.orders import ask

    answer = ask(folder, "invite", note=note, uses=uses, days=days)
    typer.echo(json.dumps(answer) if json_output else answer["invite"])


def invites(
    folder: RunFolder,
    revoke: Annotated[str | None, typer.Option(metavar="NOTE", help="Let nobody in by this one any more.")] = None,
    lang: Lang = None,
    json_output: Json = False,
) -> None:
    """List the invites that `potluck invite` made, or revoke one; those who came by it stay."""
    need("coordinator", "sqlalchemy")
    import datetime

    from coordinator.members import list_invites
    from coordinator.orders import ask

    if revoke is not None:
        ask(folder, "revoke", note=revoke)
    found = list_invites(folder)
    if json_output:
        typer.echo(json.dumps([item.to_json() for item in found], indent=2))
        return
    for item in found:
        until = datetime.datetime.fromtimestamp(item.ends).astimezone().date().isoformat()
        say(f"{item.note}: {item.uses} of {item.most} came in, " + ("revoked" if item.revoked else f"until {until}"))


def _tell(answer: dict[str, Any], json_output: bool, said: str) -> None:
    if json_output:
        typer.echo(json.dumps(answer))
    else:
        say(said)
