"""The ledger on disk: proofs hold, a failed write leaves no trace, and whoever changed the file is found out."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.store.database import Store, StoreError
from protocol import merkle, note
from protocol.errors import InputError
from protocol.keys import RootKey
from protocol.ledger_entry import parse_entry
from protocol.note import LedgerHead
from tests.kit.coordinator import Office, open_ledger


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path)
    for number in range(3):
        office.submit(office.swarm.round(seed=number))
    yield office
    office.close()


def change(office: Office, statement: str) -> None:
    """Close the store and change it behind the ledger's back."""
    office.close()
    with sqlite3.connect(office.folder / "ledger.db") as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute(statement)
    connection.close()


def test_every_entry_is_proven_under_the_signed_head(office: Office) -> None:
    for index in range(office.ledger.size):
        head = office.ledger.proof(index).verify(office.ledger.entry(index), office.card.ledger_key)
        assert head == office.ledger.head


def test_heads_extend_each_other(office: Office) -> None:
    with office.store.reading() as tables:
        notes = list(tables.log.heads())
    heads = [note.open_head(text, office.card.ledger_key) for text in notes]
    assert [head.size for head in heads] == [1, 4, 7, 10]
    tree = merkle.Tree(merkle.leaf_hash(office.ledger.entry(index)) for index in range(office.ledger.size))
    for old, new in itertools.pairwise(heads):
        merkle.verify_consistency(old.size, new.size, old.root, new.root, tree.consistency_proof(old.size, new.size))


def test_growth_is_proven_from_any_ledger_that_was(office: Office) -> None:
    tree = merkle.Tree(merkle.leaf_hash(office.ledger.entry(index)) for index in range(office.ledger.size))
    for size in range(1, tree.size + 1):
        text, proof = office.ledger.growth(size)
        head = note.open_head(text, office.card.ledger_key)
        merkle.verify_consistency(size, head.size, tree.root_at(size), head.root, proof)
    assert office.ledger.growth(tree.size + 1) == (office.ledger.head_note, [])


def test_restart_finds_the_same_ledger(office: Office) -> None:
    before = (office.ledger.head, office.ledger.head_note)
    office.reopen()
    assert (office.ledger.head, office.ledger.head_note) == before


def test_failed_write_leaves_no_trace(office: Office) -> None:
    before = office.ledger.head
    with pytest.raises(RuntimeError, match="half way"), office.ledger.writing() as write:
        write.leaf(parse_entry(office.ledger.entry(1)))
        raise RuntimeError("half way")
    assert office.ledger.head == before
    assert office.submit(office.swarm.round(seed=9)).accepted
    office.reopen()
    assert office.ledger.size == before.size + 3


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("UPDATE leaves SET data = CAST(replace(data, '101', '999') AS BLOB) WHERE [index] = 2", "a leaf was changed"),
        ("DELETE FROM leaves WHERE [index] = 5", "leaf 5 is missing"),
        ("DELETE FROM leaves WHERE [index] >= 7", "expected 10 leaves, got 7"),
        ("DELETE FROM heads WHERE size = 10", "expected 7 leaves, got 10"),
        ("DELETE FROM heads", "no signed head"),
        ("UPDATE heads SET note = replace(note, 'campfire', 'bonfires') WHERE size = 10", "the newest head"),
        ("PRAGMA user_version = 99", "expected schema"),
    ],
)
def test_changed_store_does_not_start(office: Office, statement: str, reason: str) -> None:
    change(office, statement)
    with pytest.raises(InputError, match=reason) as caught:
        office.open()
    assert caught.value.hint


def test_changed_leaf_is_located_between_two_heads(office: Office) -> None:
    change(office, "UPDATE leaves SET data = X'7b7d' WHERE [index] = 5")
    with pytest.raises(InputError, match="one of 4 to 6"):
        office.open()


def test_whoever_only_reads_cannot_write(office: Office) -> None:
    with pytest.raises(StoreError, match="readonly"), office.store.reading() as tables:
        tables.members.renew("a stranger", 0.0)
    with office.store.reading() as tables:
        assert tables.members.renewed("a stranger") is None


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"this is not SQLite at all" * 100)
    with pytest.raises(InputError, match="not a database"):
        Store(path)


def test_ledger_of_another_root_key_is_refused(office: Office, tmp_path: Path) -> None:
    office.close()
    other = RootKey.load_or_create(tmp_path / "other.pem")
    with pytest.raises(InputError, match="another run or another root key"):
        open_ledger(office.folder, office.ledger_key, office.card, other)


def test_store_older_than_a_published_head_is_noticed(office: Office) -> None:
    """As after restoring an old copy of the file."""
    office.ledger.check_extends(office.ledger.head, "step-000003")
    newer = LedgerHead(office.ledger.origin, 20, b"\1" * 32)
    with pytest.raises(InputError, match="does not hold the 20 leaves"):
        office.ledger.check_extends(newer, "step-000010")
