"""A peer whose own files were damaged starts again: it repairs what it can, and says what to do about the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.processes import CARD_TOKENS_PER_S, Community, LabProcess
from lab.small_community import tiny_run
from lab.warm_start import WarmStart
from peer.disk.outbox import Outbox
from peer.disk.receipts import Receipts
from protocol.invite import Invite
from protocol.keys import PeerIdentity

pytestmark = pytest.mark.swarm

OWNERS_WORD = ("identity", "ballots.json")  # what a peer does not replace by itself
SEVERAL = 4  # receipts and states that are damaged in one go; the last ones


def empty(path: Path) -> None:
    path.write_bytes(b"")


def halve(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for place in range(len(data) // 3, len(data), max(len(data) // 3, 1)):
        data[place] ^= 0x15
    path.write_bytes(data)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("not a peer's")


KINDS: list[Callable[[Path], None]] = [empty, halve, flip, replace_by_folder]


@pytest.fixture(scope="module")
def community(
    tmp_path_factory: pytest.TempPathFactory, glass_dir: Path, plays: Path, starter: WarmStart
) -> Iterator[Community]:
    """A run that bob keeps going, and that alice has been in."""
    folder = tmp_path_factory.mktemp("damaged")
    config = tiny_run(folder, glass_dir, plays, "damaged", round_seconds=0.8)
    with Community(folder, config, starter=starter, fixed_ports=True, tokens_per_s=CARD_TOKENS_PER_S) as opened:
        opened.host()
        bob = opened.peer("bob")
        bob.wait_round(1)
        train_and_leave(opened)
        yield opened
        assert "Traceback" not in bob.said


def train_and_leave(community: Community) -> LabProcess:
    """Start alice, and stop her when a round with her work was committed and she has her receipt."""
    alice = community.peer("alice")
    done = alice.wait_for("committed", took_part=True)["round"]
    alice.wait_round(done + 2)
    assert alice.stop() == 0
    assert "Traceback" not in alice.said
    return alice


def own_files(community: Community) -> list[Path]:
    """Every file of alice's, without those that need her owner, and without old receipts and states."""
    folder = community.run_folder("alice")
    found = sorted(path for path in folder.rglob("*") if path.is_file() and "damaged" not in path.parts)
    found = [path for path in found if path.name not in OWNERS_WORD and not path.name.endswith(".damaged")]
    many = [path for path in found if path.parent.name in ("receipts", "states")]
    return [path for path in found if path not in many] + many[-2 * SEVERAL :]


@pytest.mark.parametrize("turn", range(len(KINDS)))
def test_every_file_of_a_run_folder_may_be_damaged(community: Community, turn: int) -> None:
    folder = community.run_folder("alice")
    Outbox(folder / "outbox").put(10**6 + turn, b"a report that waits")
    files = own_files(community)
    names = {path.name for path in files}
    assert {"run-card.json", "root.pem", "certificate", "addresses.json", "rounds.jsonl", "lock", "data"} <= names
    assert any(path.parent.name == "states" for path in files) and any("step-000000" in path.parts for path in files)
    for number, path in enumerate(files):
        KINDS[(number + turn) % len(KINDS)](path)

    alice = train_and_leave(community)
    assert "Traceback" not in alice.said
    for path in files:
        back = path.is_file() or path.parent.name in ("states", "outbox")
        assert back, f"{path.relative_to(folder)} is there again\n{alice.said}"
    invite = Invite.parse(community.invite)
    me = PeerIdentity.load_or_create(community.home("alice") / "identity").peer_id
    assert Receipts(folder / "receipts", run=invite.run, root=invite.root, peer_id=me).credit()[0] > 0, (
        "all of them hold"
    )
    assert len(list((folder / "outbox" / "damaged").iterdir())) >= 1, "what could not be sent is kept"


@pytest.mark.parametrize("damage", KINDS)
@pytest.mark.parametrize("name", OWNERS_WORD)
def test_what_only_the_owner_can_decide_is_told(
    community: Community, name: str, damage: Callable[[Path], None]
) -> None:
    path = community.home("alice") / name if name == "identity" else community.run_folder("alice") / name
    before = path.read_bytes()
    damage(path)
    damaged = path.read_bytes() if path.is_file() else None
    alice = community.peer("alice")
    assert alice.wait() == 2
    lines = alice.said.strip().splitlines()
    assert str(path) in lines[-2] and lines[-2].startswith("error: ") and lines[-1].startswith("hint: ")
    assert "move" in lines[-1] and "Traceback" not in alice.said
    assert (path.read_bytes() if path.is_file() else None) == damaged, "nothing was made in its place"
    if path.is_dir():
        (path / "inside").unlink()
        path.rmdir()
    path.write_bytes(before)


def test_a_damaged_card_waits_for_the_coordinator(community: Community) -> None:
    host = next(part for part in community.parts if part.name == "host")
    assert host.stop() == 0
    away = community.peer("alice")
    away.wait_for("step", step="coordinator-away")
    away.wait_for("committed", took_part=True)
    assert away.stop() == 0
    flip(community.run_folder("alice") / "run-card.json")
    alice = community.peer("alice")
    alice.wait_for("waiting", key="coordinator-needed")
    assert "run-card.json cannot be used" in alice.said
    community.host()
    alice.wait_for("committed", took_part=True)
    assert alice.stop() == 0
