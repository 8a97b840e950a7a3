"""A ledger that is shown two ways is found by the members, who tell each other what they were shown."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.run_folder import RunFolder
from peer.disk.outbox import Outbox
from peer.link.background import CoordinatorLink, Greeting
from peer.link.held_certificate import HeldCertificate
from peer.sync import ledger_heads
from peer.sync.ledger_heads import MOST_CASES, LedgerHeads
from protocol import merkle, note
from protocol.note import LedgerHead
from protocol.rpc import draw_session
from tests.kit.builders import fixed_ed25519
from tests.kit.coordinator import site_of, write_run
from tests.kit.link import Nothing, Silent
from tests.swarm_kit import World, run, until


class Log:
    """A ledger of one run, signed by its key."""

    def __init__(self, world: World, *leaves: str, key: Ed25519PrivateKey | None = None) -> None:
        self._origin = note.origin(world.spec.run.name, world.spec.digest)
        self._key = key or fixed_ed25519("ledger 1")
        self.tree = merkle.Tree(merkle.leaf_hash(leaf.encode()) for leaf in leaves)

    def add(self, *leaves: str) -> str:
        for leaf in leaves:
            self.tree.append(merkle.leaf_hash(leaf.encode()))
        return self.note

    @property
    def head(self) -> LedgerHead:
        return LedgerHead(self._origin, self.tree.size, self.tree.root)

    @property
    def note(self) -> str:
        return note.sign_head(self.head, self._key)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, values=1000)


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def heads(world: World, told: list[str], monkeypatch: pytest.MonkeyPatch) -> LedgerHeads:
    monkeypatch.setattr(ledger_heads, "CHECK_S", 0.0)
    return LedgerHeads(world.card, lambda name, data: told.append(data.decode()), lambda key, name: told.append(key))


def test_two_heads_of_one_size_are_kept_as_evidence(world: World, heads: LedgerHeads, told: list[str]) -> None:
    one, other = Log(world, "run", "credit"), Log(world, "run", "other")
    heads.shown(one.note)
    heads.heard(one.note)
    assert not told
    heads.heard(other.note)
    case = json.loads(told[0])
    assert case["heads"] == [one.note, other.note] and told[1] == "ledger-two-ways"
    for text in case["heads"]:  # anybody can check it
        assert note.open_head(text, case["ledger_key"]).size == 2
    heads.heard(other.note)
    assert heads.cases == 1, "each once"


@pytest.mark.parametrize("grown", [(), ("more",), ("more", "and more")])
def test_a_ledger_that_only_grows_fits_whoever_heard_of_it_first(
    world: World, heads: LedgerHeads, told: list[str], grown: tuple[str, ...]
) -> None:
    log = Log(world, "run", "credit")
    heads.shown(log.note)
    heads.heard(log.add("later"))
    asked = heads.to_check()
    assert asked is not None and asked.size == 3
    text = log.add(*grown)
    heads.checked(asked, text, log.tree.consistency_proof(3) if grown else [])
    assert not told and heads.text != text, "what was asked for is not what the coordinator shows by itself"


@pytest.mark.parametrize(
    ("leaves", "why"),
    [(("run", "other", "later", "more"), "does not begin with this one"), (("run", "credit"), "has 2 leaves")],
)
def test_a_coordinator_that_cannot_prove_it_has_shown_two_ways(
    world: World, heads: LedgerHeads, told: list[str], leaves: tuple[str, ...], why: str
) -> None:
    now = Log(world, *leaves)
    heads.heard(Log(world, "run", "credit", "later").note)
    asked = heads.to_check()
    assert asked is not None
    heads.checked(asked, now.note, now.tree.consistency_proof(3) if now.tree.size > 3 else [])
    assert why in json.loads(told[0])["why"]


def test_a_coordinator_that_goes_back_is_found(world: World, heads: LedgerHeads, told: list[str]) -> None:
    log = Log(world, "run")
    first = log.note
    heads.shown(log.add("credit"))
    heads.shown(first)
    assert json.loads(told[0])["why"] == "a smaller ledger than before"


def test_what_is_no_head_of_this_ledger_accuses_nobody(world: World, heads: LedgerHeads, told: list[str]) -> None:
    log = Log(world, "run", "credit")
    heads.shown(log.note)
    forged = Log(world, "run", "other", key=fixed_ed25519("somebody")).note
    foreign = Log(World(world.folder / "birch", values=1000, name="birch"), "run", "other").note
    for text in ("", "x", "\ud800", forged, foreign, log.note.replace("2\n", "3\n", 1), "x" * 100_000):
        heads.heard(text)
        heads.shown(text)
    assert not told and heads.to_check() is None and heads.text == log.note
    for number in range(3 * MOST_CASES):  # a host that signs without end fills no disk
        heads.heard(Log(world, "run", f"other {number}").note)
    assert heads.cases == MOST_CASES and len(told) == 2 * MOST_CASES


def test_members_tell_each_other_and_find_it(tmp_path: Path) -> None:
    async def main() -> None:
        world = World(tmp_path, values=1000, round_tokens=500)
        one, other = Log(world, "run", "credit"), Log(world, "run", "other")
        async with world.peers(3) as peers:
            for peer in peers:
                peer.ledger.shown((other if peer is peers[2] else one).note)
            await until(lambda: all(peer.evidence for peer in peers), what="each to find it")
            case = json.loads(peers[0].evidence["ledger-shown-two-ways-1.json"])
            assert set(case["heads"]) == {one.note, other.note}

    run(main())


def test_the_coordinator_is_asked_about_what_others_were_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_heads, "CHECK_S", 0.0)
    with site_of(write_run(tmp_path / "source", rounds=0), tmp_path / "run") as site:
        card, evidence = site.client.get_run().card, dict[str, bytes]()
        peer: Any = Silent()
        peer.heads = LedgerHeads(card, evidence.__setitem__)
        member = site.swarm.members[0]
        said = Greeting(0, 1.0, [], False, draw_session(member.identity, card.run))
        peer.greeting = lambda: said
        held = HeldCertificate(member.identity, member.certificate, time.time() + 3600)
        outbox, nothing = Outbox(tmp_path / "outbox"), Nothing()
        link = CoordinatorLink(site.client, held, outbox, nothing, nothing, peer)  # type: ignore[arg-type]
        link.visit()
        first = peer.heads.text
        assert first
        site.commit(seed=1)
        peer.heads.heard(first)
        site.commit(seed=2)
        link.visit()
        assert peer.heads.text != first and not evidence
        key = RunFolder(site.folder).ledger_key()
        origin = note.origin(card.spec.run.name, card.run)
        strange = LedgerHead(origin, note.open_head(first, card.ledger_key).size + 1, b"\7" * 32)
        peer.heads.heard(note.sign_head(strange, key))
        link.visit()
        assert "does not begin with this one" in json.loads(evidence["ledger-shown-two-ways-1.json"])["why"]
