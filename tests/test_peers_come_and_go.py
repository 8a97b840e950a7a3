"""Peers come, go and are killed, and so does the coordinator: what the others make of it, by real processes."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.outcomes import ledger_entries
from lab.processes import CARD_TOKENS_PER_S, Community, LabProcess, eventually, leave_in_turn
from lab.warm_start import WarmStart
from protocol.keys import PeerIdentity
from protocol.last import PROBATION
from tests.kit.whole_runs import (
    NAMES,
    Opener,
    check_agreement,
    check_ledger,
    check_published,
    check_receipts,
    check_same_states,
    small_run,
    tell,
    wait_for_receipts,
)

pytestmark = pytest.mark.swarm

BY_THE_CLOCK = {"round_seconds": 2.0, "round_tokens": 10**9}  # longer than it takes to tell each other and to fetch


@pytest.fixture(scope="module")
def by_the_clock(
    tmp_path_factory: pytest.TempPathFactory, llama: Path, plays: Path, starter: WarmStart
) -> Iterator[Community]:
    """A run that goes on while peers come and go; afterwards what all of them agreed on is in the ledger, once."""
    config = small_run(llama, plays, {"sync": BY_THE_CLOCK, "publish": {"every_rounds": 1000}})
    folder = tmp_path_factory.mktemp("clock")
    with Community(folder, config, starter=starter, tokens_per_s=CARD_TOKENS_PER_S) as run:
        host = run.host()
        for name in NAMES:
            run.peer(name)
        yield run
        peers = [part for part in run.parts if part is not host]
        staying = all_of_them(run)
        last = max(peer.round for peer in staying) + 2
        for peer in staying:
            peer.wait_round(last)
        wait_for_receipts(run, list(NAMES), last)
        run.note_sockets()
        for peer in staying:
            assert peer.stop() == 0
        host.wait_for("status", lambda event: event["status"]["round"] >= last)
        assert host.stop() == 0
        run.check_nothing_left()
        tell(peers)
        check_same_states(peers)
        assert check_ledger(run, peers) >= last
        check_receipts(run, list(NAMES), rounds=last)


def all_of_them(run: Community) -> list[LabProcess]:
    """Alice, bob and carol, once rounds are made by all three; whoever of them is not there is started again."""
    peers = [next(part for part in reversed(run.parts) if part.name == name) for name in NAMES]
    peers = [peer if peer.running else run.peer(peer.name) for peer in peers]
    # none of them a newcomer any more, whose weight is so small that the run would wait for one of the others
    now = max(peer.round for peer in peers) + PROBATION
    for peer in peers:
        peer.wait_for("committed", lambda event: event["round"] > now and event["took_part"] and event["members"] >= 3)
    return peers


@pytest.mark.parametrize("victims", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_killed_peer_costs_the_others_a_round_at_most_and_comes_back(by_the_clock: Community, victims: int) -> None:
    run, dice = by_the_clock, random.Random(os.environ.get("PYTEST_SEED"))
    peers = {peer.name: peer for peer in all_of_them(run)}
    for victim in dice.sample(sorted(peers), victims):
        others = [peer for name, peer in peers.items() if name != victim]
        now = max(peer.round for peer in others)
        others[0].wait_round(now + 1)  # a round begins
        time.sleep(dice.uniform(0, 0.4))  # somewhere in the work, the averaging or the vote
        run.note_sockets()
        peers[victim].kill()
        before = max(peer.round for peer in others)
        for other in others:
            other.wait_round(before + 2)
        run.check_nothing_left(victim)
        peers[victim] = run.peer(victim)
        back = peers[victim].wait_for("committed", took_part=True, members=3)
        print(f"{victim} killed after round {before}, took part again in round {back['round']}")


def test_a_late_joiner_fetches_the_state_and_takes_part_within_two_rounds(by_the_clock: Community) -> None:
    run = by_the_clock
    early = all_of_them(run)
    for peer in early:
        peer.wait_round(4)
    late = run.peer("late")
    try:
        first = late.wait_for("committed")
        assert first["round"] > 1, "it did not start from genesis"
        partaken = late.wait_for("committed", took_part=True)
        assert partaken["round"] <= first["round"] + 2
        for peer in early:
            peer.wait_round(partaken["round"])
        run.note_sockets()
        assert late.stop() == 0
    finally:
        late.kill()  # the others' tests know nothing of it
    run.check_nothing_left("late")
    check_same_states([*early, late])
    me = PeerIdentity.load_or_create(run.home("late") / "identity").peer_id
    eventually(lambda: credited(run, me))
    assert min(credited(run, me)) == partaken["round"]


def credited(run: Community, peer_id: str) -> list[int]:
    """The rounds that the ledger credits a peer with."""
    return [entry["round"] for entry in ledger_entries(run) if entry.get("peer_id") == peer_id]


def test_a_peer_that_leaves_costs_the_others_no_round(by_the_clock: Community) -> None:
    run = by_the_clock
    peers = all_of_them(run)
    together = max(peer.round for peer in peers)
    others = peers
    for number, name in ((signal.SIGINT, "alice"), (signal.SIGTERM, "bob")):
        run.note_sockets()
        leaver = next(peer for peer in peers if peer.name == name)
        others = [peer for peer in others if peer is not leaver]
        assert leaver.stop(number) == 0
        assert leaver.find("step", step="left")
        run.check_nothing_left(name)
        now = max(peer.round for peer in others)
        for other in others:
            other.wait_round(now + 3)
    check_same_states(peers)
    (carol,) = others
    rounds = {round: event for round, event in carol.committed().items() if round >= together}
    assert all(event["took_part"] for event in rounds.values()), "carol's work of every round counted"
    assert sorted(rounds) == list(range(min(rounds), max(rounds) + 1))


def test_a_run_whose_peers_are_all_gone_goes_on_where_it_was(community: Opener) -> None:
    run = community(publish={"every_rounds": 1000}, sync={"min_peers": 2})
    host = run.host()
    peers = [run.peer("alice"), run.peer("bob")]
    for peer in peers:
        peer.wait_round(3)
    for how in (signal.SIGINT, signal.SIGKILL):
        left = leave_together(peers, how)
        peers = [run.peer("alice"), run.peer("bob")]
        for peer in peers:
            peer.wait_round(left + 2)
        assert min(min(peer.committed()) for peer in peers) >= left
    wait_for_receipts(run, ["alice", "bob"], left + 2)
    run.note_sockets()
    leave_in_turn(peers)
    host.wait_for("status", lambda event: event["status"]["round"] >= left + 2)
    assert host.stop() == 0
    run.check_nothing_left()
    everyone = [part for part in run.parts if part is not host]
    tell(everyone)
    check_same_states(everyone)
    check_ledger(run, everyone)
    check_receipts(run, ["alice", "bob"], rounds=left + 2)


def leave_together(peers: list[LabProcess], how: signal.Signals) -> int:
    """End all peers at once; returns the last round that any of them committed."""
    for peer in peers:
        peer.send(how)
    for peer in peers:
        assert peer.wait() in ((0, 4) if how == signal.SIGINT else (-how,))  # 4: the run waits for it, and it says so
    return max(peer.round for peer in peers)


def test_a_killed_coordinator_is_not_missed_and_every_claim_is_credited_once(community: Opener) -> None:
    rounds = 16
    run = community(fixed_ports=True, run={"rounds": rounds}, sync={"round_tokens": 6000, "min_peers": 3})
    host = run.host()
    peers = [run.peer(name) for name in NAMES]
    for peer in peers:
        peer.wait_round(3)
    run.note_sockets()
    host.kill()
    run.check_nothing_left("host")
    away = max(peer.round for peer in peers)
    for peer in peers:
        peer.wait_round(away + 3)
    again = run.host()
    print(f"the coordinator was away from round {away} to round {max(peer.round for peer in peers)}")
    for peer in peers:
        peer.wait_for("step", step="done")
        assert peer.wait() == 0
    again.wait_for("status", lambda event: event["status"]["finished"])
    run.note_sockets()
    assert again.stop() == 0
    run.check_nothing_left()

    tell(peers)
    check_agreement(peers, rounds=range(1, rounds + 1))
    assert check_ledger(run, peers) == rounds
    check_receipts(run, list(NAMES), rounds=rounds)
    check_published(run, rounds)
    for name in NAMES:
        assert not list((run.run_folder(name) / "outbox").glob("*.json")), "every report was answered"
