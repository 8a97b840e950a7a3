"""How long a stranger's audit takes: a whole ledger from its first entry, and one receipt.

A run of eight members whose credit is on hold for 20 rounds; every round's head is signed, as a coordinator signs it.
The whole audit is `potluck ledger audit` as a process of its own; a receipt is checked in one that is warm.

    scripts/bench ledger
    scripts/bench ledger --entries 1000000
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MEMBERS, HOLD = 8, 20
RECEIPTS = 20


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench ledger", description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=100_000)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.jsonl"
        key, entries = write(path, options.entries)
        started = time.perf_counter()
        audit = [sys.executable, "-m", "potluck", "ledger", "audit", str(path), "--key", key]
        done = subprocess.run(audit, capture_output=True, text=True, timeout=3600, check=False)
        whole_s = time.perf_counter() - started
        if done.returncode:
            print(done.stdout + done.stderr, file=sys.stderr)
            return 1
        most_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        receipts_ms = [1000 * seconds for seconds in check_receipts(path, key)]
        print(done.stdout.splitlines()[1].strip() + "\n")
        print("| | | goal |\n|---|---|---|")
        print(f"| audit of {entries:,} entries, {path.stat().st_size / 1e6:.0f} MB | {whole_s:.1f} s | 60 s |")
        print(f"| its memory | {most_mb:.0f} MB | |")
        middle = statistics.median(receipts_ms)
        print(f"| a receipt, median and most of {RECEIPTS} | {middle:.1f}, {max(receipts_ms):.1f} ms | 50 ms |")
    return 0


def check_receipts(path: Path, key: str) -> Iterator[float]:
    """Seconds that each takes, spread over the ledger."""
    from protocol import tlog_proof
    from protocol.ledger_file import read_ledger
    from protocol.receipt import check_receipt, make_receipt

    found: list[Any] = []
    ledger = read_ledger(path, each=lambda _, entry: found.append(entry))
    for part in range(RECEIPTS):
        index = 1 + part * (len(found) - 1) // RECEIPTS
        proof = tlog_proof.make(ledger.tree, index, ledger.head, ledger.head_note)
        card, root = ledger.run_card, ledger.root_public_key
        receipt = make_receipt(run_card=card, root_public_key=root, entry=found[index], proof=proof)
        started = time.perf_counter()
        check_receipt(receipt, {key})
        yield time.perf_counter() - started


def write(path: Path, entries: int) -> tuple[str, int]:
    """A ledger of at least so many entries; returns the fingerprint of its root key, and how many they are."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from protocol import canonical, merkle, note
    from protocol.keys import PeerIdentity, RootKey, public_pem
    from protocol.ledger_entry import ClaimEntry, CreditEntry, RoundEntry, RunEntry
    from protocol.ledger_file import first_line, head_line
    from protocol.note import LedgerHead
    from protocol.run_card import MAX_RUN_CARD_BYTES, RunCard
    from protocol.run_spec import Credit
    from tests.kit.builders import make_spec

    spec = make_spec("bench").model_copy(update={"credit": Credit(hold_rounds=HOLD)})
    key, member = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    root = RootKey(ec.generate_private_key(ec.SECP256R1()))
    origin = note.origin("bench", spec.digest)
    card = RunCard(
        run=spec.digest,
        spec=spec,
        genesis=_digest("state 0"),
        ledger_key=note.verifier_key(origin, key.public_key()),
        membership_key=member.public_key().public_bytes_raw().hex(),
    )
    envelope = canonical.loads(card.sign(root).to_bytes(), max_bytes=MAX_RUN_CARD_BYTES)
    peers = [PeerIdentity.generate().peer_id for _ in range(MEMBERS)]
    tree, held, number = merkle.Tree(), deque[list[ClaimEntry]](), 0
    with path.open("wb") as file:
        file.write(first_line(envelope, public_pem(root.public_key).decode()))
        found: list[Any] = [RunEntry(run=card.run, genesis=card.genesis, root_key=root.keyid)]
        while True:
            for entry in found:
                data = entry.to_bytes()
                tree.append(merkle.leaf_hash(data))
                file.write(data + b"\n")
            file.write(head_line(note.sign_head(LedgerHead(origin, tree.size, tree.root), key)))
            if tree.size >= entries:
                return root.keyid, tree.size
            number += 1
            base, state = _digest(f"state {number - 1}"), _digest(f"state {number}")
            said: dict[str, Any] = {"run": card.run, "round": number, "state": state}
            found = [RoundEntry(**said, base=base, agreement=_digest(f"agreement {number}"))]
            claims = [
                ClaimEntry(**said, peer_id=peer, tokens=81_920, flops=10**15, claim=_digest(f"{peer} {number}"))
                for peer in peers
            ]
            found += claims
            held.append(claims)
            if number > HOLD:
                found += [CreditEntry.of(claim) for claim in held.popleft()]


def _digest(text: str) -> str:
    from protocol.canonical import sha256_hex

    return sha256_hex(text.encode())
