"""What must be true of a community afterwards, whatever was done to it: one state a round, one credit a claim."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable
from typing import Any

from lab.processes import Community, LabProcess


def ledger_entries(run: Community) -> list[dict[str, Any]]:
    """The leaves of the host's ledger, from its store."""
    with sqlite3.connect(f"file:{run.run / 'ledger.db'}?mode=ro", uri=True) as store:
        rows = store.execute('select data from leaves order by "index"').fetchall()
    store.close()
    return [json.loads(data) for (data,) in rows]


def divergences(peers: Iterable[LabProcess]) -> dict[int, set[str]]:
    """Rounds for which peers committed different states: which ones. Empty, or the protocol is broken."""
    states: dict[int, set[str]] = {}
    for peer in peers:
        for number, event in peer.committed().items():
            states.setdefault(number, set()).add(event["state"])
    return {number: found for number, found in states.items() if len(found) > 1}


def counted_twice(run: Community) -> list[tuple[int, str]]:
    """(round, peer id) that the ledger credits more than once."""
    credits = Counter((e["round"], e["peer_id"]) for e in ledger_entries(run) if e["type"] == "credit")
    return [key for key, count in credits.items() if count > 1]


def credited_tokens(run: Community) -> dict[int, int]:
    """Round -> tokens that the ledger credits for it."""
    tokens: Counter[int] = Counter()
    for entry in ledger_entries(run):
        if entry["type"] == "credit":
            tokens[entry["round"]] += entry["tokens"]
    return dict(tokens)


def credited_to(run: Community) -> dict[str, int]:
    """Peer id -> tokens that the ledger credits it with, of all rounds."""
    tokens: Counter[str] = Counter()
    for entry in ledger_entries(run):
        if entry["type"] == "credit":
            tokens[entry["peer_id"]] += entry["tokens"]
    return dict(tokens)


def wrongly_credited(run: Community, peers: Iterable[LabProcess]) -> dict[int, tuple[int, int]]:
    """Rounds for which the ledger holds other tokens than the peers agreed on: round -> (in the ledger, agreed)."""
    agreed = {number: event["tokens"] for peer in peers for number, event in peer.committed().items()}
    found = credited_tokens(run)
    return {
        number: (found[number], agreed[number])
        for number in found
        if agreed.get(number, found[number]) != found[number]
    }
