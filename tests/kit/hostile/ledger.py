"""A ledger that a dishonest host rewrote, or that is not the one it signed."""

from __future__ import annotations

import shutil
from pathlib import Path

from protocol import checkpoint, merkle, note
from protocol.checkpoint import LedgerState
from tests.kit.builders import Run, edit_info, fixed_ed25519
from tests.kit.hostile.cases import HOST, Cases, info_of

CASES = Cases()


def set_ledger(run: Run, step: Path, tree: merkle.Tree, head: note.LedgerHead, head_note: str) -> None:
    parent = checkpoint.read_info(run.step(2)).ledger
    edit_info(step, ledger=LedgerState.of(tree, head, parent).model_dump(mode="json"))
    (step / "model/ledger/checkpoint").write_text(head_note)


@CASES.add("a ledger head that another key signed", HOST)
def _(run: Run, step: Path) -> None:
    head = run.head()
    set_ledger(run, step, run.tree, head, note.sign_head(head, fixed_ed25519("someone else's ledger")))
    run.resign(step)


@CASES.add("a ledger head with a broken signature", HOST)
def _(run: Run, step: Path) -> None:
    path = step / "model/ledger/checkpoint"
    path.write_text(path.read_text().replace("\n13\n", "\n12\n"))
    run.resign(step)


@CASES.add("a ledger head other than checkpoint.json says", HOST)
def _(run: Run, step: Path) -> None:
    shutil.copy(run.step(2) / "model/ledger/checkpoint", step / "model/ledger/checkpoint")
    run.resign(step)


@CASES.add("a ledger older than the parent's", HOST)
def _(run: Run, step: Path) -> None:
    head = note.LedgerHead(run.head().origin, 3, run.tree.root_at(3))
    set_ledger(run, step, run.tree, head, note.sign_head(head, run.ledger_key))
    run.resign(step)


@CASES.add("a ledger that does not yet hold the parent", HOST)
def _(run: Run, step: Path) -> None:
    size = checkpoint.read_info(run.step(2)).ledger.size
    head = note.LedgerHead(run.head().origin, size, run.tree.root_at(size))
    set_ledger(run, step, run.tree, head, note.sign_head(head, run.ledger_key))
    run.resign(step)


@CASES.add("a ledger in which an old credit was rewritten", HOST)
def _(run: Run, step: Path) -> None:
    run.entries[2] = run.entries[2].model_copy(update={"tokens": 1})
    run.tree = merkle.Tree(merkle.leaf_hash(entry.to_bytes()) for entry in run.entries)
    head = run.head()
    set_ledger(run, step, run.tree, head, note.sign_head(head, run.ledger_key))
    run.resign(step)


@CASES.add("a ledger without its consistency proof", HOST)
def _(run: Run, step: Path) -> None:
    edit_info(step, ledger=info_of(step)["ledger"] | {"consistency": []})
    run.resign(step)


@CASES.add("a log proof for a leaf older than the ledger inside", HOST)
def _(run: Run, step: Path) -> None:
    checkpoint.sign_checkpoint(step, run.root)
    run.append(checkpoint.entry(step))
    index = run.tree.size - 1
    head = run.head()
    set_ledger(run, step, run.tree, head, note.sign_head(head, run.ledger_key))
    # The folder names a head that already holds its own leaf: impossible without a second signature, so sign again.
    checkpoint.sign_checkpoint(step, run.root)
    run.entries[index] = checkpoint.entry(step)
    run.tree = merkle.Tree(merkle.leaf_hash(entry.to_bytes()) for entry in run.entries)
    checkpoint.write_log_proof(step, run.proof(index))
