"""A peer keeps only receipts that hold by its invite's root key, for its own work in its own run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator import receipts as receipts_module
from coordinator.ledger_export import LedgerCopies
from coordinator.receipts import ReceiptDesk
from coordinator.shelf import FileShelf
from peer.disk.receipts import Receipts
from protocol import canonical
from protocol.errors import FormatError, RefusedError
from protocol.keys import public_pem
from protocol.verify import survey_receipts, verify_receipt
from tests.kit.coordinator import Office


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path)
    for number in range(5):
        office.submit(office.swarm.round(seed=number))
    yield office
    office.close()


class Source:
    """The coordinator's receipts for one peer, without a network."""

    def __init__(self, office: Office, peer_id: str) -> None:
        card_bytes = office.card.sign(office.root).to_bytes()
        pem = public_pem(office.root.public_key)
        copies = LedgerCopies(office.folder / "public", office.store, card_bytes, pem, FileShelf())
        self._desk = ReceiptDesk(office.ledger, card_bytes, pem, copies)
        self._peer_id = peer_id
        self.asks = 0

    def receipts(self, certificate: str, after_round: int = 0) -> list[bytes]:
        self.asks += 1
        return self._desk.for_peer(self._peer_id, after_round)


def store(office: Office, folder: Path, **other: str) -> Receipts:
    settings = {"run": office.card.run, "root": office.root.keyid, "peer_id": office.swarm.members[0].peer_id}
    return Receipts(folder, **(settings | other))


def test_receipts_are_files_that_verify_accepts(office: Office, tmp_path: Path) -> None:
    mine = store(office, tmp_path / "receipts")
    assert mine.fetch(Source(office, office.swarm.members[0].peer_id), "certificate") == 5
    assert mine.rounds() == [1, 2, 3, 4, 5] and mine.credit() == (500, 5, 5)
    assert store(office, tmp_path / "receipts").credit() == (500, 5, 5), "after a restart too"
    for number in mine.rounds():
        assert verify_receipt(mine.path(number), {office.root.keyid}).ok


def test_only_new_receipts_are_fetched_in_bounded_answers(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts_module, "MAX_RECEIPTS", 2)
    mine, source = store(office, tmp_path / "receipts"), Source(office, office.swarm.members[0].peer_id)
    assert mine.fetch(source, "certificate") == 5 and source.asks == 4
    assert mine.fetch(source, "certificate") == 0 and source.asks == 5


@pytest.mark.parametrize("kind", ["another peer's", "another root key", "another run", "changed", "old", "no receipt"])
def test_receipt_that_does_not_hold_is_not_kept(office: Office, tmp_path: Path, kind: str) -> None:
    me, other = office.swarm.members[:2]
    (receipt, *_) = Source(office, other.peer_id if kind == "another peer's" else me.peer_id).receipts("")
    mine = store(
        office,
        tmp_path / "receipts",
        **({"root": "0" * 64} if kind == "another root key" else {"run": "0" * 64} if kind == "another run" else {}),
    )
    if kind == "changed":
        value = canonical.loads(receipt, max_bytes=len(receipt))
        value["entry"]["tokens"] += 1
        receipt = canonical.dumps(value)
    with pytest.raises((RefusedError, FormatError)):
        mine.keep([b"{}" if kind == "no receipt" else receipt], after_round=1 if kind == "old" else 0)
    assert mine.rounds() == []


def test_receipts_of_an_identity_before_stay_and_are_taken_up_when_it_comes_back(
    office: Office, tmp_path: Path
) -> None:
    first, second = (member.peer_id for member in office.swarm.members[:2])
    folder = tmp_path / "receipts"
    store(office, folder, peer_id=first).fetch(Source(office, first), "certificate")
    after = store(office, folder, peer_id=second)
    assert after.credit() == (0, 0, 0) and not (folder / "damaged").exists()
    assert after.fetch(Source(office, second), "certificate") == 5 and after.credit()[1:] == (5, 5)
    assert survey_receipts(folder).total.peers == sorted((first, second))
    back, source = store(office, folder, peer_id=first), Source(office, first)
    assert back.credit() == (500, 5, 5) and back.fetch(source, "certificate") == 0
    assert survey_receipts(folder).count == 10 and not survey_receipts(folder).bad
