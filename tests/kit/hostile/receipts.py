"""Receipts of which something does not hold."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from protocol import canonical, note
from tests.kit.builders import Run, build_run, fixed_ed25519, fixed_root_key
from tests.kit.hostile.cases import ANYONE, HOST, OTHER_KEY, Cases

CASES = Cases()


def edit_receipt(path: Path, **changes: Any) -> None:
    path.write_bytes(canonical.dumps(json.loads(path.read_bytes()) | changes))


@CASES.add("more tokens than were credited", ANYONE)
def _(run: Run, path: Path) -> None:
    edit_receipt(path, entry=run.entries[2].to_json() | {"tokens": 999_999})


@CASES.add("credit of another peer", ANYONE)
def _(run: Run, path: Path) -> None:
    edit_receipt(path, proof=run.proof(3).to_text())


@CASES.add("one bit of a hash in the proof flipped", ANYONE)
def _(run: Run, path: Path) -> None:
    proof = run.proof(6)
    spoiled = bytes([proof.hashes[0][0] ^ 1]) + proof.hashes[0][1:]
    changed = dataclasses.replace(proof, hashes=(spoiled, *proof.hashes[1:]))
    edit_receipt(path, entry=run.entries[6].to_json(), proof=changed.to_text())


@CASES.add("a tree size changed in the signed ledger head", ANYONE)
def _(run: Run, path: Path) -> None:
    edit_receipt(path, proof=run.proof(2).to_text().replace(f"\n{run.tree.size}\n", f"\n{run.tree.size + 1}\n"))


@CASES.add("a ledger head that another key signed", ANYONE)
def _(run: Run, path: Path) -> None:
    run.ledger_key = fixed_ed25519("someone else's ledger")
    edit_receipt(path, proof=run.proof(2).to_text())


@CASES.add("an entry of another run", ANYONE)
def _(run: Run, path: Path) -> None:
    edit_receipt(path, entry=run.entries[2].to_json() | {"run": "9" * 64})


@CASES.add("an entry of an unknown type", ANYONE)
def _(run: Run, path: Path) -> None:
    edit_receipt(path, entry={"type": "gift", "run": run.spec.digest})


@CASES.add("an entry with an unknown key", ANYONE)
def _(run: Run, path: Path) -> None:
    edit_receipt(path, entry=run.entries[2].to_json() | {"bonus": 1})


@CASES.add("a JSON key twice", ANYONE)
def _(run: Run, path: Path) -> None:
    path.write_bytes(b'{"proof":"",' + path.read_bytes()[1:])


@CASES.add("cut short", ANYONE)
def _(run: Run, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@CASES.add("2 MB long", ANYONE)
def _(run: Run, path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" " * (2 << 20))


@CASES.add("without a proof", ANYONE)
def _(run: Run, path: Path) -> None:
    value = json.loads(path.read_bytes())
    del value["proof"]
    path.write_bytes(canonical.dumps(value))


@CASES.add("a link to a receipt", ANYONE)
def _(run: Run, path: Path) -> None:
    shutil.move(path, run.folder / "elsewhere.json")
    path.symlink_to(run.folder / "elsewhere.json")


@CASES.add("the run card signed with another key", OTHER_KEY)
def _(run: Run, path: Path) -> None:
    edit_receipt(path, run_card=json.loads(run.card.sign(fixed_root_key(9)).to_bytes()))


@CASES.add("a root key that signed nothing here", OTHER_KEY)
def _(run: Run, path: Path) -> None:
    edit_receipt(path, root_public_key="-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")


@CASES.add("a whole run of the same name by another host", OTHER_KEY)
def _(run: Run, path: Path) -> None:
    path.write_bytes(build_run(run.folder / "other", rounds=1, keys=9).receipt(2))


@CASES.add("a run card whose ledger key is another run's", HOST)
def _(run: Run, path: Path) -> None:
    key = note.verifier_key("potluck/other/0123456789abcdef", run.ledger_key.public_key())
    card = run.card.model_copy(update={"ledger_key": key})
    edit_receipt(path, run_card=json.loads(card.sign(run.root).to_bytes()))
