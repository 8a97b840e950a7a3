"""Bans: in the ledger at once, with every member within two rounds, and for whoever is banned the door is shut."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.bans import Bans
from coordinator.members import list_members
from coordinator.orders import ask
from lab.processes import CARD_TOKENS_PER_S, WAIT_S, Community
from lab.small_community import tiny_run
from lab.warm_start import WarmStart
from protocol.banned import Banned, open_banned
from protocol.errors import InputError, RefusedError, SignatureError, VerificationError
from protocol.keys import PeerIdentity
from tests.kit.builders import fixed_ed25519
from tests.kit.coordinator import Office, site_of, write_run
from tests.swarm_kit import World, acquaint, run, until

HOLD = 2


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path, hold=HOLD)
    with office.store.writing() as tables:
        for member in office.swarm.members:
            tables.members.renew(member.peer_id, 1.0)
    yield office
    office.close()


def bans_of(office: Office) -> Bans:
    return Bans(office.ledger, office.membership_key, office.card.run)


# ---- the coordinator -------------------------------------------------------------------------------------------------


def test_a_list_outlives_a_restart_and_its_number_grows(office: Office) -> None:
    cheat, other = (member.peer_id for member in office.swarm.members[:2])
    bans, key = bans_of(office), office.membership_key.public_key()
    assert (bans.number, bans.data) == (0, b"")
    office.submit(office.swarm.round())
    told = bans.ban(cheat[-8:], "sends noise")
    assert (told["peer_id"], told["round"], told["void_tokens"]) == (cheat, 1, 100)
    first = open_banned(bans.data, key, run=office.card.run).value
    assert first.peers == (cheat,) and bans.why(cheat) == "sends noise" and bans.why(other) is None
    office.reopen()
    bans = bans_of(office)
    assert open_banned(bans.data, key, run=office.card.run).value == first
    bans.unban(cheat, "a mistake")
    last = open_banned(bans.data, key, run=office.card.run).value
    assert last.peers == () and last.number > first.number


def test_who_is_meant_is_never_guessed(office: Office) -> None:
    bans, cheat = bans_of(office), office.swarm.members[0].peer_id
    for name in ("", cheat[-3:], "nobody", "%", cheat[:-1]):
        with pytest.raises(InputError, match="members have an id that ends in"):
            bans.ban(name, "noise")
    for reason in ("", "x" * 201):
        with pytest.raises(InputError, match="a reason has"):
            bans.ban(cheat, reason)
    bans.ban(cheat, "noise")
    with pytest.raises(InputError, match="banned already: noise"):
        bans.ban(cheat, "again")
    with pytest.raises(InputError, match="0 banned members"):
        bans.unban(office.swarm.members[1].peer_id, "")


def test_over_the_wire_a_banned_member_is_told_why_and_gets_nothing_else(tmp_path: Path) -> None:
    config = write_run(tmp_path / "source", rounds=0, host="[credit]\nhold_rounds = 5")
    with site_of(config, tmp_path / "run") as site:
        cheat, other = site.swarm.members[0], site.swarm.members[1]
        site.commit(seed=1)
        told = ask(site.folder, "ban", peer=cheat.peer_id[-8:], reason="sends noise")
        assert (told["peer_id"], told["void_tokens"]) == (cheat.peer_id, 100)
        client = site.client
        answer = client.announce(cheat.certificate)
        assert answer.expelled == "sends noise" and not answer.swarm_addresses
        card = client.get_run().card
        seen = open_banned(client.announce(other.certificate).banned, card.member_key, run=card.run).value
        assert seen.peers == (cheat.peer_id,)
        assert client.announce(other.certificate, bans=seen.number).banned == b"", "told once"
        for call in (
            lambda: client.enroll(cheat.identity),
            lambda: client.agreement(cheat.certificate),
            lambda: client.report_chain(cheat.certificate, [b"{}"]),
            lambda: client.upload_state(cheat.certificate, site.swarm.state.manifest(), iter([b"x"])),
        ):
            with pytest.raises(RefusedError, match="has banned this peer: sends noise"):
                call()
        assert not client.report(cheat.certificate, b"{}").accepted
        assert client.receipts(cheat.certificate) == [], "what was granted stays its own"
        with pytest.raises(RefusedError, match="banned already"):
            ask(site.folder, "ban", peer=cheat.peer_id, reason="again")
        known = {item.peer_id: item for item in list_members(site.folder)}
        assert known[cheat.peer_id].banned == "sends noise" and known[cheat.peer_id].pending == 0
        assert known[other.peer_id].banned is None and known[other.peer_id].pending == 101
        ask(site.folder, "unban", peer=cheat.peer_id[-8:], reason="")
        assert client.announce(cheat.certificate).expelled == ""
        assert client.enroll(cheat.identity).certificate


# ---- members ---------------------------------------------------------------------------------------------------------


def listed(world: World, number: int, *indices: int, signer: PeerIdentity | None = None) -> bytes:
    peers = tuple(world.identity(index).peer_id for index in indices)
    made = Banned(run=world.card.run, number=number, peers=peers)
    return made.sign(signer or PeerIdentity(world.key)).data


def test_who_hears_of_a_ban_tells_the_others_and_nobody_works_with_the_banned_any_more(tmp_path: Path) -> None:
    async def main() -> None:
        world = World(tmp_path, values=1000, round_tokens=500)
        async with world.peers(4) as peers:
            *honest, cheat = peers
            await until(lambda: min(peer.round for peer in peers) >= 2)
            assert any(cheat.me in peer.driver.head.last.weights for peer in honest)
            at = max(peer.round for peer in peers)
            honest[0].driver.bans.take(listed(world, 7, 3))
            await until(lambda: all(peer.driver.bans.number == 7 for peer in honest), what="the list with all")
            heard = max(peer.round for peer in honest)
            assert heard <= at + 2
            await until(lambda: min(peer.round for peer in honest) >= heard + 3)
            for peer in honest:
                assert cheat.me not in peer.driver.head.last.weights and cheat.me not in peer.driver.state.views
                assert not peer.driver.roster.is_admitted(cheat.me)
            assert cheat.round <= heard + 1, "it makes no round alone: it has less than half of the weight"
            honest[1].driver.bans.take(listed(world, 9))
            await acquaint(peers)  # as the search does
            await until(lambda: all(peer.driver.roster.is_admitted(cheat.me) for peer in honest), what="it to be back")
            await until(lambda: cheat.round >= max(peer.round for peer in honest) - 1, what="it to catch up")

    run(main())


def test_a_list_that_does_not_hold_changes_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        world = World(tmp_path, values=1000)
        async with world.peers(2) as (one, other):
            bans = one.driver.bans
            await until(lambda: one.driver.roster.is_admitted(other.me))
            bans.take(listed(world, 5))
            stranger = PeerIdentity(fixed_ed25519("stranger"))
            strange = World(tmp_path / "other", values=1000, name="birch")
            forged = [b"", b"{}", b"\xff" * 100, listed(world, 9, 1, signer=stranger), listed(strange, 9, 1)]
            for data in (*forged, listed(world, 5, 1), listed(world, 4, 1)):
                bans.take(data)
                assert (bans.number, one.driver.roster.banned) == (5, frozenset())
            assert bans.for_older(5) == b"" and bans.for_older(4) == listed(world, 5)

    run(main())


def test_a_list_is_of_one_run_and_by_its_key(tmp_path: Path) -> None:
    world = World(tmp_path, values=1000)
    key = world.key.public_key()
    assert open_banned(listed(world, 3, 0), key, run=world.card.run).value.number == 3
    with pytest.raises(VerificationError, match="another run"):
        open_banned(listed(world, 3, 0), key, run="ab" * 32)
    with pytest.raises(SignatureError, match="not this run's coordinator's"):
        open_banned(listed(world, 3, 0, signer=world.identity(0)), key, run=world.card.run)


# ---- real processes --------------------------------------------------------------------------------------------------


@pytest.mark.swarm
def test_a_member_that_is_banned_stops_and_the_others_go_on(
    tmp_path: Path, glass_dir: Path, plays: Path, starter: WarmStart
) -> None:
    config = tiny_run(tmp_path, glass_dir, plays, "wood", round_seconds=2.0) | {"credit": {"hold_rounds": 3}}
    with Community(tmp_path, config, starter=starter, tokens_per_s=CARD_TOKENS_PER_S) as community:

        def command(*arguments: str) -> subprocess.CompletedProcess[str]:
            environment = community.environment("no-owner")
            return subprocess.run(
                [sys.executable, "-m", "potluck", *arguments],
                capture_output=True,
                text=True,
                timeout=WAIT_S,
                cwd=tmp_path,
                env=environment,
            )

        community.host()
        peers = [community.peer(name) for name in ("alice", "bob", "carol", "mallory")]
        alice, bob, carol, mallory = peers
        for peer in peers:
            peer.wait_for("committed", members=4)
        known = json.loads(command("members", str(community.run), "--json").stdout)
        assert len(known) == 4
        cheat = command("identity", "show", "--home", str(community.home("mallory"))).stdout.split()[-1]
        at = alice.round
        done = command("ban", str(community.run), cheat[-8:], "--reason", "sends noise")
        assert done.returncode == 0 and f"{cheat} is banned" in done.stdout, done.stderr
        assert mallory.wait() == 1 and "has banned this peer: sends noise" in mallory.said
        for peer in (alice, bob, carol):
            peer.wait_round(at + 6)
        without = [event for event in alice.committed().values() if event["round"] > at + 3]
        assert {event["members"] for event in without} == {3}
        again = community.peer("mallory")
        assert again.wait() == 1 and "has banned this peer: sends noise" in again.said
        file = tmp_path / "ledger.jsonl"
        assert command("ledger", "export", str(community.run), str(file)).returncode == 0
        audit = command("ledger", "audit", str(file))
        assert audit.returncode == 0 and "verified" in audit.stdout, audit.stdout
        home = str(community.home("alice"))
        fetched = command("ledger", "fetch", community.invite, str(file), "--home", home, "--json")
        checks = json.loads(fetched.stdout)["checks"]
        assert fetched.returncode == 0 and [check["name"] for check in checks].count("history") >= 1, fetched.stderr
        balances = {row["peer_id"]: row for row in json.loads(command("ledger", "balance", str(file), "--json").stdout)}
        assert balances[cheat]["banned"] and balances[cheat]["void"] > 0 and balances[cheat]["pending"] == 0
        assert all(row["tokens"] > 0 and not row["void"] for peer, row in balances.items() if peer != cheat)
