"""`potluck ledger`: a run's whole ledger as a file, which anyone audits offline."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from commands.anyone import Keys
from commands.options import Home, InviteLine, Json, Lang
from commands.talk import need, say
from protocol import words
from protocol.errors import InputError

if TYPE_CHECKING:
    from protocol.credit_book import CreditBook
    from protocol.ledger_entry import Entry

app = typer.Typer(help="A run's ledger: who was credited for what.", no_args_is_help=True, rich_markup_mode=None)
MOST_RECEIPTS = 20  # of this home, the newest, that a ledger which was fetched is held against
LedgerFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="A ledger, as `potluck ledger export` or `fetch` wrote it.")
]


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The run's folder, as runs/NAME.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")],
    lang: Lang = None,
    json_output: Json = False,
) -> None:
    """Write the ledger of a run that is hosted here into one file, for anyone to audit; the host may be running."""
    need("coordinator", "sqlalchemy")
    from coordinator.ledger_export import export as write

    entries = write(folder, file)
    if json_output:
        typer.echo(json.dumps({"file": str(file), "entries": entries}))
    else:
        say(f"{entries:,} entries in {file}")


@app.command()
def fetch(
    invite: InviteLine,
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="Where to write it.")] = Path("ledger.jsonl"),
    home: Home = None,
    lang: Lang = None,
    json_output: Json = False,
) -> None:
    """Fetch a run's whole ledger from its coordinator, and audit it, also against the receipts of this home."""
    need("peer", "grpc")
    from peer.disk.local_peers import find_peers
    from peer.link.fetching import fetch_ledger
    from peer.screen.download_bar import DownloadBar
    from protocol.pasted import read_invite
    from protocol.trust import home as default_home

    given, folder = read_invite(invite), home or default_home()
    with DownloadBar() as bar:
        fetch_ledger(given, file, folder, bar)
    own = [peer.folder / "receipts" for peer in find_peers(folder) if given.run.startswith(peer.run)]
    receipts = [path for place in own for path in sorted(place.glob("round-*.json"))[-MOST_RECEIPTS:]]
    _audit(file, None, receipts, {given.root}, json_output)


@app.command()
def audit(
    file: LedgerFile,
    rounds: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The members' agreements, as in checkpoints/rounds: recompute from them."),
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A receipt, log proof or signed head from elsewhere. May be repeated."),
    ] = None,
    key: Keys = None,
    home: Home = None,
    lang: Lang = None,
    json_output: Json = False,
) -> None:
    """Recompute every balance of a ledger from its first entry, offline; a fault is named by its entry's number.

    Exit codes: 0 all of it holds; 1 something does not, or the key is not one that you trust; 2 wrong usage; 3
    incomplete: an agreement is not at hand.
    """
    from protocol.trust import confirmed

    trusted, _ = confirmed(key or [], home)
    _audit(file, rounds, against or [], trusted, json_output)


@app.command()
def balance(
    file: LedgerFile,
    as_csv: Annotated[bool, typer.Option("--csv", help="As a table for other programs.")] = False,
    lang: Lang = None,
    json_output: Json = False,
) -> None:
    """Show what each member was credited with, what is on hold, and what is void; the ledger is checked on the way."""
    book = _book(file)
    rows = [
        {
            "peer_id": peer,
            "tokens": account.verified,
            "rounds": account.rounds,
            "pending": account.pending,
            "void": account.void,
            "banned": account.banned,
        }
        for peer, account in book.balances().items()
    ]
    if json_output:
        typer.echo(json.dumps(rows, indent=2))
    elif as_csv:
        table = csv.DictWriter(sys.stdout, ("peer_id", "tokens", "rounds", "pending", "void", "banned"))
        table.writeheader()
        table.writerows(rows)
    else:
        for row in rows:
            banned = "  " + words.told("banned") if row["banned"] else ""
            held = f"{row['pending']:,} pending, {row['void']:,} void"
            say(f"{row['peer_id']}  {row['tokens']:>15,} tokens in {row['rounds']} rounds, {held}{banned}")


@app.command(name="list")
def list_entries(
    file: LedgerFile,
    kind: Annotated[str | None, typer.Option("--type", help="Only these: credit, claim, ban, checkpoint, …")] = None,
    peer: Annotated[str | None, typer.Option(help="Only of this member: its id, or how that ends.")] = None,
    round: Annotated[int | None, typer.Option(help="Only of this round.")] = None,
    lang: Lang = None,
) -> None:
    """Print entries as JSON lines, each with its number."""
    from protocol.ledger_file import read_ledger

    def show(index: int, entry: Entry) -> None:
        value = entry.to_json()
        if kind not in (None, value["type"]) or round not in (None, value.get("round")):
            return
        if peer is None or value.get("peer_id", "").endswith(peer):
            typer.echo(json.dumps({"entry": index, **value}))

    read_ledger(file, each=show)


@app.command()
def prove(
    file: LedgerFile,
    entry: Annotated[int, typer.Argument(metavar="ENTRY", help="Its number.")],
    out: Annotated[Path, typer.Argument(metavar="RECEIPT", help="Where to write the receipt.")],
    lang: Lang = None,
) -> None:
    """Write the receipt that one entry stands in the ledger, which `potluck verify` checks by itself."""
    from protocol import tlog_proof
    from protocol.disk import write_file
    from protocol.ledger_file import read_ledger
    from protocol.receipt import make_receipt

    found: list[Entry] = []
    ledger = read_ledger(file, each=lambda index, item: found.append(item) if index == entry else None)
    if not found:
        raise InputError(f"there is no entry {entry}: the ledger has {ledger.tree.size}", "they are counted from 0")
    proof = tlog_proof.make(ledger.tree, entry, ledger.head, ledger.head_note)
    card, key = ledger.run_card, ledger.root_public_key
    write_file(out, make_receipt(run_card=card, root_public_key=key, entry=found[0], proof=proof))


def _audit(
    file: Path, rounds: Path | None, against: Sequence[Path], trusted: Collection[str], json_output: bool
) -> NoReturn:
    from protocol.files import read_bounded
    from protocol.receipt import MAX_RECEIPT_BYTES
    from protocol.verify_ledger import LedgerAudit

    others = [(path.name, read_bounded(path, MAX_RECEIPT_BYTES)) for path in against]
    report = LedgerAudit(file, rounds).audit(trusted, others).report
    typer.echo(json.dumps(report.to_json(), indent=2) if json_output else report.to_text(words.told))
    raise typer.Exit(report.answer.exit_code)


def _book(file: Path) -> CreditBook:
    """All accounts. Raises: as `read_ledger`, and VerificationError: an entry may not stand where it stands."""
    from protocol.credit_book import CreditBook
    from protocol.ledger_file import read_ledger

    books: list[CreditBook] = []
    read_ledger(file, lambda card: books.append(CreditBook(card)), lambda index, entry: books[0].enter(entry))
    books[0].close()
    return books[0]
