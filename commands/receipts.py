"""`potluck receipts`: one's own credit in all runs, each proof checked, and a card of it to share."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commands.anyone import Keys
from commands.options import Home, Json, Lang
from commands.talk import need, say
from protocol import words
from protocol.errors import InputError

if TYPE_CHECKING:
    from peer.disk.own_credit import RunCredit


def receipts(
    run: Annotated[str | None, typer.Option("--run", help="Only this run: its name, or how its digest begins.")] = None,
    card: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write a card of one run to share, as .svg or .png with the proof in it; .txt: the proof alone.",
        ),
    ] = None,
    key: Keys = None,
    home: Home = None,
    lang: Lang = None,
    json_output: Json = False,
) -> None:
    """Show your credit in all runs of this computer, and check each receipt that proves it, offline.

    Exit codes: 0 all of it holds; 1 something does not, or the key is not one that you trust; 2 wrong usage.
    """
    from peer.disk.own_credit import own_credit
    from protocol.trust import confirmed
    from protocol.trust import home as default_home

    folder = home or default_home()
    trusted, _ = confirmed(key or [], folder)
    found = own_credit(folder, trusted, run)
    if card is not None:
        _write_card(card, _only(found), _own_id(folder), json_output)
        return
    if json_output:
        me = _own_id(folder)
        runs = [item.to_json(me) for item in found]
        told = {"peer_id": me, "tokens": sum(item["tokens"] for item in runs), "runs": runs}
        typer.echo(json.dumps(told, indent=2))
    else:
        _show(found, _own_id(folder))
    raise typer.Exit(0 if all(item.holds for item in found) else 1)


def _show(found: list[RunCredit], me: str | None) -> None:
    if not found:
        say("no receipts here yet: credit is granted some rounds after the work, and `potluck join` fetches them")
        return
    rows = [tuple(words.told(title) for title in ("run", "rounds", "tokens", "ledger head", "proof holds"))]
    for item in found:
        head = item.total.newest_head
        at = words.told(f"{head.size:,} leaves, {head.root.hex()[:16]}…") if head else "-"
        holds = words.told("yes" if item.holds else "no")
        rows.append((item.name or item.run, f"{len(item.total.rounds):,}", f"{item.total.tokens:,}", at, holds))
    widths = [max(words.columns(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        typer.echo("  ".join(words.padded(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for item in found:
        name = item.name or item.run
        for line in [*item.why_not, *(f"{aside}: set aside earlier" for aside in item.damaged if "/" in aside)]:
            say(f"{name}: {line}")
        for peer in item.total.peers:
            if peer != me:
                say(f"{name}: credit to {peer}, which is not the identity of this home")
    if len(found) > 1:
        say(f"{sum(item.total.of_peer(me or '').tokens for item in found):,} tokens to you in all")


def _only(found: list[RunCredit]) -> RunCredit:
    """The run that a card is of. Raises: InputError: there are several, or none."""
    with_credit = [item for item in found if item.total.entries or not item.holds]
    if not with_credit:
        raise InputError("no receipt of credit here", "credit is granted some rounds after the work")
    if len(with_credit) > 1:
        names = ", ".join(item.name or item.run for item in with_credit)
        raise InputError("a card is of one run, and there are several here", f"name one with --run: {names}")
    return with_credit[0]


def _own_id(home: Path) -> str | None:
    """The peer id of this home; None where it has none, or one that cannot be read."""
    from peer.disk.own_identity import OwnIdentity

    try:
        return OwnIdentity(home).load().peer_id
    except InputError:
        return None


def _write_card(file: Path, item: RunCredit, me: str | None, json_output: bool) -> None:
    from protocol.credit_proof import CreditProof
    from protocol.disk import write_file

    if file.suffix.lower() not in (".svg", ".png", ".txt"):
        raise InputError(f"--card {file}: expected a name that ends in .svg, .png or .txt", "card.svg, say")
    if os.path.lexists(file):
        raise InputError(f"{file}: is there already", "choose another name")
    if me is None:
        raise InputError("there is no identity in this home that can be read", "potluck identity import FILE")
    own, language = item.receipts_of(me), words.language_of_user()
    proof = CreditProof.of(own)
    data = str(proof).encode() + b"\n"
    if file.suffix.lower() != ".txt":
        need("peer", "matplotlib")
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # a weight that a font lacks is no matter
        from peer.screen.card_fonts import chinese_font
        from peer.screen.credit_card import CreditCard

        language = language if language == "en" or chinese_font() else "en"
        data = CreditCard.of(proof).draw(file.suffix.lower(), language)
    write_file(file, data)
    if json_output:
        told = {"file": str(file), "language": language, "rounds": len(proof.receipts), "proof": str(proof)}
        typer.echo(json.dumps(told, indent=2))
        return
    typer.echo(file)
    if language != words.language_of_user():
        say("no font for Chinese is installed here, so the card is in English")
    if len(proof.receipts) < len(own):
        say(f"it is of the newest {len(proof.receipts):,} rounds; more do not fit into one proof")
    say(f"anyone who has the run's key checks it: potluck verify {file.name}")
